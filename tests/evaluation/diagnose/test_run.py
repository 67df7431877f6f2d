"""The shortcut test on models that are known to read their rationales, or not to."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mmemb_r1.evaluation.diagnose.run import (
    ShortcutSettings,
    check_forced,
    donors_of,
    drawn_queries,
    own_rationales,
    run_diagnosis,
)
from mmemb_r1.evaluation.diagnose.verdict import read_outcomes, shortcut_table, verdict_line
from mmemb_r1.evaluation.run_folder import rows_path
from mmemb_r1.evaluation.tasks import RetrievalTask
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError

COLORS = ("red", "green", "blue", "white", "black", "gray", "pink", "brown", "cyan", "lime", "navy", "teal")
QUERIES = [
    {"text": f"what is {color} number {number}?"}
    if number % 2
    else {"text": f"is it {number}?", "image": [Image.new("RGB", (64, 64), color)]}
    for number in range(3)
    for color in COLORS
]
SETTINGS = ShortcutSettings(batch_size=8)


def task_of(queries=QUERIES, name="colors", **changes):
    ids = [f"q{row}" for row in range(len(queries))]
    answers = [f"answer {row}" for row in range(len(queries))]
    given = {
        "name": name,
        "metric": "hit@1",
        "groups": {"complexity": "simple"},
        "query_ids": ids,
        "queries": queries,
        "candidate_ids": answers,
        "candidates": [{"text": answer} for answer in answers],
        "relevance": [{answer: 1.0} for answer in answers],
    }
    return RetrievalTask(**{**given, **changes})


def answering(model):
    """The same model, whose candidates lie where the queries do that they answer, after their own rationales."""
    explain = model.explain
    vectors = np.stack([row["embedding"] for row in explain(QUERIES, reasoning="always")])

    def answers(inputs, **options):
        rows = explain(inputs, **options)
        for row, value in zip(rows, inputs, strict=True):
            if value.get("text", "").startswith("answer "):
                row["embedding"] = vectors[int(value["text"].split()[1])]
        return rows

    model.explain = answers
    return model


@pytest.fixture(scope="module")
def reader(thinking):
    return answering(thinking(max_reasoning_tokens=6))


@pytest.fixture(scope="module")
def deaf(thinking):
    """It thinks as much, and its vectors are those from before."""
    model = thinking(max_reasoning_tokens=6)
    network = model[0].model
    forward = network.forward

    def direct(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.embeddings = output.embeddings[:, :1].expand_as(output.embeddings)
        return output

    network.forward = direct
    network.embedding_head.extend = lambda pooled, hidden: pooled
    return answering(model)


@pytest.fixture(scope="module")
def of_reader(reader, tmp_path_factory):
    """A test's folder and results."""
    folder = tmp_path_factory.mktemp("shortcut") / "reader"
    return folder, run_diagnosis(reader, [task_of()], SETTINGS, output=folder, config={"model": "m"}, progress=False)


def test_a_model_that_reads_its_rationales(of_reader):
    results = of_reader[1]
    found = results["summary"]["all"]
    assert found["score"]["mean"] == 1
    assert found["interventions"]["swap"]["cost"]["mean"] > 0.5
    assert found["interventions"]["swap"]["cosine"]["mean"] < 0.8
    assert found["interventions"]["drop"]["cosine"]["mean"] < 0.8
    assert found["verdict"] == "reads"
    assert verdict_line(results, "m").startswith("m: reads its rationales: swapping rationales costs")


def test_a_model_that_ignores_its_rationales(deaf):
    results = run_diagnosis(deaf, [task_of()], SETTINGS, progress=False)
    found = results["summary"]["all"]
    assert found["score"]["mean"] == 1
    for name in ("drop", "empty", "swap", "shuffle"):
        assert found["interventions"][name]["cost"]["mean"] == 0
        assert found["interventions"][name]["cosine"]["mean"] == pytest.approx(1, abs=1e-5)
    assert found["interventions"]["swap"]["n"] > 30
    assert found["cosine_between_queries"] < 0.8
    assert found["verdict"] == "ignores"
    assert verdict_line(results, "m").startswith("m: ignores its rationales: swapping rationales costs 0.0 points")


def test_vectors_that_move_alone_are_no_proof(thinking):
    """Answers of which the model knows nothing: it finds none, with whatever rationale."""
    found = run_diagnosis(thinking(max_reasoning_tokens=6), [task_of()], SETTINGS, progress=False)["summary"]["all"]
    assert found["interventions"]["swap"]["cosine"]["mean"] < 0.8
    assert found["verdict"] == "undecided"


@pytest.mark.parametrize("options", [{}, {"max_reasoning_rounds": 2}, {"pooling": "mean"}, {"normalize": False}])
def test_the_own_rationale_forced_gives_the_vector_of_encode(thinking, options, monkeypatch):
    """Below the tolerance by far, so that it can't be met by chance; for thoughts of several rounds, too."""
    monkeypatch.setattr("mmemb_r1.evaluation.diagnose.run.TOLERANCE", {"float32": 5e-5})
    model = thinking(max_reasoning_tokens=5, **options)
    results = run_diagnosis(model, [task_of(QUERIES[:9])], SETTINGS, progress=False)
    assert results["tasks"]["colors"]["mean_reasoning_tokens"] > 1


def test_instructions_of_task_and_model_reach_forced_rationales(thinking):
    model = thinking()
    asked = task_of(QUERIES[:6], query_prompt="Name the colour.")
    with_prompt = run_diagnosis(model, [asked], SETTINGS, progress=False)["tasks"]["colors"]
    plain = run_diagnosis(model, [task_of(QUERIES[:6])], SETTINGS, progress=False)["tasks"]["colors"]
    assert with_prompt != plain
    model.prompts["query"] = "Name the colour."
    assert run_diagnosis(model, [task_of(QUERIES[:6])], SETTINGS, progress=False)["tasks"]["colors"] == with_prompt


def test_a_rationale_that_can_not_be_forced_is_an_error(thinking):
    model = thinking()
    forward = model[0].model.forward

    def other(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.embeddings = output.embeddings.roll(1, dims=-1)
        return output

    model[0].model.forward = other
    with pytest.raises(ValueError, match=r"colors: after its own rationale the query 'q\d' has another vector when"):
        run_diagnosis(model, [task_of(QUERIES[:4])], SETTINGS, progress=False)


def test_the_check_names_the_query():
    vectors = np.eye(3, dtype=np.float32)
    moved = vectors + np.array([[0, 0, 0], [0, 0, 2e-4], [0, 0, 0]], dtype=np.float32)
    check_forced(task_of(QUERIES[:3]), vectors, moved, 3e-4)
    with pytest.raises(ValueError, match="the query 'q1' has another vector .* 0.0002 away"):
        check_forced(task_of(QUERIES[:3]), vectors, moved, 1e-4)
    with pytest.raises(ValueError, match="the query 'q1'"):
        check_forced(task_of(QUERIES[:3]), vectors, np.where(moved == np.float32(2e-4), np.nan, moved), 1e-4)


def test_rows_say_what_was_done_to_every_query(of_reader, reader):
    folder, results = of_reader
    rows = read_outcomes(rows_path(folder, "colors", "shortcut"))
    thoughts = own_rationales(reader, QUERIES)
    assert rows["query_id"].tolist() == [f"q{row}" for row in range(36)]
    assert rows["cluster"][0] == "colors/q0"
    assert rows["rationale"].tolist() == ["\n".join(thought.texts) for thought in thoughts]
    said = dict(zip(rows["query_id"], rows["rationale"], strict=True))
    for query, donor in zip(rows["query_id"], rows["donor"], strict=True):
        assert donor is None or said[donor] != said[query]
    swapped = ~np.isnan(rows["score_swap"])
    assert (swapped == np.array([donor is not None for donor in rows["donor"]])).all()
    found = results["tasks"]["colors"]["interventions"]["swap"]
    assert found["n"] == swapped.sum()
    assert found["cost"]["mean"] == pytest.approx((rows["score"] - rows["score_swap"])[swapped].mean())
    assert json.loads((folder / "shortcut.json").read_text()) == results


def test_swapped_vectors_are_those_after_the_donors_tokens(of_reader, reader):
    from mmemb_r1.rationale_tokens import forced_embeddings

    rows = read_outcomes(rows_path(of_reader[0], "colors", "shortcut"))
    thoughts = own_rationales(reader, QUERIES)
    row = int(np.flatnonzero([donor is not None for donor in rows["donor"]])[0])
    donor = rows["query_id"].tolist().index(rows["donor"][row])
    suffixes = [thoughts[row].ids, thoughts[donor].ids]
    own, swapped = forced_embeddings(reader, [QUERIES[row]] * 2, suffixes).last
    assert rows["cosine_swap"][row] == pytest.approx(float(own @ swapped), abs=1e-4)


def test_goes_on_where_it_was_killed(reader, tmp_path, monkeypatch):
    tasks = [task_of(QUERIES[:6], name="first"), task_of(QUERIES[:6], name="second")]
    whole = run_diagnosis(reader, tasks, SETTINGS, progress=False)
    with pytest.raises(KeyboardInterrupt):
        run_diagnosis(reader, killed_after(tasks[:1]), SETTINGS, output=tmp_path, progress=False)
    assert not (tmp_path / "shortcut.json").exists()
    asked = []
    encode = reader.encode
    monkeypatch.setattr(
        reader, "encode", lambda inputs, **options: asked.append(len(inputs)) or encode(inputs, **options)
    )
    resumed = run_diagnosis(reader, tasks, SETTINGS, output=tmp_path, progress=False)
    assert resumed == whole
    assert asked == [6, 6]  # candidates and queries of the second task
    asked.clear()
    assert run_diagnosis(reader, tasks, SETTINGS, output=tmp_path, progress=False) == whole
    assert not asked


def killed_after(tasks):
    yield from tasks
    raise KeyboardInterrupt


def test_another_test_in_the_folder_is_refused(reader, tmp_path):
    run_diagnosis(reader, [task_of(QUERIES[:4])], SETTINGS, output=tmp_path, progress=False)
    with pytest.raises(ValueError, match="seed was 0, is now 1"):
        run_diagnosis(
            reader, [task_of(QUERIES[:4])], ShortcutSettings(seed=1, batch_size=8), output=tmp_path, progress=False
        )
    with pytest.raises(ValueError, match="digest was"):
        run_diagnosis(reader, [task_of(QUERIES[:5])], SETTINGS, output=tmp_path, progress=False)
    path = rows_path(tmp_path, "colors", "shortcut")
    pq.write_table(pq.read_table(path).drop_columns(["score_swap"]), path)
    with pytest.raises(ValueError, match="has no column 'score_swap'.*remove it and run the test again"):
        run_diagnosis(reader, [task_of(QUERIES[:4])], SETTINGS, output=tmp_path, progress=False)
    path.write_text("no table")
    with pytest.raises(ValueError, match="can't be read"):
        run_diagnosis(reader, [task_of(QUERIES[:4])], SETTINGS, output=tmp_path, progress=False)


def test_a_donor_thinks_in_other_words_and_has_another_answer(reader):
    thoughts = own_rationales(reader, QUERIES)
    right = [{f"answer {row % 3}": 1.0} for row in range(36)]
    task = task_of(relevance=right)
    for seed in range(5):
        donors = donors_of(task, thoughts, seed)
        assert (donors >= 0).all()
        for row, donor in enumerate(donors):
            assert thoughts[row].texts != thoughts[donor].texts and right[row] != right[donor]
    assert (donors_of(task_of(relevance=[{"answer 0": 1.0}] * 36), thoughts, 0) == -1).all()
    assert (donors_of(task, [thoughts[0]] * 36, 0) == -1).all()


def test_thoughts_that_are_all_the_same_are_no_verdict(thinking):
    queries = [{"text": "the same question"}] * 25
    found = run_diagnosis(thinking(), [task_of(queries)], SETTINGS, progress=False)["summary"]["all"]
    assert found["interventions"]["swap"] is None and found["cosine_between_queries"] is None
    assert found["interventions"]["drop"]["n"] == 25
    assert found["verdict"] == "undecided" and "all the same" in found["reason"]


def test_some_of_the_queries():
    pools = [[f"answer {row}", "answer 0"] if row else ["answer 0"] for row in range(36)]
    task = task_of(pools=pools, clusters=[f"c{row}" for row in range(36)])
    some = drawn_queries(task, 10, seed=0)
    rows = [int(query[1:]) for query in some.query_ids]
    assert len(rows) == 10 and rows == sorted(set(rows))
    assert [some.queries, some.clusters, some.pools] == [
        [QUERIES[row] for row in rows], [f"c{row}" for row in rows], [pools[row] for row in rows]
    ]  # fmt: skip
    assert set(some.candidate_ids) == {"answer 0", *(f"answer {row}" for row in rows)}
    assert drawn_queries(task, 10, seed=1).query_ids != some.query_ids
    assert drawn_queries(task, 36, seed=0) is task is drawn_queries(task, None, seed=0)


def test_candidates_of_several_tasks_are_embedded_once(reader, monkeypatch):
    shared = task_of(QUERIES[:4])
    tasks = [shared, task_of(QUERIES[:4], name="other", candidates=shared.candidates)]
    asked = []
    explain = reader.explain
    monkeypatch.setattr(
        reader, "explain", lambda inputs, **options: asked.append(inputs) or explain(inputs, **options)
    )
    run_diagnosis(reader, tasks, SETTINGS, progress=False)
    assert len(asked) == 1


def test_what_can_not_be_tested(thinking):
    with pytest.raises(ValueError, match="needs an mmemb-r1 checkpoint, which thinks; this is a Linear"):
        run_diagnosis(torch.nn.Linear(2, 2), [task_of()])
    with pytest.raises(ValueError, match="no task was given"):
        run_diagnosis(thinking(), [], progress=False)
    with pytest.raises(ValueError, match="two of the tasks are called 'colors'"):
        run_diagnosis(thinking(), [task_of(QUERIES[:2])] * 2, SETTINGS, progress=False)
    with pytest.raises(ValueError, match="max_queries is 0; at least 1 is needed"):
        ShortcutSettings(max_queries=0)


def test_table(of_reader):
    from io import StringIO

    from rich.console import Console

    shown = StringIO()
    Console(width=160, file=shown).print(shortcut_table(of_reader[1]))
    lines = shown.getvalue().splitlines()
    (task,) = [line.split() for line in lines if line.split()[:1] == ["colors"]]
    assert task[1:3] == ["36", "1.000"] and task[-1] == "reads"
    assert any(line.strip().startswith("mean of all") for line in lines)


def test_a_query_that_cannot_be_embedded_is_named_by_its_number_among_all(reader):
    queries = [*(f"a dog, number {number}" for number in range(20)), {"image": "no-such-file.png"}]
    with pytest.raises(InputError) as raised:
        own_rationales(reader, queries, batch_size=1)  # the last one is in the second part
    assert raised.value.index == 20
