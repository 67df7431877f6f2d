"""Models whose direct and reasoned embeddings are two spaces: every query is compared with candidates of its own."""

from __future__ import annotations

import numpy as np
import pytest

from mmemb_r1.evaluation import RetrievalEvaluator, RetrievalTask, Settings, read_query_rows, rows_path, run_evaluation
from mmemb_r1.evaluation.diagnose.run import ShortcutSettings, run_diagnosis
from mmemb_r1.evaluation.mteb_model import MTEBModel
from mmemb_r1.evaluation.scoring import score_queries
from mmemb_r1.modeling.tokens_mmemb_r1 import Controls
from mmemb_r1.stream import load_shards, read_shards

pytestmark = pytest.mark.usefixtures("one_thread")
CITIES = ["Lima", "Paris", "Rome", "Cairo", "Quito", "La Paz"]
REFUSED = "can't be compared with documents embedded with reasoning='{}': the direct and the reasoned embeddings"


@pytest.fixture(scope="module")
def model(thinking):
    controls = Controls("<disc_emb>", "\nThink, and end in <gen_emb>.\n", "<gen_emb>", reasoned_marker=None)
    model = thinking(
        "qwen3_vl", controls=controls, spaces=2, max_reasoning_rounds=1, reasoning="never", gate_init_bias=0.0
    )
    gates = [row["gate_prob"] for row in model.explain(task().queries, reasoning="never")]
    model[0].model.config.gate_threshold = float(np.median(gates))  # some think
    return model


def task():
    return RetrievalTask(
        name="capitals",
        metric="hit@1",
        groups={},
        query_ids=[f"q{number}" for number in range(len(CITIES))],
        queries=[{"text": f"Where is {city}, number {number}?"} for number, city in enumerate(CITIES)],
        candidate_ids=CITIES,
        candidates=[{"text": city} for city in CITIES],
        relevance=[{city: 1.0} for city in CITIES],
    )


def test_each_query_is_compared_with_candidates_of_its_space(model, tmp_path):
    results = run_evaluation(model, [task()], Settings(), output=tmp_path / "run", progress=False)
    assert results["config"]["document_reasoning"] == "same"
    documents = {mode: model.encode(task().candidates, reasoning=mode) for mode in ("never", "always")}
    queries = {mode: model.encode(task().queries, reasoning=mode) for mode in ("never", "always")}
    thinks = np.array([row["reasoned"] for row in model.explain(task().queries, reasoning="auto")])
    assert 0 < thinks.sum() < len(thinks)
    expected = {mode: score_queries(task(), queries[mode], documents[mode]) for mode in documents}
    assert not np.allclose(expected["never"].margin, expected["always"].margin)
    mixed = np.where(thinks, expected["always"].margin, expected["never"].margin)
    margins = {"never": expected["never"].margin, "always": expected["always"].margin, "auto": mixed}
    for mode, margin in margins.items():
        rows = read_query_rows(rows_path(tmp_path / "run", "capitals", mode))
        np.testing.assert_allclose(rows["margin"], margin, atol=1e-5)
        if mode != "auto":
            assert rows["rank"].tolist() == expected[mode].rank.tolist()
    found = results["tasks"]["capitals"]["modes"]
    assert [found[mode]["document_invocation_ratio"] for mode in margins] == [0, 1, 1]
    assert found["never"]["mean_document_tokens"] == 0 < found["always"]["mean_document_tokens"]
    alone = run_evaluation(model, [task()], Settings(("never",), document_reasoning="never"), progress=False)
    assert alone["tasks"]["capitals"]["modes"]["never"]["score"] == found["never"]["score"]


@pytest.mark.parametrize(
    ("mode", "document"), [("always", "never"), ("never", "always"), ("auto", "never"), ("auto", "auto")]
)
def test_two_spaces_are_not_compared(mode, document, model, tmp_path):
    settings = Settings((mode,), document_reasoning=document)
    with pytest.raises(ValueError, match=f"{REFUSED.format(document)}.*or documents with 'same'"):
        run_evaluation(model, [task()], settings, output=tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "results.json").exists()
    with pytest.raises(ValueError, match=REFUSED.format(document)):
        MTEBModel(model, reasoning=mode, document_reasoning=document).encode(None, prompt_type="query")


def test_as_their_query_is_a_mode_of_one_space_too(thinking):
    one = thinking()
    settings = Settings(("always",), document_reasoning=("same", "always", "never"))
    found = run_evaluation(one, [task()], settings, progress=False)["tasks"]["capitals"]["modes"]
    assert list(found) == ["always", "always+always", "always+never"]
    assert found["always"]["mrr"] == found["always+always"]["mrr"]
    assert found["always"]["mean_document_tokens"] > 0 == found["always+never"]["mean_document_tokens"]


def test_a_folder_of_another_space_is_refused(model, thinking, tmp_path):
    for mode, other in (("never", "always"), ("always", "never")):
        model.encode_stream(CITIES, tmp_path / mode, reasoning=mode)
        assert load_shards(tmp_path / mode, queries=mode)[0] == list(range(len(CITIES)))
        for queries in (other, "auto"):
            with pytest.raises(ValueError, match=f"reasoning='{queries}' {REFUSED.format(mode)}"):
                load_shards(tmp_path / mode, queries=queries)
            with pytest.raises(ValueError, match=REFUSED.format(mode)):
                next(read_shards(tmp_path / mode, queries=queries))
        assert len(load_shards(tmp_path / mode)[0]) == len(CITIES), "nothing is known of the queries"
    thinking().encode_stream(CITIES, tmp_path / "one", reasoning="never")
    assert len(load_shards(tmp_path / "one", queries="auto")[0]) == len(CITIES)
    with pytest.raises(ValueError, match="reasoning='often' is not known; allowed"):
        load_shards(tmp_path / "one", queries="often")


def test_the_shortcut_test_compares_with_candidates_that_think(model):
    found = run_diagnosis(model, [task()], ShortcutSettings(batch_size=8), progress=False)["summary"]["all"]
    always = run_evaluation(model, [task()], Settings(("always",)), progress=False)
    assert found["score"]["mean"] == always["tasks"]["capitals"]["modes"]["always"]["score"]
    assert found["interventions"]["drop"] is None and found["interventions"]["empty"] is not None


def test_the_evaluator_of_a_training_does_the_same(model):
    from datasets import Dataset

    sides = zip(task().queries, task().candidates, strict=True)
    pairs = [{"query": query, "target": target} for query, target in sides]
    measured = RetrievalEvaluator(Dataset.from_list(pairs), ["always"])(model)
    alone = run_evaluation(model, [task()], Settings(("always",)), progress=False)
    assert measured["always_hit@1"] == alone["tasks"]["capitals"]["modes"]["always"]["hit@1"]
