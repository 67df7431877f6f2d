"""Measuring: lengths are those of the batches that are trained on, and nothing is measured twice."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.rationale_tokens import rationale_suffix
from mmemb_r1.training.settling.faults import SettleOptions
from mmemb_r1.training.settling.measure import ROWS_AT_ONCE, Columns, measure_table
from mmemb_r1.training.settling.reading import MeasuredInput, Reading, input_key
from mmemb_r1.training.settling.settle import PairsTable, settle
from mmemb_r1.training.settling.store import MeasuredStore

COLUMNS = Columns(("query", "target"), ("query_rationale",))


@pytest.fixture
def reading(tiny):
    return Reading.of(tiny[1], tiny[0].config)


@pytest.fixture
def counted(monkeypatch):
    """The inputs that were measured in this process."""
    seen, measure = [], Reading.measure_input
    monkeypatch.setattr(Reading, "measure_input", lambda self, value: (seen.append(value), measure(self, value))[1])
    return seen


def test_lengths_are_those_of_the_model(reading, tiny, table_with, tmp_path):
    model, processor = tiny
    table = table_with(number=6)
    lengths = measure_table(table, COLUMNS, reading, tmp_path / "kept")
    for side in ("query", "target"):
        values = [{key: part for key, part in value.items() if part} for value in table[side]]
        ids = render(processor, to_conversations(values), model.config.max_text_tokens)["attention_mask"]
        assert lengths.tokens[side].tolist() == ids.sum(dim=1).tolist()
    suffix = rationale_suffix(processor, model.config, "It is a color.")
    assert lengths.tokens["query_rationale"].tolist() == [len(suffix)] * 6
    assert lengths.longest["query_rationale"].tolist() == [len(suffix) - 3] * 6


def test_rounds_are_measured_one_by_one(reading, tiny):
    segments = ["Look.", "It is red.", "So say red."]
    two = replace(reading, max_rounds=2).measure_rationale(segments)
    model, processor = tiny
    rounds = [rationale_suffix(processor, model.config, text) for text in ("Look.", "It is red. So say red.")]
    assert two == MeasuredInput(sum(map(len, rounds)), len(rounds[1]) - 3)


def test_nothing_is_measured_twice(reading, table_with, tmp_path, counted):
    first = measure_table(table_with("missing"), COLUMNS, reading, tmp_path / "kept")
    assert len(counted) == 24
    again = measure_table(table_with("missing"), COLUMNS, reading, tmp_path / "kept")
    assert len(counted) == 24 + 11  # the pictures were written anew; texts and what is missing are known
    assert first.broken == again.broken and len(first.broken) == 1
    assert all(np.array_equal(first.tokens[name], again.tokens[name]) for name in COLUMNS.names)


def test_a_file_that_was_put_right_is_read_again(reading, table_with, tmp_path, folder):
    table = table_with("truncated")
    assert len(measure_table(table, COLUMNS, reading, tmp_path / "kept").broken) == 1
    table_with()
    assert measure_table(table, COLUMNS, reading, tmp_path / "kept").broken == []
    picture = folder / "pictures" / "3.jpg"
    key = input_key(table[3]["query"])
    os.utime(picture, ns=(time.time_ns(), time.time_ns() + 1))
    assert input_key(table[3]["query"]) != key


def test_another_way_of_reading_is_measured_by_itself(reading, table_with, tmp_path, counted):
    table = table_with(number=2)
    long = measure_table(table, COLUMNS, reading, tmp_path / "kept")
    short = measure_table(table, COLUMNS, replace(reading, max_text_tokens=1), tmp_path / "kept")
    assert len(counted) == 8 and (short.tokens["query"] < long.tokens["query"]).all()


def test_a_run_that_is_killed_loses_little(reading, table_with, tmp_path, counted):
    table = Dataset.from_list([{"query": {"text": f"number {n}"}} for n in range(3 * ROWS_AT_ONCE)])
    calls = []

    def killed():
        calls.append(len(counted))
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_table(table, Columns(("query",)), reading, tmp_path / "kept", tick=killed)
    assert len(counted) == 2 * ROWS_AT_ONCE
    measure_table(table, Columns(("query",)), reading, tmp_path / "kept")
    assert len(counted) == 3 * ROWS_AT_ONCE


def test_several_processes_measure_the_same(reading, table_with, tmp_path):
    table = Dataset.from_list([row for row in table_with("truncated", row=7).to_list() for _ in range(9)])
    alone = measure_table(table, COLUMNS, reading, tmp_path / "alone", workers=0)
    together = measure_table(table, COLUMNS, reading, tmp_path / "together", workers=2)
    assert alone.broken == together.broken and [one.row for one in alone.broken] == list(range(63, 72))
    assert all(np.array_equal(alone.tokens[name], together.tokens[name]) for name in COLUMNS.names)
    assert np.array_equal(alone.keys, together.keys)
    assert len(np.unique(alone.keys, axis=0)) == 12


def test_a_process_that_is_killed_is_told(reading, tmp_path, monkeypatch):
    table = Dataset.from_list([{"query": {"text": "x"}}] * 64)
    parent = os.getpid()

    def crash(self, value):
        if os.getpid() != parent:
            os.kill(os.getpid(), 9)
        raise AssertionError("measured in the process of the test")

    monkeypatch.setattr(Reading, "measure_input", crash)
    with pytest.raises(ValueError, match=r"a process that read the pairs table was lost .* goes on from where it was"):
        measure_table(table, Columns(("query",)), reading, tmp_path / "kept", workers=1)


def test_how_far_it_is_is_logged(reading, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("mmemb_r1.progress.PERIOD", 0.0)
    table = Dataset.from_list([{"query": {"text": f"number {n}"}} for n in range(2 * ROWS_AT_ONCE)])
    with caplog.at_level("INFO", logger="mmemb_r1"):
        measure_table(table, Columns(("query",)), reading, tmp_path / "kept", progress=False)
    assert any("reading the pairs table: 32 of 64" in line for line in caplog.messages)


def test_a_damaged_file_of_measurements_is_told(tmp_path):
    (tmp_path / "a.sqlite").write_bytes(b"no database, whatever its name says" * 99)
    with pytest.raises(ValueError, match=r"a\.sqlite, where lengths of inputs are kept, .* Remove it"):
        MeasuredStore(tmp_path / "a.sqlite")


def test_what_is_kept_is_found(tmp_path):
    store = MeasuredStore(tmp_path / "a.sqlite")
    kept = {n.to_bytes(2) * 8: MeasuredInput(n, 1, "broken" if n == 3 else None) for n in range(600)}
    store.put(kept)
    assert MeasuredStore(tmp_path / "a.sqlite").get([*kept, b"another"]) == kept


@pytest.mark.parametrize(
    "wrong, match",
    [
        ({"on_error": "ignore"}, "on_error='ignore'; allowed: 'raise', 'skip'"),
        ({"max_skipped": 1.5}, "max_skipped=1.5; allowed: a share"),
        ({"max_input_tokens": 0}, "max_input_tokens=0; allowed"),
    ],
)
def test_options_out_of_range_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        SettleOptions(**wrong)


def test_a_table_of_which_nothing_is_left_is_refused(reading, tmp_path):
    table = Dataset.from_list([{"pair_id": "a", "query": {"image": "nowhere.png"}}])
    options = SettleOptions(on_error="skip", max_skipped=1)
    with pytest.raises(ValueError, match="1 of the 1 pairs .* Nothing is left of it"):
        settle([PairsTable(table)], reading, options, folder=tmp_path)


def test_a_folder_that_cannot_be_made_says_what_to_do(reading, tmp_path):
    (tmp_path / "home").write_text("a file, where the cache would be")
    table = Dataset.from_list([{"query": {"text": "Lima"}}])
    with pytest.raises(ValueError, match=r"home.*can't be made .* Set HF_HOME to a folder where you may write"):
        measure_table(table, Columns(("query",)), reading, tmp_path / "home" / "lengths", workers=0)
