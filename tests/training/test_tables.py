from __future__ import annotations

import io
import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from mmemb_r1.content import content_key, stored_digest
from mmemb_r1.tables.files import open_table
from mmemb_r1.tables.pairs import table_digest
from mmemb_r1.tables.paths import table_paths_from
from mmemb_r1.training import tables as training_tables
from mmemb_r1.training.tables import (
    PAIR_COLUMNS,
    StoredInputs,
    StoredValues,
    check_pairs,
    number_distinct,
    number_rows,
    positions_in,
    read_pairs,
)

PART = {"text": Value("string"), "image": List(ImageFeature()), "instruction": Value("string")}
FEATURES = Features({"pair_id": Value("string"), "query": PART, "target": PART})


def png(color):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(stream, "png")
    return stream.getvalue()


def pair(pair_id, query, target):
    return {"pair_id": pair_id, "query": query, "target": target}


def table(*rows):
    return Dataset.from_list(list(rows), features=FEATURES)


class TestReadPairs:
    def test_reads_what_was_written(self, tmp_path):
        rows = [pair("a", {"text": "color?", "image": [Image.new("RGB", (4, 4), "red")]}, {"text": "red"})]
        table(*rows).to_parquet(str(tmp_path / "pairs.parquet"))
        pairs = read_pairs(tmp_path / "pairs.parquet", PAIR_COLUMNS)
        assert pairs[0]["query"]["image"][0].getpixel((0, 0)) == (255, 0, 0)

    def test_checks_only_what_is_required(self, tmp_path):
        table(pair("a", {"text": ""}, None), pair("a", None, None)).to_parquet(str(tmp_path / "pairs.parquet"))
        assert len(read_pairs(tmp_path / "pairs.parquet")) == 2
        with pytest.raises(ValueError, match=r"pairs\.parquet: the pair_id 'a' is there twice"):
            read_pairs(tmp_path / "pairs.parquet", ["pair_id"])

    def test_refuses_what_is_no_table(self, tmp_path):
        (tmp_path / "bad.parquet").write_bytes(b"no table")
        with pytest.raises(ValueError, match=r"bad\.parquet can't be read: it is no Parquet file"):
            read_pairs(tmp_path / "bad.parquet")


class TestCheckPairs:
    def test_inputs_of_every_kind_pass(self):
        undecoded = {"bytes": None, "path": "red.png"}
        check_pairs(table(pair("a", {"text": "x"}, {"image": [undecoded]})), PAIR_COLUMNS)
        plain = Dataset.from_list([pair("a", {"text": ["x"], "image": "a.png"}, {"video": "a.mp4", "text": None})])
        check_pairs(plain, PAIR_COLUMNS)

    def test_refuses_a_missing_column(self):
        pairs = table(pair("a", {"text": "x"}, {"text": "y"})).remove_columns("target")
        with pytest.raises(
            ValueError, match=r"no column 'target'; needed: pair_id, query, target\. It has: pair_id, q"
        ):
            check_pairs(pairs, PAIR_COLUMNS)

    def test_refuses_an_empty_table(self):
        with pytest.raises(ValueError, match="the pairs table has no rows"):
            check_pairs(table(pair("a", None, None)).select([]), PAIR_COLUMNS)

    def test_refuses_pair_ids_that_name_nothing(self):
        rows = [pair(name, {"text": "x"}, {"text": "y"}) for name in ("a", "b", "a")]
        with pytest.raises(ValueError, match="the pair_id 'a' is there twice, in the rows 0 and 2"):
            check_pairs(table(*rows), PAIR_COLUMNS)
        with pytest.raises(ValueError, match="the pair_id of row 1 is None; allowed: text"):
            check_pairs(table(rows[0], {**rows[1], "pair_id": None}), PAIR_COLUMNS)
        with pytest.raises(ValueError, match="the pair_id of row 0 is 7; allowed: text"):
            check_pairs(Dataset.from_list([{**rows[0], "pair_id": 7}]), PAIR_COLUMNS)

    @pytest.mark.parametrize("side", ["query", "target"])
    @pytest.mark.parametrize(
        "value", [None, {}, {"text": "  \n"}, {"image": []}, {"instruction": "Only what to do with nothing."}]
    )
    def test_refuses_a_side_without_content(self, side, value):
        fine = {"text": "x", "image": [png("red")]}
        rows = [pair("a", fine, fine), {**pair("b", fine, fine), side: value}]
        with pytest.raises(ValueError, match=rf"row 1 \(pair_id 'b'\), counted from 0, has no {side}; give it a text"):
            check_pairs(table(*rows), PAIR_COLUMNS)

    def test_refuses_a_column_of_nothing(self):
        with pytest.raises(ValueError, match=r"row 0, counted from 0, has no target"):
            check_pairs(Dataset.from_list([{"target": None}]), ["target"])

    def test_refuses_inputs_that_are_none(self):
        with pytest.raises(ValueError, match="the column 'query' holds string; allowed: an object with any of"):
            check_pairs(Dataset.from_list([{"query": "x"}]), ["query"])

    def test_refuses_keys_that_are_no_part_of_an_input(self):
        with pytest.raises(
            ValueError, match="'query' have the unknown key 'label'; allowed: .* text, image, video, ins"
        ):
            check_pairs(Dataset.from_list([{"query": {"text": "x", "label": "y"}}]), ["query"])


class TestStoredInputs:
    def test_pictures_are_not_decoded(self):
        broken = {"bytes": b"no picture", "path": None}
        inputs = StoredInputs(table(pair("a", {"image": [broken]}, {"text": "x"})), "query")
        assert inputs[0] == {"image": [broken]}

    def test_a_picture_has_no_name_but_a_path_alone_stays(self):
        images = [{"bytes": png("red"), "path": "red.png"}, {"bytes": None, "path": "pictures/blue.png"}]
        (value,) = StoredInputs(table(pair("a", {"image": images}, {"text": "x"})), "query")
        assert value == {"image": [{"bytes": png("red"), "path": None}, {"bytes": None, "path": "pictures/blue.png"}]}

    def test_follows_the_rows_of_the_table(self):
        pairs = table(*(pair(name, {"text": name}, {"text": name}) for name in "abc")).select([2, 0])
        inputs = StoredInputs(pairs, "query")
        assert [value["text"] for value in inputs] == ["c", "a"]
        assert inputs[:1] == [{"text": "c"}]


class TestDigests:
    def test_tells_inputs_apart(self):
        red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
        inputs = [{"text": "a"}, {"text": "b"}, {"image": [red]}, {"image": [blue]}, {"image": [red], "text": "a"}]
        assert len({content_key(value) for value in inputs}) == len(inputs)
        assert content_key({"text": "a", "image": [], "instruction": None}) == content_key({"text": "a"})
        assert content_key({"image": [red.copy()]}) == content_key({"image": [red]})

    def test_stored_pictures_count_by_their_bytes(self):
        def key(data, path):
            return stored_digest({"image": [{"bytes": data, "path": path}]})

        assert key(b"1", "a.png") == key(b"1", "b.png") == key(b"1", None)
        assert len({key(b"1", None), key(b"2", None), key(None, "a.png"), key(None, "b.png")}) == 4


def test_paths_start_from_the_folder_of_the_table(tmp_path, monkeypatch):
    """However a path is written; what is stored in the table itself, is absolute or on the web stays as it is."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    stored = {"bytes": b"x", "path": "a.png"}
    image = [[{"bytes": None, "path": "a.png"}, stored], None, [{"bytes": None, "path": "/b.png"}]]
    video = ["film.mp4", "HTTPS://example.org/a.mp4", f"file://{tmp_path}/c.mp4"]
    rows = [{"text": "a.png", "image": i, "video": v} for i, v in zip(image, video, strict=True)]
    more = {"negatives": [rows[:2], None, []], "input": rows}
    table = pyarrow.table({"pair_id": ["a", "b", "c"], "query": [*rows[:2], None], "target": rows, **more})
    pyarrow.parquet.write_table(table, folder / "pairs.parquet")
    pairs = read_pairs(folder / "pairs.parquet")
    found = pairs["target"][:]
    assert found[0]["image"] == [{"bytes": None, "path": f"{folder}/a.png"}, stored]
    assert [row["video"] for row in found] == [f"{folder}/film.mp4", video[1], f"{tmp_path}/c.mp4"]
    assert found[0]["text"] == "a.png" and found[1]["image"] is None
    assert found[2]["image"] == [{"bytes": None, "path": "/b.png"}]
    assert pairs["query"][:] == [*found[:2], None]
    assert pairs["negatives"][:] == [found[:2], None, []] and pairs["input"][:] == found
    assert read_pairs("data/pairs.parquet")["target"][0] == found[0]
    elsewhere = read_pairs(folder / "pairs.parquet", base=Path("other"))
    assert elsewhere["target"][0]["video"] == "other/film.mp4"


class TestLargeTables:
    """Tables of many files and rows, which are mapped into memory."""

    @pytest.fixture(params=["in memory", "mapped"])
    def size(self, request, monkeypatch):
        if request.param == "mapped":
            monkeypatch.setattr("mmemb_r1.tables.files.IN_MEMORY", 0)
        return request.param

    @pytest.fixture
    def shards(self, tmp_path):
        """Three files of two pairs each, with pictures by path and as bytes."""
        folder = tmp_path / "pairs"
        folder.mkdir()
        for shard in range(3):
            rows = []
            for row in range(2):
                name = f"{shard}-{row}"
                Image.new("RGB", (4, 4), (shard * 50, row * 50, 0)).save(folder / f"{name}.png")
                image = {"bytes": None, "path": f"{name}.png"} if row else {"bytes": png("red"), "path": None}
                rows.append(pair(name, {"text": name, "image": [image]}, {"text": f"to {name}"}))
            pq.write_table(
                table(*rows).data.table, folder / f"{shard:05d}.parquet"
            )  # `to_parquet` would read pictures
        return folder

    def test_a_folder_of_shards_is_one_table(self, shards, size):
        pairs = read_pairs(shards, PAIR_COLUMNS)
        assert pairs["pair_id"][:] == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
        assert bool(pairs.cache_files) == (size == "mapped")
        inputs = StoredInputs(pairs, "query")
        assert inputs[3]["image"] == [{"bytes": None, "path": str(shards / "1-1.png")}]
        assert inputs[4]["image"] == [{"bytes": png("red"), "path": None}]
        assert [value["text"] for value in inputs] == pairs["pair_id"][:]
        assert pairs[5]["query"]["image"][0].getpixel((0, 0)) == (100, 50, 0)

    def test_a_mapped_table_is_made_anew_when_a_file_changes(self, shards, monkeypatch):
        monkeypatch.setattr("mmemb_r1.tables.files.IN_MEMORY", 0)
        first = read_pairs(shards)
        assert read_pairs(shards).cache_files == first.cache_files
        table(pair("new", {"text": "x"}, {"text": "y"})).to_parquet(str(shards / "00001.parquet"))
        assert read_pairs(shards)["pair_id"][:] == ["0-0", "0-1", "new", "2-0", "2-1"]

    def test_rows_that_are_chosen_stay_mapped(self, shards, monkeypatch):
        monkeypatch.setattr("mmemb_r1.tables.files.IN_MEMORY", 0)
        pairs = read_pairs(shards).add_column("task", list("aabbaa"))
        few = training_tables._some_pairs(pairs, None, 1, "pairs")
        assert few["pair_id"][:] == ["0-0", "1-0"] and StoredInputs(few, "target")[1] == {"text": "to 1-0"}

    def test_json_lines(self, tmp_path, size):
        """Columns are those of all lines; pictures are paths."""
        (tmp_path / "rows").mkdir()
        lines = [{"pair_id": "a", "query": {"text": "x"}, "target": {"text": "y"}}] * 3000
        lines[2999] = {"pair_id": "b", "query": {"image": ["b.png"]}, "target": {"text": "z"}, "task": "t"}
        for number, part in enumerate((lines[:2000], lines[2000:])):
            text = "\n".join(map(json.dumps, part)) + "\n\n"
            (tmp_path / "rows" / f"{number}.jsonl").write_text(text, encoding="utf-8")
        pairs = read_pairs(tmp_path / "rows")
        assert len(pairs) == 3000 and pairs["task"][2998:] == [None, "t"]
        assert StoredInputs(pairs, "query")[2999] == {"image": [str(tmp_path / "rows" / "b.png")]}
        with pytest.raises(ValueError, match="the pair_id 'a' is there twice, in the rows 0 and 1"):
            check_pairs(pairs, ["pair_id"])

    @pytest.mark.parametrize(
        ("text", "line"),
        [("1\n", 1), ('\n{"a": 1}\n{"a": {"b": 2}}\n', 3), ('{"a": 1}\n{no json}\n', 2), ("\xff", 1)],
    )
    def test_lines_that_are_no_rows_are_refused(self, tmp_path, text, line):
        (tmp_path / "rows.jsonl").write_bytes(text.encode("latin1"))
        with pytest.raises(ValueError, match=rf"rows\.jsonl, line {line} can't be read: lines have to be JSON obj"):
            read_pairs(tmp_path / "rows.jsonl")

    def test_a_file_with_other_columns_is_refused(self, shards, size):
        table(pair("a", {"text": "x"}, {"text": "y"})).remove_columns("target").to_parquet(str(shards / "9.parquet"))
        with pytest.raises(ValueError, match=r"9\.parquet has no column 'target', which the table's first file has"):
            read_pairs(shards)

    def test_a_damaged_shard_is_named(self, shards, size):
        (shards / "00001.parquet").write_bytes((shards / "00001.parquet").read_bytes()[:200])
        with pytest.raises(ValueError, match=r"00001\.parquet can't be read: it is no Parquet file, or a damaged one"):
            read_pairs(shards)

    def test_a_folder_without_a_table_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"holds no table; needed: files that end in \.parquet or \.jsonl"):
            read_pairs(tmp_path)

    def test_lists_in_the_middle_of_a_row_group(self, tmp_path):
        """Arrow can't make a list anew that is a part of another; rows are read in parts."""
        query = [{"text": str(row), "image": [f"{row}.png"] if row % 2 else None} for row in range(3000)]
        rows = {"pair_id": list(map(str, range(3000))), "query": query, "negatives": [[one] for one in query]}
        pq.write_table(pa.table(rows), tmp_path / "pairs.parquet", row_group_size=3000)
        pairs = read_pairs(tmp_path / "pairs.parquet")
        assert pairs["query"][2999]["image"] == [str(tmp_path / "2999.png")]
        assert pairs["negatives"][1501][0]["image"] == [str(tmp_path / "1501.png")]
        assert pairs["query"][1500]["image"] is None
        part = table_paths_from(Path("/data"), pa.table({"query": query})[5:9])
        (found, *_) = part["query"].to_pylist()
        assert found == {"text": "5", "image": ["/data/5.png"]}

    def test_digests_tell_content_and_nothing_else(self, shards, tmp_path):
        first = table_digest(shards)
        assert first == table_digest(Path(shutil.copytree(shards, tmp_path / "copy"))) and len(first) == 64
        (shards / "00002.parquet").unlink()
        assert table_digest(shards) != first
        one = shards / "00000.parquet"
        assert table_digest(one) == sha256(one.read_bytes()).hexdigest()  # as runs of before have recorded it


def test_rows_are_numbered_in_their_order():
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 3, size=(500, 2)).astype(np.uint64)
    numbers, _ = number_distinct(list(map(tuple, keys.tolist())))
    assert number_rows(keys).tolist() == numbers
    assert number_rows(np.zeros((0, 2), np.uint64)).tolist() == []


def test_positions_among_stored_texts():
    pairs = Dataset.from_dict({"pair_id": [f"pair {number}" for number in range(3000)]}).select([2999, 5, 7])
    asked = pa.chunked_array([["pair 7", None], ["pair 2999", "pair 8"]])
    assert positions_in(asked, StoredValues(pairs, "pair_id")).tolist() == [2, -1, 0, -1]


def test_stored_values_are_those_of_the_rows():
    values = StoredValues(Dataset.from_dict({"text": list("abc")}).select([2, 0]), "text")
    assert (list(values), values[-1], values[:1], len(values)) == (["c", "a"], "a", ["c"], 2)
    with pytest.raises(IndexError, match="there is no row 2 in a table of 2"):
        values[2]


def test_a_file_is_read_a_few_rows_at_a_time_however_large_it_is(tmp_path, monkeypatch):
    """Of a table with stored pictures nothing but the batch at hand is held, while it is written to be mapped."""
    monkeypatch.setattr("mmemb_r1.tables.files.IN_MEMORY", 0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    held = []

    def noted(folder, rows):
        held.append(pa.default_memory_pool().bytes_allocated())
        return table_paths_from(folder, rows)

    monkeypatch.setattr("mmemb_r1.tables.files.table_paths_from", noted)
    pictures = [{"image": {"bytes": np.random.default_rng(row).bytes(20_000), "path": None}} for row in range(100)]
    rows, peaks = pa.table({"query": pictures, "target": [{"text": "t"}] * 100}), []
    for groups in (4, 16):
        with pq.ParquetWriter(tmp_path / f"{groups}.parquet", rows.schema) as writer:
            for _ in range(groups):
                writer.write_table(rows)
        before = pa.default_memory_pool().bytes_allocated()
        held.clear()
        assert len(open_table([tmp_path / f"{groups}.parquet"])) == groups * 100
        peaks.append(max(held) - before)
    assert peaks[1] < 1.5 * peaks[0]
