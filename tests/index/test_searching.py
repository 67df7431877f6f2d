"""A search finds what comparing all vectors finds; it refuses vectors that can't be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow
import pytest
from datasets import Dataset

from mmemb_r1 import MMEmbR1
from mmemb_r1.index import Index, build_index
from mmemb_r1.index.store import create_rows, index_of, index_vectors, nearest_rows, write_rows
from mmemb_r1.modeling.tokens_mmemb_r1 import Controls
from mmemb_r1.tiny import build_tiny_vlm

WORDS = ["harbour", "mountain", "river", "market", "winter", "music", "garden", "bridge", "forest", "island"]
TEXTS = [f"{first} {second}" for first in WORDS for second in WORDS[:4]]
QUERIES = ["a cold season", "where ships lie", {"text": "trees"}]


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    table = Dataset.from_dict({"id": TEXTS, "text": TEXTS, "number": list(range(len(TEXTS)))})
    folder = tmp_path_factory.mktemp("index")
    build_index(table, model, folder / "direct")
    build_index(table, model, folder / "reasoned", reasoning="always")
    return folder


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("side", ["direct", "reasoned"])
@pytest.mark.parametrize("reasoning", ["never", "always", "auto"])
def test_hits_are_those_of_all_cosines_in_their_order(model, directory, side, reasoning):
    documents = model.encode_document(TEXTS, reasoning="never" if side == "direct" else "always")
    queries = model.encode_query(QUERIES, reasoning=reasoning)
    scores = unit(queries) @ unit(documents).T  # (Q, N)
    results = Index.open(directory / side, model).search(QUERIES, 7, reasoning=reasoning)
    facts = model.explain(QUERIES, reasoning=reasoning, task="query")
    for result, row, fact in zip(results, scores, facts, strict=True):
        assert [hit.id for hit in result.hits] == [TEXTS[place] for place in np.argsort(-row)[:7]]
        assert [hit.score for hit in result.hits] == pytest.approx(sorted(row, reverse=True)[:7], abs=1e-5)
        assert (result.reasoned, result.rationale) == (fact["reasoned"], fact["rationale"])
        assert result.num_reasoning_tokens == fact["num_reasoning_tokens"]
        assert result.gate_prob == pytest.approx(fact["gate_prob"], abs=1e-5) and result.seconds > 0
    assert {result.reasoned for result in results} >= ({reasoning == "always"} if reasoning != "auto" else set())


def test_one_query_one_result_none_none_and_the_model_is_loaded(model, directory, tmp_path):
    index = Index.open(directory / "direct", model)
    assert len(index) == len(TEXTS)
    single = index.search(QUERIES[0], 3, reasoning="never")
    assert single.hits == index.search([QUERIES[0]], 3, reasoning="never")[0].hits
    assert index.search([], 3) == []
    assert len(index.search("x", 1000).hits) == len(TEXTS)
    model.save_pretrained(str(tmp_path / "model"))
    build_index(Dataset.from_dict({"text": TEXTS[:3]}), str(tmp_path / "model"), tmp_path / "index")
    assert len(Index.open(tmp_path / "index").search("x").hits) == 3
    with pytest.raises(ValueError, match="was built with a model that was in memory alone; pass it"):
        Index.open(directory / "direct").search("x")


def test_filters_are_conditions_on_what_is_kept(model, directory):
    index = Index.open(directory / "direct", model)
    hits = index.search("x", 50, filter="metadata.number < 8 AND text LIKE '%river'").hits
    assert sorted(hit.id for hit in hits) == ["harbour river", "mountain river"]
    assert all(hit.kind == "text" and hit.metadata["number"] < 8 and hit.thumbnail is None for hit in hits)
    assert index.search("x", filter="kind = 'image'").hits == []
    for broken in ("colour = 'red'", "kind = ", "metadata.nope = 1"):
        with pytest.raises(
            ValueError, match="can't be used .* It is a condition of SQL over id, .*, text, metadata.number, for"
        ):
            index.search("x", filter=broken)


def test_variety_and_words_change_the_order(model, directory):
    index = Index.open(directory / "direct", model)
    plain = index.search("forest", 5, reasoning="never").hits
    varied = index.search("forest", 5, reasoning="never", variety=0.9).hits
    assert varied[0] == plain[0] and {hit.id for hit in varied} != {hit.id for hit in plain}
    farthest = index.search("forest", 40, reasoning="never").hits[-1].text
    worst = farthest.split()[0]
    places = [
        [hit.id for hit in index.search(worst, 40, reasoning="never", hybrid=hybrid).hits].index(farthest)
        for hybrid in (False, True)
    ]
    assert places[1] < places[0] or places[0] == 0
    # AND, OR, quotes and brackets of a query are words, not a language
    assert index.search('forest AND ("', 2, reasoning="never", hybrid=True).hits


def test_words_are_those_of_the_rationale_where_there_is_one(model, directory, monkeypatch):
    index = Index.open(directory / "direct", model)
    explain = MMEmbR1.explain

    def thinking_of_bridges(self, values, **options):
        return [{**one, "rationale": "a bridge"} for one in explain(self, values, **options)]

    monkeypatch.setattr(MMEmbR1, "explain", thinking_of_bridges)
    plain = index.search("x", 12, reasoning="always").hits
    fused = index.search("x", 12, reasoning="always", hybrid=True).hits
    bridges = [sum("bridge" in hit.text for hit in hits) for hits in (plain, fused)]
    assert bridges[1] == 4 > bridges[0]


def test_another_model_options_and_nonsense_are_refused(model, directory, tmp_path):
    other = MMEmbR1.from_vlm(*build_tiny_vlm("qwen3_vl"))
    with pytest.raises(ValueError, match="was built with another model .* vectors of two models can't be compared"):
        Index.open(directory / "direct", other)
    index = Index.open(directory / "direct", model)
    with pytest.raises(ValueError, match="truncate_dim=4: the index was built with None; leave it out"):
        index.search("x", truncate_dim=4)
    with pytest.raises(ValueError, match="precision can't be chosen for a search"):
        index.search("x", precision="int8")
    for wrong in ({"k": 0}, {"k": 2.5}, {"k": True}, {"variety": 2}, {"reasoning": "maybe"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            index.search("x", **wrong)
    with pytest.raises(ValueError, match="the query's vector has the shape"):
        index.nearest(np.ones(3))
    build_index(Dataset.from_dict({"text": TEXTS}), model, tmp_path / "short", truncate_dim=8)
    short = Index.open(tmp_path / "short", model)
    assert short.settings["options"]["truncate_dim"] == 8
    documents, query = (unit(encode(texts, truncate_dim=8)) for encode, texts in (
        (model.encode_document, TEXTS), (model.encode_query, ["x"])
    ))  # fmt: skip
    assert short.search("x", 1, reasoning="auto").hits[0].score == pytest.approx((query @ documents.T).max(), abs=1e-5)


def test_queries_of_another_space_are_refused(tmp_path):
    controls = Controls("<disc_emb>", "\nThink, and end in <gen_emb>.\n", "<gen_emb>", reasoned_marker=None)
    fields: dict[str, Any] = {"spaces": 2, "reasoning": "never", "max_reasoning_tokens": 3}
    model = MMEmbR1.from_vlm(*build_tiny_vlm("qwen2_vl"), controls=controls, **fields)
    table = Dataset.from_dict({"text": TEXTS[:4]})
    with pytest.raises(ValueError, match="would mix vectors of two spaces"):
        build_index(table, model, tmp_path / "auto", reasoning="auto")
    build_index(table, model, tmp_path / "index")
    index = Index.open(tmp_path / "index", model)
    assert len(index.search("x").hits) == 4
    with pytest.raises(ValueError, match="queries embedded with reasoning='always' can't be compared with documents"):
        index.search("x", reasoning="always")
    with pytest.raises(ValueError, match="would mix vectors of two spaces"):
        index.search("x", reasoning="auto")


@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
def test_approximate_search_finds_most_and_scores_it_in_full_precision(tmp_path, precision):
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(40, 64)))
    vectors = unit(centres[rng.integers(40, size=3000)] + 0.05 * rng.normal(size=(3000, 64))).astype(np.float32)
    table = create_rows(tmp_path, 64, None)
    rest = {"kind": "text", "text": "", "words": "", "rationale": "", "gate_prob": 0.0, "reasoned": False}
    write_rows(table, [{**rest, "id": f"{row}", "vector": vector} for row, vector in enumerate(vectors)])
    index_vectors(table, precision)
    kind = index_of(table, "vector")
    assert kind == {"float32": "IvfFlat", "int8": "IvfSq", "binary": "IvfRq"}[precision]
    found = 0
    for query in unit(vectors[::100] + 0.05 * rng.normal(size=(30, 64))).astype(np.float32):
        scores = vectors @ query
        best = {f"{row}" for row in np.argsort(-scores)[:10]}
        assert set(nearest_rows(table, query, 10, None, exact=True)["id"].to_pylist()) == best
        rows = nearest_rows(table, query, 10, None, exact=False)
        found += len(best & set(rows["id"].to_pylist()))
        expected = [scores[int(row)] for row in rows["id"].to_pylist()]
        assert np.abs(1 - rows["_distance"].to_numpy() - expected).max() < 1e-4
    assert found / 300 > 0.9
    assert isinstance(table.schema, pyarrow.Schema)


def test_a_large_index_gets_one_for_approximate_search_and_keeps_it_up_to_date(model, tmp_path, monkeypatch):
    from mmemb_r1.index import building

    texts = [f"{first} {number}" for first in WORDS for number in range(30)]
    monkeypatch.setattr(building, "APPROXIMATE_FROM", 300)
    build_index(Dataset.from_dict({"text": texts[:299], "id": texts[:299]}), model, tmp_path)
    index = Index.open(tmp_path, model)
    assert index_of(index.table, "vector") is None
    build_index(Dataset.from_dict({"text": texts, "id": texts}), model, tmp_path)
    assert index_of(index.table, "vector") == "IvfSq"
    more = [*texts, "a lighthouse"]
    build_index(Dataset.from_dict({"text": more, "id": more}), model, tmp_path)
    vector = model.encode_document(["a lighthouse"])[0]
    assert index.nearest(vector, 1)[0].id == index.nearest(vector, 1, exact=True)[0].id == "a lighthouse"
    build_index(Dataset.from_dict({"text": more, "id": more}), model, tmp_path, precision="binary")
    assert index_of(index.table, "vector") == "IvfRq"
