from __future__ import annotations

import logging

import pytest

from mmemb_r1.evaluation import report as files
from mmemb_r1.evaluation.run_folder import load_results


@pytest.fixture
def run(make_run):
    return make_run("run", {"fact": {"never": [1, 0, 1, 1], "always": [1, 1, 1, 0]}})


def test_without_what_draws_all_else_is_written(run, monkeypatch, caplog):
    def missing(*args):
        raise ImportError("the HTML report needs jinja2: pip install 'mmemb-r1[eval]'")

    results = load_results(run / "results.json")
    monkeypatch.setattr(files, "write_html", missing)
    monkeypatch.setattr(files, "results_markdown", lambda results: "a table\n")
    with caplog.at_level(logging.WARNING):
        files.write_reports(results, run)
    assert "there is no report.html: the HTML report needs jinja2" in caplog.text
    assert (run / "results.md").read_text(encoding="utf-8") == "a table\n" and not (run / "report.html").exists()
    assert load_results(run / "results.json") == results
    assert "earlier run" not in caplog.text


def test_an_older_page_does_not_stay_beside_new_results(run, monkeypatch, caplog):
    def missing(*args):
        raise ImportError("the plots need matplotlib: pip install 'mmemb-r1[eval]'")

    results = load_results(run / "results.json")
    (run / "report.html").write_text("of an earlier run")
    monkeypatch.setattr(files, "write_html", missing)
    monkeypatch.setattr(files, "results_markdown", lambda results: "a table\n")
    with caplog.at_level(logging.WARNING):
        files.write_reports(results, run)
    assert not (run / "report.html").exists()
    assert "there is no report.html (the one of an earlier run was removed): the plots need matplotlib" in caplog.text
