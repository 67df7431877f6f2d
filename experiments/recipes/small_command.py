"""
Run a program of docs/from-a-public-model.md in small: `small_command PROGRAM ARGUMENT ...`.

`public_model.py` puts it in the place of each program that the page calls. `mmemb-r1` gets options for the CPU, a few
steps and small batches after those of the page; `accelerate launch` starts two processes where the page has eight,
into a folder beside that of one process; what would be downloaded or installed has to be there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from configparser import ConfigParser
from pathlib import Path

PROGRAMS = ("accelerate", "hf", "mmemb-r1", "pip", "python", "seq")
PROCESSES = 2  # where the page has eight
BESIDE = "-8gpu"  # after the name of the folder that several processes train into
_TRAINING = ["--cpu", "--max_steps", "3", "--per_device_train_batch_size", "8", "--logging_steps", "1"]
SMALL: dict[tuple[str, ...], list[str]] = {
    ("select",): ["--device", "cpu"],
    ("train", "joint"): [
        *_TRAINING, "--sub_batch_size", "4", "--mini_batch_tokens", "1024", "--dataloader_num_workers", "0",
        "--learning_rate", "1e-3",
    ],
    ("train", "gate"): ["--device", "cpu"],
    ("train", "adaptive"): [*_TRAINING, "--max_reasoning_tokens", "4"],
    ("evaluate",): ["--device", "cpu", "--max-reasoning-tokens", "4", "--gate-threshold", "0"],
}  # fmt: skip


def small_arguments(words: Sequence[str]) -> list[str]:
    """
    Change the arguments of `mmemb-r1` to those of a small run.

    >>> small_arguments(["select", "--part", "2/8", "--output", "out"])
    ['select', '--part', '2/2', '--output', 'out', '--device', 'cpu']
    >>> small_arguments(["evaluate", "--download"])
    ['evaluate', '--device', 'cpu', '--max-reasoning-tokens', '4', '--gate-threshold', '0']
    """
    words = [word for word in words if word != "--download"]
    if "--part" in words:
        place = words.index("--part") + 1
        words[place] = words[place].replace("/8", f"/{PROCESSES}")
    added = [own for command, own in SMALL.items() if tuple(words[: len(command)]) == command]
    return [*words, *sum(added, [])]


def run_mmemb(words: Sequence[str]) -> int:
    """Run `mmemb-r1` in small; of MMEB-V2 as many queries count as complete as its miniature has."""
    from experiments.recipes.miniatures import count_as_miniature
    from mmemb_r1.cli import main

    if "--mmeb" in words:
        count_as_miniature()
    return main(small_arguments(words))


def launch(words: Sequence[str]) -> None:
    """Become `accelerate launch` with a few processes on the CPU."""
    split = words.index("-m")
    output = words.index("--output") + 1
    own, trained = list(words[1:split]), [*words[:output], words[output] + BESIDE, *words[output + 1 :]][split + 2 :]
    module = ["-m", "experiments.recipes.small_command", "mmemb-r1"]
    places = ["--num_processes", str(PROCESSES), "--main_process_port", "0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *own, *places, *module, *trained]
    os.execv(sys.executable, command)


def check_download(words: Sequence[str]) -> None:
    """Check that what `hf download` would fetch lies where the page says."""
    folder = Path(words[words.index("--local-dir") + 1])
    if not folder.is_dir() or folder.name != words[1].partition("/")[2]:
        raise SystemExit(f"the page downloads {words[1]} into {folder}, where no stand-in lies")


def check_extras(words: Sequence[str]) -> None:
    """Check that the extras exist that `pip install '.[EXTRA,...]'` names."""
    named = words[-1].partition("[")[2].rstrip("]").split(",")
    setup = ConfigParser()
    setup.read(Path(__file__).resolve().parents[2] / "setup.cfg", encoding="utf-8")
    known = setup.options("options.extras_require")
    if unknown := [name for name in named if name not in known]:
        raise SystemExit(f"the page installs the extra {unknown[0]!r}; there are: {', '.join(known)}")


def main() -> None:
    """Do what the program would do, in small."""
    program, *words = sys.argv[1:]
    if program == "mmemb-r1":
        sys.exit(run_mmemb(words))
    elif program == "accelerate":
        launch(words)
    elif program == "hf":
        check_download(words)
    elif program == "pip":
        check_extras(words)
    elif program == "python":
        os.execv(sys.executable, [sys.executable, *words])
    elif program == "seq":
        print(*range(PROCESSES), sep="\n")


if __name__ == "__main__":
    main()
