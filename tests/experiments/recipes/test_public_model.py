"""The page that leads from a public embedder to MMEB-V2: all of it runs, on miniatures."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from experiments.recipes import durations
from experiments.recipes.public_model import PAGE, blocks, run_block
from experiments.recipes.small_command import BESIDE, small_arguments
from mmemb_r1.cli import _parser

TEXT = PAGE.read_text(encoding="utf-8")


def test_no_command_of_the_page_is_left_out():
    shown = re.findall(r"\b(?:mmemb-r1|accelerate launch|hf download|pip install) ", TEXT.replace("`mmemb-r1 ", "`"))
    run = re.findall(r"\b(?:mmemb-r1|accelerate launch|hf download|pip install) ", "\n".join(blocks(TEXT)))
    assert len(shown) == len(run) > 20


def test_a_command_that_fails_ends_the_run(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)ended with 3:.*a word"):
        run_block("echo a word\n(exit 3)\necho never", tmp_path, {})


def test_commands_run_in_small_are_those_of_the_page_with_other_sizes():
    words = ["train", "joint", "--model", "m", "--pairs", "p", "--output", "o", "--max_steps", "9"]
    small = _parser(small_arguments(words)).parse_args(small_arguments(words))
    assert (str(small.model), str(small.output), small.cpu) == ("m", "o", True)
    assert vars(small)["field:max_steps"] == 3


def test_hours_are_those_that_are_computed():
    assert durations.written(TEXT) == TEXT
    # 461.4 M tokens of a model with 4.44 G parameters, two operations each, at 396 T operations a second
    assert durations.select_tokens(40_000) == pytest.approx(461.4e6, rel=1e-3)
    assert durations.works()["4, select, 40,000 pairs"].hours() == pytest.approx(2.875, rel=1e-2)


@pytest.mark.slow
def test_the_page_from_the_first_command_to_the_leaderboards_file(tmp_path, root):
    command = [sys.executable, "-m", "experiments.recipes.public_model", "--output", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count(" s: ") == len(blocks(TEXT))
    assert "tasks of MMEB-V2: 78" in done.stdout and f"grpo{BESIDE}, least direct cosine: 0.999" in done.stdout
    assert (tmp_path / "run" / "runs" / "submission.json").is_file()
