"""
Run all commands of docs/from-a-public-model.md, as they stand there, on tiny models and data of the same layouts.

    python -m experiments.recipes.public_model [--output runs/public-model]     # two and a half minutes on two cores

The page's blocks are given to bash one after another, in a folder that holds stand-ins (miniatures.py) under the names
of what the page downloads. Its programs are those of small_command.py: they run the very commands on the CPU, with
fewer steps, and two processes in the place of eight. Printed: the time of each block, and what came out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.recipes.miniatures import (
    PAIRS,
    POLICY_PAIRS,
    count_as_miniature,
    write_mmeb,
    write_models,
    write_public_data,
)
from experiments.recipes.small_command import BESIDE, PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "from-a-public-model.md"
ANCHOR = 0.9995  # of both phases; the angles of two add up, so that cosines of the whole may be lower
ROUNDED = 2e-3  # cosine that weights in bfloat16 may lose where adapters are merged into them
_BLOCK = re.compile(r"(?:^ {4}.*\n|^\n(?= {4}))+", re.MULTILINE)


def blocks(page: str) -> list[str]:
    """
    Find the indented blocks of a page, in their order.

    >>> blocks("First\\n\\n    mmemb-r1 init \\\\\\n        --vlm a\\n\\nthen\\n\\n    wait\\n")
    ['mmemb-r1 init \\\\\\n    --vlm a', 'wait']
    """
    found = (block.group() for block in _BLOCK.finditer(page))
    return [re.sub("^ {4}", "", block, flags=re.MULTILINE).strip() for block in found if block.strip()]


def prepare(folder: Path) -> dict[str, str]:
    """Write the stand-ins, and what [`small_programs`] writes. Returns the environment of the commands."""
    write_models(folder)
    write_public_data(folder / "data")
    write_mmeb(folder / "data" / "mmeb")
    return small_programs(folder)


def small_programs(folder: Path) -> dict[str, str]:
    """Write the examples and the programs in small into a folder. Returns the environment of the commands."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    programs = folder / "programs"
    programs.mkdir()
    for name in PROGRAMS:
        script = f'#!/bin/sh\nexec "{sys.executable}" -m experiments.recipes.small_command {name} "$@"\n'
        (programs / name).write_text(script, encoding="utf-8")
        (programs / name).chmod(0o755)
    paths = [str(ROOT), *map(os.path.abspath, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))]
    return os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def run_block(block: str, folder: Path, environment: dict[str, str]) -> str:
    """Run a block in bash and return what it prints; a RuntimeError with the end of it if a command fails."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"ended with {done.returncode}:\n{block}\n...{done.stdout[-4000:]}")
    return done.stdout


def check(folder: Path) -> list[str]:
    """
    Compare what came out with what has to come out.

    Returns:
        A line for each thing.

    Raises:
        RuntimeError: that names the first thing that is not as it has to be.
    """
    runs, told = folder / "runs", []

    def expect(name: str, found: Any, right: bool) -> None:
        told.append(f"{name}: {found}")
        if not right:
            raise RuntimeError("\n".join([*told, "which is not what it has to be"]))

    proof = json.loads((runs / "start" / "proof.json").read_text(encoding="utf-8"))
    expect("recipe of the embedder", proof["recipe"], proof["recipe"] == "qwen3-vl-embedding")
    imported = json.loads((folder / "data/sft/summary.json").read_text(encoding="utf-8"))["total"]
    numbers = [imported[name] for name in ("read", "written", "rationales")]
    expect("pairs read, imported, their rationales", numbers, numbers == [PAIRS, PAIRS - 1, 2 * (PAIRS - 1)])
    parts = [num_rows(folder / "data/policy" / f"{name}.parquet") for name in ("train", "held-out")]
    expect("pairs to train the policy on, and held out", parts, sum(parts) == POLICY_PAIRS and min(parts) > 1)
    kept = num_rows(runs / "selection" / "selected.parquet")
    expect("rationales kept", kept, 0 < kept < 2 * (PAIRS - 1))
    gate = json.loads((runs / "gate" / "gate.json").read_text(encoding="utf-8"))
    expect("queries that the gate is fitted to", gate["fitted"], gate["fitted"] + gate["held out"] == parts[0])
    for name in ("joint", f"joint{BESIDE}", "grpo", f"grpo{BESIDE}"):
        facts = json.loads((runs / name / "model" / "training.json").read_text(encoding="utf-8"))
        said = str(facts.get("direct embeddings"))
        least = float(re.findall(r"before training ([\d.]+)", said)[0])
        expect(f"{name}, least direct cosine", least, facts["steps"] == 3 and least >= ANCHOR)
    phases = [phase["phase"] for phase in facts["before"]]
    expect("phases before the last", phases, phases == ["init", "joint", "gate"])
    cosine = least_cosine(runs / "start", runs / "grpo" / "model", folder / "data/policy/held-out.parquet")
    expect("least direct cosine of the end to the start", round(cosine, 5), cosine >= 2 * ANCHOR**2 - 1 - ROUNDED)
    expect_submission(runs, expect)
    return told


def expect_submission(runs: Path, expect: Any) -> None:
    """Check the evaluation and the leaderboard's file."""
    from mmemb_r1.evaluation.mmeb import validate_submission

    count_as_miniature()
    results = json.loads((runs / "evaluation" / "results.json").read_text(encoding="utf-8"))
    expect("tasks of MMEB-V2", len(results["tasks"]), len(results["tasks"]) == 78)
    modes = sorted(results["overall"])
    expect("modes", modes, modes == ["auto", "never"])
    thought = {name for name, task in results["tasks"].items() if task["modes"]["auto"]["invocation_ratio"] == 1}
    expect("tasks whose queries all think, at the threshold of a small run", len(thought), len(thought) == 78)
    submitted = json.loads((runs / "submission.json").read_text(encoding="utf-8"))
    validate_submission(submitted)
    scores = submitted["metrics"]["image"]
    expect("tasks of pictures in the leaderboard's file", len(scores), len(scores) == 36)


def num_rows(path: Path) -> int:
    """Count the rows of a Parquet file."""
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(path).num_rows)


def least_cosine(first: Path, last: Path, pairs: Path) -> float:
    """Compute the least cosine of two checkpoints' direct vectors of the inputs of a table."""
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.content import inputs_of
    from mmemb_r1.training.tables import read_pairs

    table = read_pairs(pairs)
    inputs = [value for side in ("query", "target") for value in inputs_of(table[side])]
    before, after = (MMEmbR1(str(path), device="cpu").encode(inputs, reasoning="never") for path in (first, last))
    return float((before * after).sum(axis=1).min())


def run_page(folder: Path) -> None:
    """Run the page in a new folder, and print how it went; a RuntimeError if a command or a result is not right."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; remove it, or choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    environment = prepare(folder.resolve())
    for number, block in enumerate(blocks(PAGE.read_text(encoding="utf-8")), start=1):
        begun = os.times()
        said = run_block(block, folder, environment)
        (folder / f"block-{number}.log").write_text(said, encoding="utf-8")
        done = os.times()
        cores = done.children_user + done.children_system - begun.children_user - begun.children_system
        print(f"{done.elapsed - begun.elapsed:6.1f} s, of a core {cores:5.1f} s: {block.splitlines()[0]}", flush=True)
    print(*check(folder), sep="\n")


def main() -> None:
    """Run the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/public-model"), help="a new folder")
    try:
        run_page(parser.parse_args().output)
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
