from __future__ import annotations

import io
from pathlib import Path

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from mmemb_r1.content import content_key
from mmemb_r1.training.tables import PAIR_COLUMNS, StoredInputs, check_pairs, read_pairs, stored_digest

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
