"""A second look is measured beside the vectors as they are, as modes of its own."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main
from mmemb_r1.evaluation import RetrievalTask, Settings, load_results, read_query_rows, rows_path, run_evaluation
from mmemb_r1.evaluation.report.text import results_markdown
from mmemb_r1.evaluation.settings import LOOKING, MODES, QUERY_MODES, default_modes
from mmemb_r1.model_card.sections import cost_section, results_section

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = {"bias": 0.5, "mean_logp": 0.6, "least_logp": 0.1, "length": -0.7, "cosine": -1.1, "gate_logit": 0.4}
QUERIES = [f"what is number {number}?" for number in range(8)]
TARGETS = [f"it is {number * number}" for number in range(8)]


@pytest.fixture
def model(thinking) -> MMEmbR1:
    return thinking(max_reasoning_tokens=4, second_look=WEIGHTS)


@pytest.fixture
def task() -> RetrievalTask:
    ids = [str(number) for number in range(8)]
    return RetrievalTask(
        name="squares", metric="hit@1", groups={"topic": "numbers"}, query_ids=ids, queries=QUERIES,
        candidate_ids=ids, candidates=TARGETS, relevance=[{one: 1} for one in ids],
    )  # fmt: skip


def test_each_mode_has_its_vectors(model, task, tmp_path):
    results = run_evaluation(model, [task], Settings(modes=default_modes(model)), output=tmp_path, progress=False)
    assert results["config"]["modes"] == list(QUERY_MODES)
    candidates = model.encode_document(TARGETS)
    margins = {}
    for mode in QUERY_MODES:
        rows = read_query_rows(rows_path(tmp_path, "squares", mode))
        vectors = model.encode_query(QUERIES, reasoning=LOOKING.get(mode, mode), second_look=mode in LOOKING)
        scores = vectors @ candidates.T
        right = np.diag(scores)
        others = np.where(np.eye(8, dtype=bool), -np.inf, scores).max(axis=1)
        np.testing.assert_allclose(rows["margin"], right - others, atol=1e-5, err_msg=mode)
        margins[mode] = rows["margin"]
        thinks = results["tasks"]["squares"]["modes"][mode]["invocation_ratio"]
        assert thinks == results["tasks"]["squares"]["modes"][LOOKING.get(mode, mode)]["invocation_ratio"]
    for mode, plain in LOOKING.items():
        assert np.abs(margins[mode] - margins[plain]).max() > 1e-3
    report = results_markdown(results)
    assert "always-second-look" in report and "how likely the model found what it wrote" in report
    assert report.count("| thinks |") == 4  # of auto in both ways, for means and for tasks
    for section in (results_section(results), cost_section(results)):
        assert all(mode in section for mode in QUERY_MODES)
    assert "how likely the model found what it wrote" in results_section(results)


def test_without_one_it_is_not_asked_for(thinking, task):
    model = thinking(max_reasoning_tokens=4)
    assert default_modes(model) == MODES
    with pytest.raises(ValueError, match="'auto-second-look' is asked for, and this model has no second look"):
        run_evaluation(model, [task], Settings(modes=("never", "auto-second-look")), progress=False)
    results = run_evaluation(model, [task], Settings(modes=("always",)), progress=False)
    assert "second look" not in results_markdown(results) + results_section(results)


def test_documents_have_no_second_look():
    with pytest.raises(ValueError, match="'auto-second-look' is not known; allowed: never, always, auto, same"):
        Settings(document_reasoning="auto-second-look")


def test_the_command_measures_all_that_there_is(model, tmp_path):
    model.save_pretrained(str(tmp_path / "model"))
    pairs = [
        {"pair_id": str(row), "task": "squares", "query": query, "target": target}
        for row, (query, target) in enumerate(zip(QUERIES, TARGETS, strict=True))
    ]
    Dataset.from_list(pairs).to_parquet(str(tmp_path / "pairs.parquet"))
    asked = ["evaluate", "--model", str(tmp_path / "model"), "--pairs", str(tmp_path / "pairs.parquet")]
    assert main([*asked, "--device", "cpu", "--output", str(tmp_path / "run")]) == 0
    results = load_results(tmp_path / "run" / "results.json")
    assert results["config"]["modes"] == list(QUERY_MODES)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "with a second look" in page and 'class="mark auto-second-look"' in page
    assert main([*asked, "--device", "cpu", "--modes", "auto-second-look", "--format", "markdown"]) == 0
