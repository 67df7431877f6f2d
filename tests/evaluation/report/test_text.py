"""Results on disk, in this format and the one before, and the tables that show them."""

from __future__ import annotations

import io
import json
import re

import pytest

from mmemb_r1.evaluation import load_results, results_table, save_results
from mmemb_r1.evaluation.report.text import ends, print_table, results_markdown

MODES = ("never", "always", "auto")


def numbers(score, seconds=0.004, **more):
    return {
        "score": score,
        "interval": [max(0, score - 0.125), min(1, score + 0.125)],
        "invocation_ratio": 0.25,
        "mean_reasoning_tokens": 7.25,
        "seconds_per_query": seconds,
        **more,
    }


def entry(metric, groups, score, **more):
    return {
        "metric": metric,
        "groups": groups,
        "n": 8,
        "candidates": 4,
        "modes": dict.fromkeys(MODES, numbers(score)),
        **more,
    }


@pytest.fixture
def results():
    """As of a benchmark whose groups lie within others."""
    image, visdoc = {"modality": "image", "meta": "image/qa"}, {"modality": "visdoc", "meta": "visdoc/pages"}
    mean = {"tasks": 2, "n": 16, "modes": dict.fromkeys(MODES, numbers(0.5))}
    return {
        "format": 2,
        "config": {"modes": list(MODES), "model": "tiny", "dataset": "MMEB-V2", "versions": {"torch": "9.9"}},
        "tasks": {
            "OK-VQA": entry("hit@1", image, 0.75),
            "A-OKVQA": entry("hit@1", image, 0.25),
            "docs": entry("ndcg_linear@5", visdoc, 0.5),
        },
        "summary": dict.fromkeys(("image", "image/qa", "visdoc", "visdoc/pages", "all"), mean),
    }


def test_odd_rows_are_told(results):
    assert "Odd rows" not in results_markdown(results)
    results["tasks"]["docs"]["data"] = {"odd_rows": {"several pages have this id": 2}}
    told = results_markdown(results).split("## Odd rows")[1].split("## ")[0]
    assert "| docs | 2 | several pages have this id |" in told and "scored and counted" in told


def shown(results):
    """The cells of each row, by the first one; title, header and line come before those of tasks."""
    file = io.StringIO()
    print_table(results_table(results), file)
    rows = [re.split(r"\s{2,}", line.strip()) for line in file.getvalue().splitlines() if line.strip()]
    return {cells[0]: cells[1:] for cells in rows}


def test_every_task_is_shown_with_its_interval_under_the_mean_of_its_group(results):
    lines = shown(results)
    assert list(lines)[3:] == [
        "OK-VQA", "A-OKVQA", "mean of image/qa",
        "docs", "mean of visdoc/pages",
        "mean of image", "mean of visdoc", "mean of all",
    ]  # fmt: skip
    assert lines["OK-VQA"] == [
        "8", "hit@1",
        "0.750", ".62-.88", "4.0",
        "0.750", ".62-.88", "7.2", "4.0",
        "0.750", ".62-.88", "25%", "4.0",
    ]  # fmt: skip
    assert lines["docs"][1] == "ndcg_linear@5"


def test_what_is_not_known_is_a_dash_or_no_column(results):
    results["tasks"]["docs"]["modes"] = dict.fromkeys(MODES, numbers(0.5, seconds=None))
    assert shown(results)["docs"][2:5] == ["0.500", ".38-.62", "-"]
    for task in results["tasks"].values():
        task["modes"] = dict.fromkeys(MODES, numbers(0.5, seconds=None))
    assert "ms" not in shown(results)["task"]
    assert "maj." not in shown(results)["task"] and "blind" not in shown(results)["task"]
    results["tasks"]["docs"] |= {"majority": 0.125, "no_image": {"never": 0.25, "always": 0.375}}
    assert shown(results)["docs"][:4] == ["8", "ndcg_linear@5", "0.125", "0.375"]
    assert shown(results)["OK-VQA"][:4] == ["8", "hit@1", "-", "-"]
    results["tasks"]["docs"]["text_alone"] = 0.0625
    assert shown(results)["task"][2:5] == ["maj.", "text", "blind"]
    assert shown(results)["docs"][2:5] == ["0.125", "0.062", "0.375"]


def test_what_needs_no_thought_comes_first(results):
    for name, group in (("OK-VQA", "multi-hop"), ("A-OKVQA", "simple"), ("docs", "multi-hop")):
        results["tasks"][name]["groups"] = {"complexity": group}
    results["summary"] = dict.fromkeys(("multi-hop", "simple", "all"), results["summary"]["all"])
    assert list(shown(results))[3:] == [
        "A-OKVQA",
        "mean of simple",
        "OK-VQA",
        "docs",
        "mean of multi-hop",
        "mean of all",
    ]


def test_nothing_is_cut_off_however_narrow_the_terminal_is(results, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    results["tasks"]["x" * 80] = results["tasks"].pop("docs")
    assert shown(results)["x" * 80][-3:] == [".38-.62", "25%", "4.0"]


def test_the_title_names_the_metric(results):
    assert results_table(results).title == "score per task"
    results["tasks"].pop("docs")
    assert results_table(results).title == "hit@1 per task"


@pytest.mark.parametrize(("interval", "text"), [([0.0, 0.004], ".00-.00"), ([0.996, 1.0], "1.0-1.0"), (None, "-")])
def test_ends_of_an_interval(interval, text):
    assert ends(interval) == text


def test_markdown_has_means_tasks_and_how_it_was_measured(results):
    text = results_markdown(results)
    assert text.startswith("# Evaluation of tiny\n\n16 queries of 3 tasks, scored by hit@1, ndcg_linear@5.")
    cells = "0.500 | .38-.62 | 4.0 | 0.500 | .38-.62 | 7.2 | 4.0 | 0.500 | .38-.62 | 25% | 4.0 |"
    for line in (
        f"| image/qa | 16 |  | {cells}",
        f"| docs | 8 | ndcg_linear@5 | {cells}",
        "| dataset | MMEB-V2 |",
        "| versions | torch 9.9 |",
    ):
        assert line in text.splitlines()
    assert "## Overall" not in text
    assert "*maj.*" not in text and "*thinks*" in text


def test_markdown_says_the_overall_or_why_there_is_none(results):
    results["overall"] = {"never": 0.25, "auto": 0.712}
    assert "| auto | 0.7120 |" in results_markdown(results)
    results["overall"] = {"refused": "missing are 75 of the 78 tasks"}
    assert "## Overall\n\nNone: missing are 75 of the 78 tasks." in results_markdown(results)


def test_a_file_of_the_format_before_is_read(tmp_path):
    measured = {
        "hit@1": 0.5,
        "mrr": 0.5,
        "invocation_ratio": 0.0,
        "mean_reasoning_tokens": 0.0,
        "seconds_per_query": 0.1,
    }
    old = {
        "config": {"modes": ["never"]},
        "tasks": {"flag": {"complexity": "simple", "n": 2, "candidates": 3, "modes": {"never": dict(measured)}}},
        "summary": {name: {"tasks": 1, "n": 2, "modes": {"never": dict(measured)}} for name in ("simple", "all")},
    }
    (tmp_path / "old.json").write_text(json.dumps(old))
    results = load_results(tmp_path / "old.json")
    flag = results["tasks"]["flag"]
    assert (results["format"], flag["metric"], flag["groups"]) == (2, "hit@1", {"complexity": "simple"})
    assert flag["modes"]["never"]["score"] == results["summary"]["all"]["modes"]["never"]["score"] == 0.5
    assert shown(results)["flag"] == ["2", "0.500", "100.0"]
    assert "| flag | 2 | 0.500 | 100.0 |" in results_markdown(results)
    save_results(results, tmp_path / "new.json")
    assert load_results(tmp_path / "new.json") == results


def test_a_newer_format_is_refused(results, tmp_path):
    save_results({**results, "format": 3}, tmp_path / "results.json")
    with pytest.raises(ValueError, match="has the format 3; known: 1 to 2. Upgrade mmemb-r1"):
        load_results(tmp_path / "results.json")
