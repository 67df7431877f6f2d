"""The command from beginning to end at the smallest scale."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from mmemb_r1.cli import main
from mmemb_r1.cli.study import claim_folder
from mmemb_r1.study.forms import FULL_FORM
from mmemb_r1.study.rows import ROWS
from mmemb_r1.study.tasks import Study

CHOSEN = ["full", "model-joins", "three-thoughts", "one-worker"]


def stamps(folder):
    """When every file of finished stages was written; what is told of the runs themselves is another matter."""
    finished = [path.parent for path in folder.rglob("stage.json") if ".partial" not in str(path)]
    return {path: path.stat().st_mtime_ns for stage in finished for path in stage.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--full", "--tiny"], "--full and --tiny: allowed is one of them"),
        (["--rows", "fulll"], "there is no row 'fulll'; allowed: full"),
        (["--jobs", "0"], "--jobs 0: at least 1 is needed"),
        (["--warm-up", "nowhere"], "--warm-up nowhere: there is no checkpoint; leave it out to have it made"),
        (["--evaluator", "nowhere"], "--evaluator nowhere: there is no checkpoint"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_done(tmp_path, capsys, arguments, message):
    assert main(["study", "--output", str(tmp_path / "study"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_another_form_in_the_same_folder_is_refused(tmp_path, capsys):
    claim_folder(Study(tmp_path, FULL_FORM, ROWS))
    assert main(["study", "--tiny", "--output", str(tmp_path)]) == 2
    assert "begun with other settings or data: form" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_with_a_page(tmp_path, capsys):
    output, page = tmp_path / "study", tmp_path / "study.md"
    command = ["study", "--tiny", "--output", str(output), "--rows", *CHOSEN, "--page", str(page)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mmemb_r1.cli", *command, "--jobs", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 400
    while process.poll() is None and not (output / "rows" / "full-0" / "joint").exists():
        assert time.monotonic() < deadline, "nothing was trained"
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3)  # its processes end by themselves
    before = stamps(output)
    assert (output / "rows" / "full-0" / "joint" / "stage.json") in before
    assert main([*command, "--jobs", "1"]) == 0
    after = stamps(output)
    assert {path: after[path] for path in before} == before
    results = json.loads((output / "results.json").read_text())
    assert set(results["rows"]) == {*CHOSEN, "second-round"}
    assert results["rows"]["three-thoughts"]["levels"]["all"]["queries"] > 0
    assert len(results["sessions"]) == 2 and results["sessions"][0]["jobs"] == 2
    assert results["rows"]["full"]["shortcut"]["interventions"]["swap"] is not None
    assert "## Claim by claim" in page.read_text()
    capsys.readouterr()
    assert main(command) == 0
    assert " 0 to do" in capsys.readouterr().out
    assert stamps(output) == after
