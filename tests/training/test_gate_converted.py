"""`train gate` on models that were converted: nothing but the gate changes, and it learns which inputs gain."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main
from mmemb_r1.modeling.tokens_mmemb_r1 import Controls
from mmemb_r1.rationale_tokens import forced_embeddings, rationale_suffix
from mmemb_r1.thinker import Thought
from mmemb_r1.training import GateConfig, train_gate
from mmemb_r1.training.gate_decisions import competitions_of, measure_decisions
from mmemb_r1.training.gate_phase import gate_report

pytestmark = pytest.mark.usefixtures("one_thread")
LAYOUTS = {
    "read before the marker": {"controls": Controls(closing="\nassistant\n"), "embed_position": "before"},
    "a token that is there": {"controls": Controls.at("<|endoftext|>")},
    "two spaces": {
        "controls": Controls("<disc_emb>", "\nThink, and end in <gen_emb>.\n", "<gen_emb>", reasoned_marker=None),
        "spaces": 2,
    },
}
KINDS = ("How many are there in picture {}?", "Say the name of number {}.")
QUERIES = [{"text": text.format(number)} for number in range(40) for text in KINDS]
GAINS = np.array([query["text"].startswith("How many") for query in QUERIES])
CANDIDATES = [{"text": f"answer {number}, {'abcdefgh'[number % 8] * (number % 5)}"} for number in range(30)]
CONFIG = GateConfig(holdout=0.4, batch_size=16, weight_decay=1e-3)


def converted(thinking, layout):
    return thinking("qwen3_vl", max_reasoning_rounds=1, **LAYOUTS[layout])


def world(model, make_pairs, reasoned, documents=None):
    """
    Pairs where thinking pays for one kind of question and harms the other: the target of the one is the candidate that
    is nearest after the rationale, that of the other the one that is nearest before it.
    """
    direct = model.encode_document(CANDIDATES)
    after = reasoned @ (direct if documents is None else documents).T
    scores = np.where(GAINS[:, None], after, model.encode(QUERIES, reasoning="never") @ direct.T)
    targets = [CANDIDATES[place] for place in scores.argmax(axis=1)]
    return make_pairs([{"query": one, "target": other} for one, other in zip(QUERIES, targets, strict=True)])


def rationales_of(pairs, missing=()):
    """A rationale of each query but some, one that failed, and one of a target, as `mmemb-r1 rationales` has them."""
    rows = [
        {"pair_id": pair_id, "side": "query", "text": None if row in missing else f"It is {row * row % 17} there."}
        for row, pair_id in enumerate(pairs["pair_id"])
    ]
    return Dataset.from_list([*rows, {"pair_id": pairs["pair_id"][0], "side": "target", "text": "Another."}])


def given_vectors(model):
    suffixes = [
        rationale_suffix(model.processor, model[0].model.config, f"It is {row * row % 17} there.")
        for row in range(len(QUERIES))
    ]
    return forced_embeddings(model, QUERIES, suffixes).last.numpy()


def check_separation(facts):
    measured = facts["measured"]
    assert facts["held out"] == measured["queries"] >= 15
    assert 0.3 < measured["pays"] < 0.7
    assert measured["auc"] >= 0.9
    assert measured["auto"] > max(measured["never"], measured["always"]) + 0.2


@pytest.mark.parametrize("layout", ["read before the marker", "a token that is there"])
@pytest.mark.parametrize("given", [True, False], ids=["given rationales", "its own"])
def test_nothing_but_the_gate_changes_and_it_tells_which_inputs_gain(thinking, make_pairs, layout, given):
    model = converted(thinking, layout)
    reasoned = given_vectors(model) if given else model.encode(QUERIES, reasoning="always")
    pairs = world(model, make_pairs, reasoned)
    inputs = [*QUERIES, *CANDIDATES]
    direct = model.encode(inputs, reasoning="never")
    before = {name: values.clone() for name, values in model[0].model.state_dict().items()}
    facts = train_gate(model, pairs, CONFIG, rationales=rationales_of(pairs) if given else None)
    for name, values in model[0].model.state_dict().items():
        assert torch.equal(values, before[name]) != name.startswith("gate."), name
    assert model.encode(inputs, reasoning="never").tobytes() == direct.tobytes()  # to the bit
    assert facts["rationales"] == ("given" if given else "the model's own")
    check_separation(facts)


def test_given_rationales_are_measured_as_they_are_embedded(thinking, make_pairs):
    """Probabilities in closed form from the vectors after given rationales; queries without one are left out."""
    model = converted(thinking, "read before the marker")
    pairs = world(model, make_pairs, given_vectors(model))
    missing = (1, 4, 40)
    rows = np.array([row for row in range(len(pairs)) if row not in missing])
    facts = train_gate(model, pairs, GateConfig(holdout=0), rationales=rationales_of(pairs, missing))
    assert facts["without a rationale"] == 3 and facts["fitted"] == len(pairs) - 3
    (competition,) = competitions_of(pairs)
    documents = model.encode_document(competition.candidates)
    cosines = given_vectors(model)[rows] @ documents.T
    weights = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / 0.02)
    right = [competition.right[row][0] for row in rows]
    after = (weights / weights.sum(axis=1, keepdims=True))[np.arange(len(rows)), right]
    cosines = model.encode([QUERIES[row] for row in rows], reasoning="never") @ documents.T
    weights = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / 0.02)
    gains = after - (weights / weights.sum(axis=1, keepdims=True))[np.arange(len(rows)), right]
    assert facts["pays"] == pytest.approx((gains > 0.02).mean())


def test_reasoned_queries_of_two_spaces_are_compared_with_reasoned_candidates(thinking, make_pairs):
    model = converted(thinking, "two spaces")
    documents = model.encode(CANDIDATES, reasoning="always")
    pairs = world(model, make_pairs, model.encode(QUERIES, reasoning="always"), documents)
    (competition,) = competitions_of(pairs)
    decisions = measure_decisions(model, QUERIES, [competition])
    for depth, mode in enumerate(("never", "always")):
        scores = model.encode(QUERIES, reasoning=mode) @ model.encode(competition.candidates, reasoning=mode).T
        wanted = np.exp((scores - scores.max(axis=1, keepdims=True)) / 0.02)
        wanted /= wanted.sum(axis=1, keepdims=True)
        right = [places[0] for places in competition.right]
        found = decisions.probabilities[:, depth].numpy()
        np.testing.assert_allclose(found, wanted[np.arange(len(QUERIES)), right], atol=1e-4)
    check_separation(train_gate(model, pairs, CONFIG))


def test_the_command_changes_no_other_byte_and_is_done_once(thinking, make_pairs, tmp_path, capsys):
    start = converted(thinking, "read before the marker")
    start.save_pretrained(str(tmp_path / "start"))
    pairs = world(start, make_pairs, given_vectors(start))
    pairs.to_parquet(str(tmp_path / "pairs.parquet"))
    (tmp_path / "drawn" / "shards").mkdir(parents=True)
    rationales_of(pairs, missing=(3,)).to_parquet(str(tmp_path / "drawn" / "shards" / "worker-00000.parquet"))
    files = {"--model": "start", "--pairs": "pairs.parquet", "--rationales": "drawn", "--output": "out"}
    options = [part for name, file in files.items() for part in (name, str(tmp_path / file))]
    command = ["train", "gate", *options, "--device", "cpu", "--holdout", "0.4", "--weight_decay", "0.001"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "of 80 pairs with given rationales; on 32 held-out queries" in said
    before, after = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "start", tmp_path / "out/model")
    )
    assert before.keys() == after.keys()
    changed = {name for name, values in before.items() if values.numpy().tobytes() != after[name].numpy().tobytes()}
    assert changed == {name for name in before if name.startswith("gate.")}
    again = MMEmbR1(str(tmp_path / "out/model"), device="cpu")
    assert again.encode(QUERIES, reasoning="never").tobytes() == start.encode(QUERIES, reasoning="never").tobytes()
    facts = json.loads((tmp_path / "out/gate.json").read_text())
    assert facts["measured"]["auc"] >= 0.9 and facts["without a rationale"] == 1
    embedded = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/embedded").glob("*.npz")}
    (tmp_path / "out/gate.json").unlink()
    assert main(command) == 0  # a run that was killed before it ended: nothing is embedded again
    assert embedded == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/embedded").glob("*.npz")}
    assert json.loads((tmp_path / "out/gate.json").read_text()) == facts
    record = json.loads((tmp_path / "out/model/training.json").read_text())
    assert record["rationales"] == "given" and "rationales table" in record


def test_refused(thinking, make_pairs):
    model = converted(thinking, "read before the marker")
    pairs = make_pairs([{"query": {"text": f"q {n}"}, "target": {"text": f"t {n}"}} for n in range(4)])
    rationales = rationales_of(pairs)
    with pytest.raises(
        ValueError, match="max_reasoning_rounds is 2, but a given rationale, or a thinker's, is one round"
    ):
        train_gate(model, pairs, GateConfig(max_reasoning_rounds=2), rationales=rationales)
    others = rationales.select([4]).add_column("other", [1])  # of a target alone
    with pytest.raises(ValueError, match="no query of the pairs table has a rationale"):
        train_gate(model, pairs, rationales=others)
    long = Dataset.from_dict({"pair_id": ["pair 0"], "side": ["query"], "text": ["word " * 40000]})
    with pytest.raises(ValueError, match=r"a query and its rationale have [\d,]+ tokens; the model reads"):
        train_gate(model, pairs, GateConfig(holdout=0), rationales=long)


class Known:
    """A thinker that knows a rationale of each query, and remembers what it was asked about."""

    definition: ClassVar[dict[str, str]] = {"kind": "known"}

    def __init__(self):
        self.asked = []

    def think(self, inputs, max_tokens):
        for number, value in enumerate(inputs):
            self.asked.append(value["text"])
            row = [query["text"] for query in QUERIES].index(value["text"])
            yield number, Thought(f"It is {row * row % 17} there.")


@pytest.mark.parametrize("form", ["tokens", "text"])
def test_a_gate_learns_where_a_thinker_pays(thinking, make_pairs, form):
    """Of an embedder that never learnt to think: measured is what `encode` gives with this thinker."""
    model = converted(thinking, "read before the marker")
    model.set_thinker(Known(), form)
    reasoned = model.encode(QUERIES, reasoning="always")
    pairs = world(model, make_pairs, reasoned)
    facts = train_gate(model, pairs, CONFIG)
    assert facts["rationales"] == "a thinker's" and "with a thinker's rationales" in gate_report(facts)[0]
    check_separation(facts)
    thinks = [row["reasoned"] for row in model.explain(QUERIES, reasoning="auto")]
    assert np.mean(np.array(thinks) == GAINS) > 0.85
    with pytest.raises(ValueError, match="leave one of the two out"):
        train_gate(model, pairs, CONFIG, rationales=rationales_of(pairs))
    with pytest.raises(ValueError, match="max_reasoning_rounds is 2, but a given rationale, or a thinker's, is one"):
        train_gate(model, pairs, GateConfig(max_reasoning_rounds=2))


def test_the_command_asks_a_thinker_once(thinking, make_pairs, tmp_path, capsys, monkeypatch):
    start = converted(thinking, "read before the marker")
    start.save_pretrained(str(tmp_path / "start"))
    start.thinker = thinker = Known()
    world(start, make_pairs, start.encode(QUERIES, reasoning="always")).to_parquet(str(tmp_path / "pairs.parquet"))
    thinker.asked.clear()
    files = {"--model": "start", "--pairs": "pairs.parquet", "--output": "out"}
    options = [part for name, file in files.items() for part in (name, str(tmp_path / file))]
    command = ["train", "gate", *options, "--device", "cpu", "--holdout", "0.4", "--thinker", "my_known:known"]
    module = ModuleType("my_known")
    module.known = thinker
    monkeypatch.setitem(sys.modules, "my_known", module)
    assert main(command) == 0
    assert "of 80 pairs with a thinker's rationales" in capsys.readouterr().out
    assert sorted(thinker.asked) == sorted(query["text"] for query in QUERIES)
    for part in (tmp_path / "out" / "embedded").glob("queries-*.npz"):
        part.unlink()  # as after a kill: what was thought is in the cache
    (tmp_path / "out" / "gate.json").unlink()
    thinker.asked.clear()
    assert main(command) == 0
    assert thinker.asked == []
    monkeypatch.setattr(Known, "definition", {"kind": "another"})
    assert main(command) == 2
    assert "thinker.definition.kind" in capsys.readouterr().err
