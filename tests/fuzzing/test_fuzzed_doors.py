"""What strangers send: at every door the right vector or an error of the product's own, and no wait without end."""

from __future__ import annotations

import json
import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.fuzzing.file_doors import (
    TEXTS,
    caches_door,
    cards_door,
    checkpoints_door,
    pool_reader,
    recipe_reader,
    recipes_door,
    shards_door,
    tables_door,
)
from tests.fuzzing.input_doors import (
    Door,
    command_door,
    films_door,
    options_door,
    pictures_door,
    pool_door,
    strings_door,
    structures_door,
)

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import encode as encode_command
from mmemb_r1.cli import main
from mmemb_r1.training.adaptive.run import AdaptiveRun
from mmemb_r1.training.joint.run import JointRun

pytestmark = pytest.mark.usefixtures("one_thread")
PATIENCE = 20  # seconds for one input
FEW = 12  # inputs of each door in the quick tests
MANY = {
    **{"pictures": 400, "films": 150, "strings": 250, "structures": 400, "options": 200, "command": 120},
    **{"tables": 150, "recipes": 300, "cards": 120, "checkpoints": 40, "shards": 80, "caches": 80},
}  # 2,290 in all


RECIPES = {
    "experiments/quickstart/full/joint.yaml": recipe_reader(JointRun),
    "examples/joint-qwen3-vl-2b-lora.yaml": recipe_reader(JointRun),
    "examples/adaptive-atlas.yaml": recipe_reader(AdaptiveRun),
    "experiments/quickstart/full/adaptive.yaml": recipe_reader(AdaptiveRun),
    "examples/pool.yaml": pool_reader,
}


def _measured(hits: float, tokens: float) -> dict[str, float]:
    return {"hit@1": hits, "score": hits, "mrr": hits, "invocation_ratio": tokens / 8,
            "mean_reasoning_tokens": tokens, "seconds_per_query": 0.01}  # fmt: skip


_MODES = {"never": _measured(0.25, 0.0), "always": _measured(0.5, 8.0)}
CARD_FILES = {
    "results.json": json.dumps(
        {
            "format": 2,
            "config": {"modes": list(_MODES), "model": "m", "batch_size": 4, "versions": {"torch": "9.9"}},
            "tasks": {"names": {"metric": "hit@1", "groups": {"complexity": "simple"}, "n": 16, "modes": _MODES}},
            "summary": {"all": {"tasks": 1, "n": 16, "modes": _MODES}},
        }
    ).encode(),
    "training.json": json.dumps({"phase": "joint", "pairs": 12, "steps": 3, "loss": 0.5}).encode(),
    "curve-test.csv": b"threshold,invocation,r1,low,high\n0.1,0.9,0.5,0.4,0.6\n0.9,0.1,0.4,0.3,0.5\n",
}


class HangError(BaseException):
    """Raised inside what takes too long; no handler of `Exception` stops it."""


@contextmanager
def watched() -> Iterator[None]:
    """End what takes longer than `PATIENCE`."""

    def stop(*_: Any) -> None:
        raise HangError(f"more than {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def knock(name: str, door: Door, number: int) -> Counter[str]:
    """Try a door with inputs of the seeds 0, 1, ...; all that goes wrong is told at once."""
    outcomes, faults = Counter[str](), []
    for seed in range(number):
        try:
            with watched():
                outcomes[door(random.Random(f"{name} {seed}"))] += 1
        except (Exception, HangError) as error:  # noqa: BLE001 - whatever it is, it is told
            faults.append(f"{name} {seed}: {type(error).__name__}: {str(error)[:300]}")
    assert not faults, f"{len(faults)} of {number}:\n" + "\n".join(faults[:20])
    return outcomes


@pytest.fixture(scope="module")
def model(thinking: Callable[..., MMEmbR1]) -> MMEmbR1:
    return thinking(max_image_pixels=2**20, max_video_pixels=2**21, max_video_frames=300)


@pytest.fixture
def doors(
    model: MMEmbR1,
    tiny_checkpoint: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> dict[str, Callable[[], Door]]:
    """All doors, each to be made: most need files."""

    def run(arguments: list[str]) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["encode", "--model", "model", "--reasoning", "never", *arguments])
        return status, capsys.readouterr().err

    def run_card(arguments: list[str]) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["card", *arguments])
        return status, capsys.readouterr().err

    def load(folder: Path) -> MMEmbR1:
        return MMEmbR1(str(folder), device="cpu")

    recipes: list[tuple[str, Callable[[Path], Any]]] = [
        ((root / name).read_text(encoding="utf-8"), read) for name, read in RECIPES.items()
    ]

    def cards() -> Door:
        checkpoint = tmp_path / "checkpoint"
        shutil.copytree(tiny_checkpoint, checkpoint)
        return cards_door(checkpoint, run_card, {**CARD_FILES, "README.md": (checkpoint / "README.md").read_bytes()})

    def checkpoints() -> Door:
        vectors = load(tiny_checkpoint).encode(TEXTS[:2], reasoning="never")
        return checkpoints_door(tiny_checkpoint, tmp_path / "damaged", load, vectors)

    monkeypatch.setattr(encode_command, "_model", lambda args: (model, {"reasoning": "never"}))
    return {
        "pictures": lambda: pictures_door(model),
        "films": lambda: films_door(model),
        "strings": lambda: strings_door(model, tmp_path),
        "structures": lambda: structures_door(model),
        "options": lambda: options_door(model),
        "command": lambda: command_door(model, tmp_path, run),
        "tables": lambda: tables_door(tmp_path),
        "recipes": lambda: recipes_door(tmp_path, recipes),
        "cards": cards,
        "checkpoints": checkpoints,
        "shards": lambda: shards_door(model, tmp_path),
        "caches": lambda: caches_door(tmp_path),
    }


needs_alarm = pytest.mark.skipif(
    not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread(),
    reason="the watchdog is an alarm, which this system lacks",
)


@needs_alarm
@pytest.mark.parametrize("name", MANY)
def test_a_few_inputs_at_every_door(name, doors):
    knock(name, doors[name](), FEW)


@needs_alarm
@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_many_inputs_at_every_door(name, doors):
    outcomes = knock(name, doors[name](), MANY[name])
    assert min(outcomes["embedded"], outcomes["refused"]) > MANY[name] // 50  # neither is what always comes out


@needs_alarm
@pytest.mark.slow
def test_a_pool_of_processes_is_a_door_like_one_process(model):
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        model.encode(["a", "b", "c"], pool=pool, reasoning="never", chunk_size=1)  # processes take long to begin
        outcomes = knock("pool", pool_door(model, pool), 24)
    finally:
        model.stop_multi_process_pool(pool)
    assert min(outcomes["embedded"], outcomes["refused"]) > 3
