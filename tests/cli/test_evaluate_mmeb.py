"""`mmemb-r1 evaluate --mmeb`: a run of some tasks, and of all as far as the counts go."""

from __future__ import annotations

import json

import pytest

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main
from mmemb_r1.cli.evaluate import metadata_of, submit
from mmemb_r1.evaluation import load_results
from mmemb_r1.evaluation.mmeb import TASKS

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("GQA", "MSR-VTT", "ViDoSeek-page-fixed")


@pytest.fixture
def evaluate(tiny_checkpoint, copy):
    def run(*arguments):
        options = ["--mmeb", str(copy.root), "--modes", "never,auto", "--device", "cpu", *map(str, arguments)]
        return main(["evaluate", "--model", str(tiny_checkpoint), *options])

    return run


def test_some_tasks_are_scored_and_no_overall_is_claimed(evaluate, miniature, tmp_path, capsys):
    for name in NAMES:
        miniature(name)
    assert evaluate("--output", tmp_path / "run") == 0
    shown = capsys.readouterr().out
    assert "3 tasks were run. There is no overall: " in shown and "missing are 75" in shown
    results = load_results(tmp_path / "run" / "results.json")
    assert [results["tasks"][name]["metric"] for name in NAMES] == ["hit@1", "hit@1", "ndcg_linear@5"]
    assert set(results["summary"]) == {
        "image", "image/qa", "video", "video/retrieval", "visdoc", "visdoc/ood", "all",
    }  # fmt: skip
    assert "missing are 75" in results["overall"]["refused"]
    report = (tmp_path / "run" / "results.md").read_text()
    assert "## Overall\n\nNone: " in report and "| visdoc/ood | 3 | ndcg_linear@5 |" not in report
    assert evaluate("--tasks", "image/qa", "--output", tmp_path / "run") == 2, "not all of the group is there"
    assert evaluate("--tasks", "GQA", "--limit", "1", "--output", tmp_path / "one") == 0
    assert load_results(tmp_path / "one" / "results.json")["tasks"]["GQA"]["candidates"] == 3


def test_an_odd_row_is_in_the_reports(evaluate, copy, rows_of, tmp_path, capsys):
    rows = rows_of("UCF101")
    copy.rows("UCF101", [rows[0] | {"pos_text": "Juggling"}, *rows[1:]])
    assert evaluate("--instructions", "none", "--output", tmp_path / "run") == 0
    results = load_results(tmp_path / "run" / "results.json")
    (told,) = results["tasks"]["UCF101"]["data"]["odd_rows"].items()
    assert told == ("its class is none of the task's, and competes with them", 1)
    assert results["config"]["instructions"] == "none" and results["tasks"]["UCF101"]["candidates"] == 102
    assert told[0] in (tmp_path / "run" / "results.md").read_text()
    assert "Odd rows" in (tmp_path / "run" / "report.html").read_text()
    assert evaluate("--output", tmp_path / "run") == 2, "with instructions it is another run"


def test_media_are_looked_for_before_anything_runs(evaluate, copy, miniature, nothing_is_run, tmp_path, capsys):
    for name in NAMES:
        task = miniature(name)
        if name == "MSR-VTT":
            (copy.root / task.media).rename(tmp_path / "elsewhere")
    assert evaluate("--output", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "MSR-VTT: the folder " in error and "name them: GQA,ViDoSeek-page-fixed" in error
    assert not (tmp_path / "run").exists()


@pytest.fixture
def nothing_is_run(monkeypatch):
    def run(*args, **kwargs):
        raise AssertionError("something was run or downloaded")

    for name in ("mmemb_r1.evaluation.run_evaluation", "mmemb_r1.evaluation.mmeb.download_task"):
        monkeypatch.setattr(name, run, raising=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--submission-mode", "auto"], "a submission is of all 78 tasks of MMEB-V2; missing are 77: "),
        (["--submission-mode", "auto", "--tasks", "image,video", "--download"], "missing are 24: "),
        (["--submission-mode", "always"], "that mode is not run; it would be never, auto"),
        ([], "choose it: --submission-mode never or auto"),
        (
            ["--document-reasoning", "never,always", "--submission-mode", "always"],
            "that mode is not run; it would be never, never+always, auto, auto+always",
        ),
    ],
)
def test_what_can_not_be_submitted_is_not_run(options, message, evaluate, miniature, nothing_is_run, tmp_path, capsys):
    miniature("GQA")
    assert evaluate("--output", tmp_path / "run", "--submission", tmp_path / "sent.json", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists() and not (tmp_path / "sent.json").exists()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("[]", "holds a list; expected an object"),
        ("{", "is no JSON"),
        ('{"homepage": "x"}', "metadata has 'homepage'; known are model_name"),
        ('{"embedding_dimension": "large"}', "metadata's 'embedding_dimension' is 'large'; expected int"),
        ('{"model_name": null}', "metadata's 'model_name' is None"),
        (None, "No such file"),
    ],
)
def test_metadata_are_checked_before_the_run(told, message, evaluate, miniature, nothing_is_run, tmp_path, capsys):
    miniature("GQA")
    file = tmp_path / "told.json"
    if told is not None:
        file.write_text(told)
    options = ("--submission", tmp_path / "sent.json", "--submission-mode", "never", "--submission-metadata", file)
    assert evaluate(*options) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_downloaded_unless_asked_for(evaluate, miniature, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(
        "mmemb_r1.evaluation.mmeb.download_task", lambda *args: asked.append(args) or miniature(args[0])
    )
    assert evaluate("--tasks", "GQA,MSR-VTT") == 2, "they are not there"
    assert not asked
    capsys.readouterr()
    assert evaluate("--tasks", "GQA,MSR-VTT", "--download", "--output", tmp_path / "run") == 0
    assert [name for name, _ in asked] == ["GQA", "MSR-VTT"]
    assert "downloading MSR-VTT (2 of 2) into " in capsys.readouterr().err
    assert list(load_results(tmp_path / "run" / "results.json")["tasks"]) == ["GQA", "MSR-VTT"]
    assert evaluate("--tasks", "GQA,Nothing", "--download") == 2 and len(asked) == 2


def test_a_complete_run_is_submitted(evaluate, miniature, monkeypatch, tmp_path, capsys):
    """From the command to the file, with a run that gives numbers for all 78 at once."""
    miniature("GQA")
    run = {"config": {"modes": ["never", "auto"], "model": "tiny"}, "tasks": all_tasks("never", "auto"), "summary": {}}
    monkeypatch.setattr("mmemb_r1.evaluation.run_evaluation", lambda *args, **kwargs: run, raising=False)
    monkeypatch.setattr("mmemb_r1.evaluation.mmeb.check_tasks", lambda names: None)
    monkeypatch.setattr("mmemb_r1.cli.evaluate._show", lambda *args: None)
    told = tmp_path / "told.json"
    told.write_text(json.dumps({"url": "https://example.org/tiny"}))
    options = ("--submission", tmp_path / "sent.json", "--submission-mode", "never", "--submission-metadata", told)
    assert evaluate(*options) == 0
    assert "the leaderboard's file, of mode never, is " in capsys.readouterr().err
    sent = json.loads((tmp_path / "sent.json").read_text())
    assert sent["metadata"]["url"] == "https://example.org/tiny"
    assert sent["metrics"]["image"]["GQA"]["hit@1"] == 0.25, "of the mode that was asked for"


def all_tasks(*modes):
    """Results of all tasks: a quarter is right in the first mode, a half in the second."""
    return {
        name: {
            "metric": task.metric,
            "n": task.num_queries,
            "modes": {mode: {"score": 0.25 * place, task.metric: 0.25 * place} for place, mode in enumerate(modes, 1)},
        }
        for name, task in TASKS.items()
    }


def test_the_submission_of_a_complete_run_names_the_model(tiny_checkpoint, tmp_path, capsys):
    results = {"config": {"modes": ["auto"], "model": "tiny"}, "tasks": all_tasks("auto")}
    model = MMEmbR1(str(tiny_checkpoint), device="cpu")
    path = tmp_path / "new" / "sent.json"
    submit(results, "auto", metadata_of(model, "tiny", {"url": "https://example.org/tiny"}), path)
    sent = json.loads(path.read_text())
    metadata = sent["metadata"]
    assert (metadata["model_name"], metadata["model_backbone"]) == ("tiny", "qwen3_vl")
    assert metadata["url"] == "https://example.org/tiny"
    assert metadata["embedding_dimension"] == model.get_embedding_dimension()
    assert float(metadata["model_size"][:-1]) * 1e9 == pytest.approx(model[0].model.num_parameters(), rel=0.1)
    assert sum(map(len, sent["metrics"].values())) == 78
    assert "of mode auto" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'url' is 5; expected str"):
        metadata_of(model, "tiny", {"url": 5})
