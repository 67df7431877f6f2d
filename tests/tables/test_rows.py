"""Rows one after another: the same in every kind of file, from any number on, none lost for the sake of another."""

from __future__ import annotations

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmemb_r1.tables.pairs import open_pairs
from mmemb_r1.tables.rows import read_rows

ROWS = [{"query": f"question {number}", "target": f"answer {number}"} for number in range(100)]


def write(path, rows=ROWS):
    lines = [json.dumps(row) for row in rows]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=40)
    elif path.suffix == ".arrow":
        datasets.Dataset.from_list(rows).save_to_disk(str(path.with_suffix("")))
        next(path.with_suffix("").glob("*.arrow")).rename(path)
    elif path.suffix == ".csv":
        path.write_text("query,target\n" + "".join(f"{row['query']},{row['target']}\n\n" for row in rows))
    elif path.stem.startswith("list"):
        path.write_text(f"\ufeff [{', '.join(lines)}]")
    elif path.stem == "whole":
        path.write_text("\n".join(json.dumps(row, indent=1) for row in rows))
    else:
        path.write_text("\n\n".join(lines))
    return path


@pytest.mark.parametrize(
    "name", ["a.parquet", "a.arrow", "a.csv", "list.json", "list.jsonl", "lines.json", "lines.jsonl", "whole.json"]
)
def test_rows_from_any_number_on(name, tmp_path, monkeypatch):
    monkeypatch.setattr("mmemb_r1.tables.rows._CHUNK", 200)
    file = write(tmp_path / name)
    for start in (0, 1, 39, 40, 41, 99, 100, 200):
        read: list[int] = []
        assert list(read_rows(file, start, read.append)) == ROWS[start:]
        assert read == sorted(read)
        if start < len(ROWS) and file.suffix != ".arrow":
            assert read[-1] == file.stat().st_size
    assert open_pairs(file)["query"][:] == [{"text": row["query"]} for row in ROWS]


@pytest.mark.parametrize("name", ["a.csv", "lines.json", "lines.jsonl"])
def test_a_row_that_can_not_be_read_stands_for_itself(name, tmp_path):
    file = write(tmp_path / name, ROWS[:3])
    text = file.read_text()
    whole = ",answer 1\n" if name == "a.csv" else '"answer 1"}'
    file.write_text(text.replace(whole, "\n" if name == "a.csv" else '"answer 1'))
    first, fault, last = read_rows(file)
    assert (first, last) == (ROWS[0], ROWS[2])
    assert isinstance(fault, ValueError)
    line = 4 if name == "a.csv" else 3
    assert str(fault).startswith(f"{file}, line {line} can't be read: ")
    with pytest.raises(ValueError, match=f"line {line} can't be read: "):
        open_pairs(file)


def test_what_can_not_be_gone_on_with_is_an_error(tmp_path):
    file = write(tmp_path / "list.json", ROWS[:3])
    file.write_text(file.read_text().replace('"question 1"', '"question 1'))
    rows = read_rows(file)
    assert next(rows) == ROWS[0]
    with pytest.raises(ValueError, match="element 2 can't be read"):
        next(rows)


def test_rows_need_not_go_together(tmp_path):
    values = [{"a": 1}, {"a": "b", "c": [1]}, None, 3]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, values)))
    assert list(read_rows(file)) == values
    file.write_text(json.dumps(values))
    assert list(read_rows(file)) == values


def test_classes_are_their_names(tmp_path):
    features = datasets.Features({"kind": datasets.ClassLabel(names=["red", "blue"])})
    table = datasets.Dataset.from_dict({"kind": [1, 0, None]}, features)
    table.to_parquet(tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == [{"kind": "blue"}, {"kind": "red"}, {"kind": None}]


def test_a_long_cell_of_csv(tmp_path):
    """The module `csv` refuses cells of more than 131,072 characters by default."""
    file = tmp_path / "a.csv"
    file.write_text(f"query,target\n{'q' * 200_000},t\n")
    assert len(open_pairs(file)[0]["query"]["text"]) == 200_000


def test_columns_that_can_not_be_read_are_told_with_their_file(tmp_path):
    path = tmp_path / "pairs.parquet"
    table = pa.table({"query": ["a"], "target": ["b"]})
    features = {"query": {"_type": "Hologram"}, "target": {"dtype": "string", "_type": "Value"}}
    of_others = json.dumps({"info": {"features": features}})
    for metadata in (of_others, "{"):
        pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), path)
        for read in (open_pairs, lambda path: list(read_rows(path))):
            with pytest.raises(ValueError, match="pairs.parquet: `datasets` does not know its columns .*Write it"):
                read(path)
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, ["query", "query", "target"]), path)
    with pytest.raises(ValueError, match="pairs.parquet has two columns 'query'; write it again"):
        open_pairs(path)
    lines = tmp_path / "pairs.jsonl"
    lines.write_text(json.dumps({"query": "a", "target": "b", "pair_id": 2**70}))
    with pytest.raises(ValueError, match="pairs.jsonl, line 1 can't be read: .*too large"):
        open_pairs(lines)


def test_views_of_texts_are_texts(tmp_path):
    pq.write_table(pa.table({"query": pa.array(["a"], pa.string_view()), "target": ["b"]}), tmp_path / "pairs.parquet")
    assert open_pairs(tmp_path / "pairs.parquet")[0]["query"] == {"text": "a"}


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"_data_files": [], "splits": []}'])
@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
def test_a_saved_data_set_that_is_damaged(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} .*Save the data set again"):
        open_pairs(tmp_path)
