"""Tables of any kind become items: which columns are what, paths, metadata, ids."""

from __future__ import annotations

import csv
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from tests.index.test_building import counts, rows

from mmemb_r1.index import Index, build_index

COLOURS = ("red", "green", "blue")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    (folder / "pictures").mkdir(parents=True)
    for colour in COLOURS:
        Image.new("RGB", (32, 32), colour).save(folder / "pictures" / f"{colour}.png")
    return folder


RECORDS = [{"path": f"pictures/{name}.png", "name": name, "year": 2000 + place} for place, name in enumerate(COLOURS)]


def write_csv(folder, records):
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)
    return folder / "table.csv"


def write_jsonl(folder, records):
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder / "table.jsonl"


def write_parquet(folder, records):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), folder / "table.parquet")
    return folder / "table.parquet"


@pytest.mark.parametrize("write", [write_csv, write_jsonl, write_parquet])
def test_paths_start_from_the_table_and_other_columns_are_metadata(model, folder, tmp_path, write):
    columns = {"image": "path", "id": "name"}
    assert build_index(write(folder, RECORDS), model, tmp_path / "index", columns=columns).added == 3
    index = Index.open(tmp_path / "index", model)
    year = "'2001'" if write is write_csv else "2001"  # all columns of CSV are texts
    (hit,) = index.search("a colour", filter=f"metadata.year = {year}").hits
    assert (hit.id, hit.path, hit.kind) == ("green", "pictures/green.png", "image")
    assert hit.metadata == {"year": "2001" if write is write_csv else 2001}
    expected = model.encode_document([{"image": str(folder / "pictures" / "green.png")}])[0]
    assert index.nearest(expected, 1)[0].score == pytest.approx(1, abs=1e-5)


def test_new_metadata_of_the_same_content_is_written_without_embedding(model, folder, tmp_path, embedded):
    columns = {"image": "path"}
    build_index(write_jsonl(folder, RECORDS), model, tmp_path / "index", columns=columns)
    embedded.clear()
    changed = [{**record, "year": 1999} if record["name"] == "blue" else record for record in RECORDS]
    summary = build_index(write_jsonl(folder, changed), model, tmp_path / "index", columns=columns)
    assert counts(summary) == (0, 1, 0, 2, 0) and embedded == []
    (hit,) = Index.open(tmp_path / "index", model).search("x", filter="metadata.year = 1999").hits
    assert hit.metadata == {"name": "blue", "year": 1999}
    more = [{**record, "more": 1} for record in RECORDS]
    with pytest.raises(ValueError, match="has the metadata name, year, and the source now name, year, more"):
        build_index(write_jsonl(folder, more), model, tmp_path / "index", columns=columns)


def test_pictures_inside_a_table_and_text_beside_them(model, folder, tmp_path):
    features = Features({"image": ImageFeature(), "text": Value("string"), "label": Value("string")})
    data = {"image": [str(folder / record["path"]) for record in RECORDS], "text": ["", "a", None], "label": COLOURS}
    table = Dataset.from_dict(data, features=features)
    table.save_to_disk(str(tmp_path / "saved"))
    buffered = []
    for record in RECORDS:
        data = io.BytesIO()
        Image.open(folder / record["path"]).save(data, "PNG")
        buffered.append({"image": {"bytes": data.getvalue(), "path": None}, "label": record["name"]})
    inside = write_parquet(tmp_path, buffered)
    for number, source in enumerate((table, tmp_path / "saved", inside)):
        index = tmp_path / f"index-{number}"
        assert build_index(source, model, index).added == 3
        found = rows(index)
        assert [row["kind"] for row in found.values()] == ["image"] * 3
        assert sorted(row["metadata"]["label"] for row in found.values()) == sorted(COLOURS)
        assert all(row["thumbnail"] for row in found.values())
    assert sorted(rows(tmp_path / "index-2")) == ["row 1", "row 2", "row 3"]


def test_a_folder_of_pictures_with_metadata_and_folders_of_tables(model, folder, tmp_path):
    lines = ["file_name,name", *(f"{record['path']},{record['name']}" for record in RECORDS)]
    (folder / "metadata.csv").write_text("\n".join(lines))
    build_index(folder, model, tmp_path / "a")
    assert rows(tmp_path / "a")["pictures/red.png"]["metadata"] == {"name": "red"}
    parts = tmp_path / "parts"
    parts.mkdir()
    for part in range(2):
        pyarrow.parquet.write_table(
            pyarrow.table({"text": [f"text {part}", f"more {part}"]}), parts / f"{part}.parquet"
        )
    build_index(parts, model, tmp_path / "b")
    assert sorted(row["text"] for row in rows(tmp_path / "b").values()) == ["more 0", "more 1", "text 0", "text 1"]


def test_a_row_that_is_none_is_listed(model, folder, tmp_path):
    records = [
        {"id": "a", "text": "one", "image": None},
        {"id": "b", "text": None, "image": None},
        {"id": "c", "text": "three", "image": "pictures/missing.png"},
        {"id": "a", "text": "four", "image": None},
        {"id": "e", "text": "pictures/red.png", "image": None},
    ]
    summary = build_index(write_jsonl(folder, records), model, tmp_path / "index")
    reasons = dict(summary.unreadable)
    assert sorted(reasons) == ["a", "b", "c"]
    assert "comes twice" in reasons["a"] and "no text, image or video" in reasons["b"]
    found = rows(tmp_path / "index")
    assert {name: (row["kind"], row["text"]) for name, row in found.items()} == {
        "a": ("text", "one"),
        "e": ("text", "pictures/red.png"),  # a text that looks like a path is a text
    }


def test_columns_that_are_not_there_are_refused(model, folder, tmp_path):
    source = write_jsonl(folder, RECORDS)
    with pytest.raises(ValueError, match="none of the columns text, image and video, but path, name, year; say which"):
        build_index(source, model, tmp_path / "index")
    with pytest.raises(ValueError, match="has no column 'pth'; it has path, name, year; did you mean 'path'"):
        build_index(source, model, tmp_path / "index", columns={"image": "pth"})
    with pytest.raises(ValueError, match="'picture' is not known; allowed: id, text, image, video"):
        build_index(source, model, tmp_path / "index", columns={"picture": "path"})
    with pytest.raises(ValueError, match="columns and base are of tables"):
        build_index(folder / "pictures", model, tmp_path / "index", columns={"image": "path"})
    with pytest.raises(ValueError, match="allowed: a folder, a file, the id of a data set, or a Dataset"):
        build_index(["a text"], model, tmp_path / "index")
    assert not (tmp_path / "index").exists()
