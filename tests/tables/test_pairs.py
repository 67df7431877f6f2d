"""Tables of pairs in whatever form people have them: the same pairs come out of each."""

from __future__ import annotations

import csv
import json
import logging
import tracemalloc

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, List
from PIL import Image as PILImage

from mmemb_r1.content import given_parts
from mmemb_r1.tables.columns import columns_hint, parse_columns
from mmemb_r1.tables.pairs import hub_table, is_hub_table, open_pairs, table_digest, table_name
from mmemb_r1.training.joint.run import JointRun
from mmemb_r1.training.tables import check_pairs, read_pairs

# texts that a careless reader takes for numbers, nothing, truth, a file, several cells
TEXTS = (
    "007",
    "NA",
    "true",
    "a.png",
    'He said "no", twice',
    "two\nlines",
    " blanks ",
    "1e5",
    "null",
    "é ü 中",
    "[1]",
    "=1",
)
COLUMNS = {"query": "anchor", "target": "positive", "negatives": "neg_1,neg_2"}
LISTED = {"query": "anchor", "target": "positive", "negatives": "neg"}


def raw(number):
    return {
        "anchor": TEXTS[number],
        "positive": f"t {number}",
        "neg_1": f"n {number}",
        "neg_2": None if number % 2 else "x",
    }


def rows():
    return [raw(number) for number in range(len(TEXTS))]


def listed():
    return [
        {
            "anchor": row["anchor"],
            "positive": row["positive"],
            "neg": [one for one in (row["neg_1"], row["neg_2"]) if one],
        }
        for row in rows()
    ]


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def ours(rows):
    """The rows of `listed` in our own form."""
    return [
        {
            "query": {"text": row["anchor"]},
            "target": {"text": row["positive"]},
            "negatives": [{"text": one} for one in row["neg"]],
        }
        for row in rows
    ]


@pytest.fixture(params=["in memory", "mapped"])
def size(request, monkeypatch, tmp_path):
    if request.param == "mapped":
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
        for module in ("files", "pairs"):
            monkeypatch.setattr(f"mmemb_r1.tables.{module}.IN_MEMORY", 0)
    return request.param


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """`hub["owner/name"] = {split: rows}`: what `datasets` is asked for is built of files here, by a commit."""
    hub_table.cache_clear()
    found: dict = {}
    build = datasets.load_dataset_builder

    def asked(path, name=None, revision=None):
        if path not in found:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub")
        files = {}
        for split, own in found[path].items():
            files[split] = str(write_lines(tmp_path / f"{path.replace('/', '-')}-{split}.jsonl", own))
        builder = build("json", name, data_files=files, cache_dir=str(tmp_path / "hub"))
        builder.hash = f"commit of {revision or 'main'}"
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", asked)
    yield found
    hub_table.cache_clear()


DOORS = ("parquet", "jsonl", "json", "lines in json", "csv", "folder", "metadata", "saved", "dataset", "stream")


def behind(door, folder):
    """The table of `rows()` in one of these forms, for `open_pairs`."""
    table = Dataset.from_list(rows())
    if door == "dataset":
        return table
    if door == "stream":
        return IterableDataset.from_generator(lambda: iter(rows()))
    if door == "parquet":
        pq.write_table(pa.Table.from_pylist(rows()), folder / "a.parquet")
        return folder / "a.parquet"
    if door == "json":
        (folder / "a.json").write_text(json.dumps(rows(), indent=1), encoding="utf-8")
        return folder / "a.json"
    if door in ("jsonl", "lines in json"):
        return write_lines(folder / ("a.jsonl" if door == "jsonl" else "a.json"), rows())
    if door == "saved":
        table.save_to_disk(folder / "saved", num_shards=2)
        return folder / "saved"
    if door == "folder":
        write_csv(folder / "1.csv", rows()[:5])
        write_csv(folder / "2.csv", rows()[5:])
        return folder
    path = write_csv(folder / ("metadata.csv" if door == "metadata" else "a.csv"), rows())
    return folder if door == "metadata" else path


@pytest.mark.parametrize("door", DOORS)
def test_the_same_pairs_come_through_every_door(door, tmp_path, size):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"a text that is the name of a file stays a text")
    expected = open_pairs(Dataset.from_list(ours(listed())))
    found = open_pairs(behind(door, folder), COLUMNS)
    assert found.to_list() == expected.to_list() and len(found) == 12
    assert found[0]["query"] == {"text": "007"} and found[1]["negatives"] == [{"text": "n 1"}]
    check_pairs(found, ("pair_id", "query", "target"))
    assert bool(found.cache_files) == (size == "mapped" or door == "stream")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "dataset"])
def test_negatives_as_a_list(kind, tmp_path):
    table = Dataset.from_list(listed())
    if kind == "parquet":
        table.to_parquet(tmp_path / "a.parquet")
    source = {"jsonl": tmp_path / "a.jsonl", "parquet": tmp_path / "a.parquet", "dataset": table}[kind]
    write_lines(tmp_path / "a.jsonl", listed())
    assert open_pairs(source, LISTED).to_list() == open_pairs(Dataset.from_list(rows()), COLUMNS).to_list()


def test_negatives_with_numbers_are_folded_unasked():
    numbered = [{"query": "q", "target": "t", "negative_10": "c", "negative_2": "b", "negative_1": None}]
    assert open_pairs(Dataset.from_list(numbered))[0]["negatives"] == [{"text": "b"}, {"text": "c"}]


def test_a_table_of_the_hub(hub, tmp_path, size):
    hub["org/pairs"] = {"train": rows(), "test": rows()[:2]}
    assert is_hub_table("org/pairs:default/train")
    found = open_pairs("org/pairs:default/train", COLUMNS)
    assert found.to_list() == open_pairs(behind("csv", tmp_path), COLUMNS).to_list()
    assert len(read_pairs("org/pairs@v2:default/test", columns=COLUMNS)) == 2
    with pytest.raises(ValueError, match=r"say which split: org/pairs:default/train, org/pairs:default/test$"):
        open_pairs("org/pairs")
    with pytest.raises(
        ValueError, match=r"org/none: there is no such file or folder, and as a table of the Hub \(owner/"
    ):
        open_pairs("org/none")


def test_another_revision_is_another_table(hub):
    hub["org/pairs"] = {"train": rows()}
    first = table_digest("org/pairs")
    assert first == table_digest("org/pairs:default/train") and len(first) == 64
    assert table_digest("org/pairs@v2") != first
    assert table_name("org/pairs@v2") == "org/pairs@commit of v2:default/train"


def test_a_path_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for path in ("data/pairz", "pairs", "org/pairs.csv", "/org/pairs", "./org/pairs", "a/b/c", "data"):
        assert not is_hub_table(path), path
    for name in ("org/pairs", "data/pairz:default", "data/pairz@main", "org/pairs@0123abc:en/train"):
        assert is_hub_table(name), name
    with pytest.raises(ValueError, match="data/pairz: there is no such file or folder"):
        open_pairs("data/pairz")


class TestPictures:
    ROWS = tuple((f"{number}.png", f"color {number}?", f"answer {number}") for number in range(12))

    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "pictures").mkdir()
        for number, (name, _, _) in enumerate(self.ROWS):
            PILImage.new("RGB", (4, 4), (number * 20, 0, 0)).save(tmp_path / "pictures" / name)
        return tmp_path / "pictures"

    def expected(self, folder):
        return [{"image": {"bytes": None, "path": str(folder / name)}, "text": text} for name, text, _ in self.ROWS]

    @pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
    def test_a_folder_of_pictures(self, folder, kind, size):
        """As the folder loader of `datasets` has it: metadata with the names of the files."""
        names = ("file_name", "question", "answer")
        told = [dict(zip(names, row, strict=True)) for row in self.ROWS]
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(told), folder / "metadata.parquet")
        else:
            {"csv": write_csv, "jsonl": write_lines}[kind](folder / f"metadata.{kind}", told)
        columns = {"query.image": "image", "query.text": "question", "target": "answer"}
        found = open_pairs(folder, columns)
        assert [row["query"] for row in found.with_format("arrow")[:].to_pylist()] == self.expected(folder)
        assert found[3]["query"]["image"].getpixel((0, 0)) == (60, 0, 0)
        plain = [{"query": {"image": n, "text": q}, "target": a} for n, q, a in self.ROWS]
        lines = open_pairs(write_lines(folder / "pairs.jsonl", plain))
        assert lines["pair_id"][:] == found["pair_id"][:]
        assert lines[0]["query"]["image"] == str(folder / "0.png")

    def test_named_columns_of_pictures(self, folder):
        told = [
            {"query_file_name": name, "target": answer, "negatives_file_names": [name]}
            for name, _, answer in self.ROWS
        ]
        write_lines(folder / "metadata.jsonl", told)
        (row, *_) = open_pairs(folder).with_format("arrow")[:1].to_pylist()
        picture = {"image": {"bytes": None, "path": str(folder / "0.png")}}
        assert (row["query"], row["target"], row["negatives"]) == (picture, {"text": "answer 0"}, [picture])

    def test_features_of_datasets(self, folder):
        """A picture is one by its feature, also where it is saved in the table; a class is its name."""
        features = Features({"image": Image(), "label": ClassLabel(names=["dark", "red"]), "others": List(Image())})
        given = [{"image": str(folder / f"{n}.png"), "label": n, "others": [str(folder / "2.png")]} for n in range(2)]
        table = Dataset.from_list(given, features=features)
        columns = {"query": "image", "target": "label", "negatives": "others", "task": "label"}
        found = open_pairs(table, columns)
        assert found[1]["query"]["image"].getpixel((0, 0)) == (20, 0, 0) and found[1]["target"] == {"text": "red"}
        assert found["task"][:] == ["dark", "red"] and found[0]["negatives"][0]["image"].size == (4, 4)
        table.save_to_disk(folder / "saved")
        saved = open_pairs(folder / "saved", columns)
        assert saved[1]["query"]["image"].getpixel((0, 0)) == (20, 0, 0)
        (stored,) = saved.with_format("arrow")[:1].to_pylist()
        assert stored["query"]["image"]["bytes"] == (folder / "0.png").read_bytes()


class TestIds:
    def test_they_are_of_content_wherever_a_pair_stands(self):
        pairs = open_pairs(Dataset.from_list(rows()), COLUMNS)
        turned = open_pairs(
            Dataset.from_list(rows()[::-1]).remove_columns(["neg_1", "neg_2"]),
            {"query": "anchor", "target": "positive"},
        )
        assert pairs["pair_id"][:] == turned["pair_id"][::-1] and len(set(pairs["pair_id"])) == 12

    def test_equal_pairs_are_told_and_keep_apart(self, caplog):
        with caplog.at_level(logging.WARNING):
            ids = open_pairs(Dataset.from_list([{"query": "q", "target": "t"}] * 3 + [{"query": "q", "target": "u"}]))[
                "pair_id"
            ][:]
        assert ids[1:3] == [f"{ids[0]}-2", f"{ids[0]}-3"] and len(set(ids)) == 4
        (told,) = caplog.messages
        assert "A pair is there twice" in told and f"{ids[0]}-2" in told

    def test_own_ids_stay_and_numbers_become_texts(self):
        assert (
            open_pairs(Dataset.from_list([{"id": 7, "query": "q", "target": "t"}]), {"pair_id": "id"})["pair_id"][0]
            == "7"
        )
        untouched = Dataset.from_list([{"pair_id": "a", "query": {"text": "q"}, "target": {"text": "t"}, "more": 1}])
        assert open_pairs(untouched) is untouched


class TestColumns:
    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"querry": "anchor"}, r"'querry' is no column of ours; allowed: query, target.*did you mean 'query'\?"),
            (
                {"query": "ancor"},
                r"no column 'ancor', which would be 'query'; there are: anchor, .*did you mean 'anchor'\?",
            ),
            ({"query": "anchor,positive"}, r"'query' is one column, not 2 \(anchor, positive\)"),
            ({"query": "anchor", "query.text": "positive"}, "'query' and 'query.text' name the same"),
        ],
    )
    def test_what_does_not_go_is_said(self, columns, message, tmp_path):
        with pytest.raises(ValueError, match=f"columns: .*{message}"):
            open_pairs(behind("csv", tmp_path), columns)

    def test_two_for_one_on_the_command_line(self):
        with pytest.raises(ValueError, match="'query' is there twice, of 'a' and 'b'"):
            parse_columns(["query=a", "query=b"])
        with pytest.raises(ValueError, match="'query' is none; allowed: OURS=THEIRS"):
            parse_columns(["query"])

    def test_known_names_are_suggested_never_taken(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", [{"anchor": "a", "positive": "b", "negative": "c"}])
        shown = "--columns query=anchor target=positive negatives=negative"
        with pytest.raises(ValueError, match=f"has no column 'query'; .*say which: {shown}"):
            read_pairs(path, ("query", "target"))
        assert read_pairs(path, ("query", "target"), columns=parse_columns(shown.split()[1:]))[0]["negatives"]
        assert columns_hint(["a", "b"]).endswith("--columns query=THEIRS target=THEIRS")

    def test_negatives_of_two_kinds(self):
        table = Dataset.from_list([{"query": "q", "target": "t", "a": "x", "b": {"image": "y.png"}}])
        with pytest.raises(ValueError, match="those of negatives hold struct<text: string> and struct<image: string>"):
            open_pairs(table, {"negatives": ["a", "b"]})

    def test_a_table_beside_another_may_have_our_names(self, tmp_path):
        ours_there = Dataset.from_list([{"query": "q", "target": "t"}])
        assert open_pairs(ours_there, COLUMNS, unless_ours=True)[0]["query"] == {"text": "q"}
        with pytest.raises(ValueError, match="there is no column 'anchor'"):
            open_pairs(ours_there, COLUMNS)
        assert open_pairs(Dataset.from_list(rows()), COLUMNS, unless_ours=True)[0]["query"] == {"text": "007"}

    def test_null_is_nothing(self):
        table = Dataset.from_list([{"query": "q", "target": None}, {"query": "q", "target": "t"}])
        pairs = open_pairs(table)
        assert given_parts(pairs[1]["target"]) == {"text": "t"}
        with pytest.raises(ValueError, match=r"row 0 .* has no target; give it a text"):
            check_pairs(pairs, ("query", "target"))


class TestBrokenFiles:
    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.csv", "query,target\na,b\nc\n", "line 3 can't be read: .*it has 1 cells, and the header 2"),
            ("a.csv", "query,target\na,b,c\n", "line 2 can't be read: .*it has 3 cells"),
            ("a.csv", 'query,target\n"a,b\n', "line 2 can't be read: .*unexpected end of data"),
            ("a.csv", "query,query\n", "line 1 can't be read: .*its header is 'query', 'query'; each column"),
            ("a.csv", "", "line 1 can't be read: .*its header is empty"),
            ("a.json", '[{"a": 1}, {"a": ', "element 2 can't be read: .*the file ends within it"),
            ("a.json", '[{"a": 1}, {"a" 2}]' + " " * 50, "element 2 can't be read: .*Expecting ':' delimiter"),
            ("a.json", '[{"a": 1}, 2]', "element 2 can't be read: .*it is 2"),
            ("a.json", '[{"a": 1}] [', "element 2 can't be read: .*it comes after the end of the list"),
            ("a.json", '[{"a": 1}, {"a": {"b": 1}}]', "element 2 can't be read: .*incompatible types"),
        ],
    )
    def test_the_row_is_named(self, tmp_path, name, text, message):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"{name}, {message}"):
            open_pairs(tmp_path / name)

    def test_several_splits_in_a_folder(self, tmp_path):
        DatasetDict({"train": Dataset.from_list(rows()), "test": Dataset.from_list(rows())}).save_to_disk(
            tmp_path / "all"
        )
        with pytest.raises(ValueError, match=r"all holds several tables; say which: \S+/all/train, \S+/all/test\."):
            open_pairs(tmp_path / "all")
        assert len(open_pairs(tmp_path / "all" / "train", COLUMNS)) == 12

    def test_a_damaged_saved_table(self, tmp_path):
        Dataset.from_list(rows()).save_to_disk(tmp_path / "saved")
        (file,) = (tmp_path / "saved").glob("*.arrow")
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(
            ValueError, match=r"data-\S+\.arrow can't be read: it is no Arrow stream, or a damaged one"
        ):
            open_pairs(tmp_path / "saved", COLUMNS)

    def test_pictures_without_metadata(self, tmp_path):
        PILImage.new("RGB", (4, 4)).save(tmp_path / "a.png")
        with pytest.raises(ValueError, match=r"holds no table; needed: .* metadata\.csv"):
            open_pairs(tmp_path)


def test_a_run_is_another_one_with_other_columns_or_rows(tmp_path, hub):
    hub["org/pairs"] = {"train": rows()}
    path = behind("csv", tmp_path)

    def identity(pairs=path, **more):
        return JointRun(
            model="start", pairs=pairs, output=tmp_path / "run", settings={"use_cpu": True}, **more
        ).identity()

    first = identity(columns=COLUMNS)
    assert first == identity(columns=dict(COLUMNS)) != identity(columns=LISTED)
    assert "columns" not in identity()  # a run of before goes on
    assert identity("org/pairs") != identity("org/pairs@v2") != identity(Dataset.from_list(rows()))
    assert (
        identity(Dataset.from_list(rows()))
        == identity(Dataset.from_list(rows()))
        != identity(Dataset.from_list(listed()))
    )
    with pytest.raises(ValueError, match="a stream can't be told from another before it is read; give what"):
        identity(behind("stream", tmp_path))
    write_csv(path, rows()[:11])
    assert identity(columns=COLUMNS) != first
    with pytest.raises(ValueError, match="'anker' is no column of ours"):
        identity(columns={"anker": "query"})


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_large_files_are_read_in_constant_memory(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("mmemb_r1.tables.files.IN_MEMORY", 0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    peaks = []
    for size in (3000, 9000):
        many = [{"pair_id": f"{n}", "query": f"{n} " + "word " * 40, "target": f"{n}"} for n in range(size)]
        path = tmp_path / f"{size}.{kind}"
        if kind == "json":
            path.write_text(json.dumps(many))
        else:
            {"csv": write_csv, "jsonl": write_lines}[kind](path, many)
        del many
        open_pairs(path)  # what is imported and kept by then is no part of it
        (tmp_path / "cache" / "mmemb-r1" / "tables").rename(tmp_path / f"{size}-done")
        before = pa.default_memory_pool().bytes_allocated()
        tracemalloc.start()
        assert len(open_pairs(path)) == size
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert pa.default_memory_pool().bytes_allocated() - before < 2**20
    assert peaks[1] < 1.4 * peaks[0]


def test_a_large_table_tells_how_far_it_is(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("mmemb_r1.tables.files.IN_MEMORY", 0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("mmemb_r1.progress.PERIOD", 0.0)
    with caplog.at_level(logging.INFO, logger="mmemb_r1.progress"):
        open_pairs(behind("folder", tmp_path), COLUMNS)
    assert [line.partition(",")[0] for line in caplog.messages] == ["rows of a table"] * 2
    assert "12" in caplog.messages[1]
