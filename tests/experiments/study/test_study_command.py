"""The command from beginning to end at the smallest scale."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from experiments.study.__main__ import claim_folder, main, only_one
from experiments.study.forms import FULL_FORM
from experiments.study.rows import ROWS
from experiments.study.tasks import Study

CHOSEN = ["full", "model-joins", "three-rounds", "one-worker"]


def stamps(folder):
    """When every file of finished stages was written; what is told of the runs themselves is another matter."""
    finished = [path.parent for path in folder.rglob("stage.json") if ".partial" not in str(path)]
    return {path: path.stat().st_mtime_ns for stage in finished for path in stage.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--full", "--tiny"], "--full and --tiny were given; only one of them is allowed"),
        (["--rows", "fulll"], "there is no row 'fulll'; allowed: full"),
        (["--jobs", "0"], "--jobs 0: at least 1 is needed"),
        (["--warm-up", "nowhere"], "--warm-up nowhere: there is no checkpoint; leave it out to have it made"),
        (["--evaluator", "nowhere"], "--evaluator nowhere: there is no checkpoint"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_done(tmp_path, capsys, arguments, message):
    assert main(["--output", str(tmp_path / "study"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_another_form_in_the_same_folder_is_refused(tmp_path, capsys):
    claim_folder(Study(tmp_path, FULL_FORM, ROWS))
    assert main(["--tiny", "--output", str(tmp_path)]) == 2
    assert "begun with other settings or data: form" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"study.json", "study.lock"}


def test_two_studies_in_one_folder_are_refused(tmp_path, capsys):
    with only_one(tmp_path):
        assert main(["--tiny", "--output", str(tmp_path)]) == 2
    assert f"another study is at work in {tmp_path}; wait for it, or choose another" in capsys.readouterr().err
    with only_one(tmp_path):  # the lock is free again
        pass


def test_a_warm_up_that_no_seed_would_start_from_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    command = ["--output", str(tmp_path / "study"), "--warm-up", str(tmp_path), "--seeds", "3", "5"]
    assert main(command) == 2
    assert "it is what seed 0 starts from, and --seeds 3 5 has no 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "chat_template.jinja"])
def test_another_model_to_start_from_is_refused_whichever_file_differs(name, tmp_path):
    warm = tmp_path / "warm"
    warm.mkdir()
    (warm / "config.json").write_text("{}")
    (warm / name).write_bytes(b"1")
    study = Study(tmp_path / "study", FULL_FORM, ROWS, warm_up=warm)
    claim_folder(study)
    claim_folder(study)
    (warm / name).write_bytes(b"2")
    with pytest.raises(ValueError, match="begun with other settings or data: warm_up was 'given"):
        claim_folder(study)


def any_of_group(group: int) -> bool:
    """Whether a process of this group is at work; what has ended and was not waited for is not."""
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if os.getpgid(process.info["pid"]) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
        except ProcessLookupError:
            continue
    return False


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_with_a_page(root, tmp_path, capsys):
    output, page = tmp_path / "study", tmp_path / "study.md"
    command = ["--tiny", "--output", str(output), "--rows", *CHOSEN, "--page", str(page)]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.study", *command, "--jobs", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=root,
    )
    deadline = time.monotonic() + 600
    while process.poll() is None and not (output / "rows" / "full-0" / "joint").exists():
        assert time.monotonic() < deadline, "nothing was trained"
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any_of_group(process.pid):  # its processes end by themselves, when they see that it is gone
        assert time.monotonic() < deadline, "its processes did not end"
        time.sleep(0.2)
    before = stamps(output)
    assert (output / "rows" / "full-0" / "joint" / "stage.json") in before
    assert main([*command, "--jobs", "1"]) == 0
    after = stamps(output)
    assert {path: after[path] for path in before} == before
    results = json.loads((output / "results.json").read_text())
    assert set(results["rows"]) == {*CHOSEN, "second-round", "no-grpo", "random-gate"}  # the last two train nothing
    assert results["rows"]["three-rounds"]["levels"]["all"]["queries"] > 0
    assert len(results["sessions"]) == 2 and results["sessions"][0]["jobs"] == 2
    assert results["rows"]["full"]["shortcut"]["interventions"]["swap"] is not None
    assert "## Claim by claim" in page.read_text()
    capsys.readouterr()
    assert main(["--tiny", "--output", str(output), "--rows", "full"]) == 0
    assert " 0 to do" in capsys.readouterr().out
    assert stamps(output) == after
    again = json.loads((output / "results.json").read_text())
    assert again["rows"] == results["rows"]  # also of the rows that were not asked for this time
    assert again["sessions"] == results["sessions"]  # to look at the results is no run
    assert not list((output / "checkpoints").glob("*")) and again["parameters"] > 0
    kept = results["rows"]["one-worker"]["selection"]["all"]
    pool = results["rows"]["full"]["selection"]["all"]
    assert kept["inputs"] == pool["inputs"] and kept["base_rate"] == pytest.approx(pool["base_rate"])
    shutil.rmtree(output / "rows" / "full-0" / "joint")
    assert main(command) == 2
    assert "'full, seed 0: gate' of 'full, seed 0: joint phase'" in capsys.readouterr().err
