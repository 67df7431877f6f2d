"""What every test lives under: no Hub, no telemetry, nothing outside temporary folders.

That connections to other machines fail is set in pyproject.toml.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

if TYPE_CHECKING:
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.atlas import Atlas

_HF_HOME = tempfile.TemporaryDirectory(prefix="mmemb-r1-tests-")
# The libraries read these when they are imported: no import of theirs may come before.
os.environ |= {
    "CI": "1",  # TRL then reports to nobody
    "HF_HOME": _HF_HOME.name,
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@pytest.fixture(scope="session")
def small_atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """An Atlas with all tasks: 24 countries, 30 objects, pictures of 32 pixels."""
    from mmemb_r1.atlas import build_atlas

    sizes = {"size": 32, "num_countries": 24, "num_objects": 30, "generated_rows": 20, "num_drawings": 12}
    return build_atlas(tmp_path_factory.mktemp("atlas") / "small", **sizes, second_font=None)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved, untrained checkpoint over a tiny Qwen3-VL. Not to be changed."""
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.tiny import build_tiny_vlm

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-checkpoint"
    MMEmbR1.from_vlm(*build_tiny_vlm("qwen3_vl"), max_reasoning_tokens=8).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def recurrent_vlm() -> Callable[..., Any]:
    """`recurrent_vlm(vocab_size)`: a random backbone one of whose two layers keeps a recurrent state."""
    import torch
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    def build(vocab_size: int = 300) -> Any:
        text = {
            "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
            "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        }  # fmt: skip
        vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision)).eval()

    return build


@pytest.fixture(scope="session")
def thinking() -> Callable[..., MMEmbR1]:
    """
    `thinking(family, **config)`: a tiny model whose gate depends on the input, and whose vectors do so strongly.
    `sizes` are those of the backbone, whose weights are `scale` times as large as random ones usually are.
    """
    import torch

    from mmemb_r1 import MMEmbR1
    from mmemb_r1.tiny import build_tiny_vlm

    @torch.no_grad()
    def build(
        family: str = "qwen3_vl", *, sizes: dict[str, int] | None = None, scale: float = 8, **config: Any
    ) -> MMEmbR1:
        vlm, processor = build_tiny_vlm(family, **sizes or {})
        for parameter in vlm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
        model = MMEmbR1.from_vlm(vlm, processor, **{"max_reasoning_tokens": 4, **config})
        model[0].model.gate.output.weight.normal_(generator=torch.Generator().manual_seed(0))
        return model

    return build


@pytest.fixture(scope="session")
def guesses() -> Any:
    """A judge that costs nothing: log-odds that are a pure function of what is asked, whatever is asked beside it."""
    import numpy as np
    import torch

    def guess(*parts: Any) -> float:
        return float(np.random.default_rng(abs(hash(str(parts))) % 2**32).normal())

    class Guesses:
        definition: ClassVar[dict[str, str]] = {"kind": "guesses"}

        def match_logits(self, trials: Any) -> list[torch.Tensor]:
            return [
                torch.tensor([[guess(other, text) for text in trial.rationales] for other in trial.others])
                for trial in trials
            ]

    return Guesses()


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """
    `make_run(name, {task: {mode: scores}})`: a folder as an evaluation writes it. Two queries each are of a cluster, a
    task called "flag" is multi-hop, and two runs are of the same data unless other `data` is given.
    """
    import numpy as np

    from mmemb_r1.evaluation.run_folder import COLUMNS, RESULTS_FILE, rows_path, save_results, write_columns

    def write(
        name: str,
        scores: dict[str, dict[str, Any]],
        data: dict[str, Any] | None = None,
        clusters: list[str] | None = None,
        order: list[int] | None = None,
    ) -> Path:
        folder, tasks = tmp_path / name, {}
        for task, modes in scores.items():
            groups = {"complexity": "multi-hop" if task == "flag" else "simple"}
            for mode, values in modes.items():
                size = len(values)
                columns = {column: np.full(size, "" if kind == "string" else 1) for column, kind in COLUMNS.items()}
                columns["query_id"] = np.array([f"q{row}" for row in range(size)], dtype=object)
                columns["cluster"] = np.array(clusters or [f"c{row // 2}" for row in range(size)], dtype=object)
                columns["score"] = np.array(values, dtype=float)
                rows = {column: entries[order or slice(None)] for column, entries in columns.items()}
                write_columns(rows_path(folder, task, mode), rows, COLUMNS)
            facts = {"digest": task} if data is None else data
            tasks[task] = {"metric": "hit@1", "groups": groups, "n": size, "data": facts, "modes": {}}
        config = {"modes": list(next(iter(scores.values()))), "model": f"model {name}"}
        save_results({"format": 2, "config": config, "tasks": tasks, "summary": {}}, folder / RESULTS_FILE)
        return folder

    return write


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """More threads only wait for one another over small matrices."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def new_modes(tmp_path: Path) -> Callable[[Path], None]:
    """`new_modes(folder)`: check that all in a folder, and itself, has the permissions of what is new there."""
    file, folder = tmp_path / ".new-file", tmp_path / ".new-folder"
    file.touch()
    folder.mkdir()

    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    def check(saved: Path) -> None:
        paths = [saved, *saved.rglob("*")]
        wanted = {True: mode(folder), False: mode(file)}
        other = {str(path): oct(mode(path)) for path in paths if mode(path) != wanted[path.is_dir()]}
        assert len(paths) > 1 and not other

    return check


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout that the tests belong to. The package itself is imported from wherever it is installed."""
    return Path(__file__).resolve().parent.parent
