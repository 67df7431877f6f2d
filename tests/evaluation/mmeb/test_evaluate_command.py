"""`mmemb-r1 evaluate --mmeb`: a run of some tasks, and of all as far as the counts go."""

from __future__ import annotations

import argparse
import json

import pytest

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main
from mmemb_r1.cli.evaluate import submit
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


def test_without_all_tasks_there_is_no_submission(evaluate, miniature, tmp_path, capsys):
    miniature("GQA")
    assert evaluate("--output", tmp_path / "run", "--submission", tmp_path / "sent.json") == 2
    assert "missing are 77" in capsys.readouterr().err
    assert (tmp_path / "run" / "results.json").exists() and not (tmp_path / "sent.json").exists()


def test_the_submission_of_a_complete_run_names_the_model(tiny_checkpoint, tmp_path, capsys):
    tasks = {
        name: {"metric": task.metric, "n": task.num_queries, "modes": {"auto": {"score": 0.5, task.metric: 0.5}}}
        for name, task in TASKS.items()
    }
    results = {"config": {"modes": ["never", "auto"], "model": "tiny"}, "tasks": tasks}
    told = tmp_path / "told.json"
    told.write_text(json.dumps({"url": "https://example.org/tiny"}))
    args = argparse.Namespace(submission=tmp_path / "new" / "sent.json", submission_metadata=told)
    model = MMEmbR1(str(tiny_checkpoint), device="cpu")
    submit(results, model, args)
    sent = json.loads(args.submission.read_text())
    metadata = sent["metadata"]
    assert (metadata["model_name"], metadata["model_backbone"]) == ("tiny", "qwen3_vl")
    assert metadata["url"] == "https://example.org/tiny"
    assert metadata["embedding_dimension"] == model.get_embedding_dimension()
    assert float(metadata["model_size"][:-1]) * 1e9 == pytest.approx(model[0].model.num_parameters(), rel=0.1)
    assert sum(map(len, sent["metrics"].values())) == 78
    assert "of mode auto" in capsys.readouterr().err
    told.write_text("[]")
    with pytest.raises(ValueError, match="holds a list; expected an object"):
        submit(results, model, args)
