"""An import goes on where it was killed, counts and lists what it skips, and takes the same memory for any source."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.training.importing.conftest import chat, picture

from mmemb_r1.training.importing import reader, shards
from mmemb_r1.training.importing.run import import_pairs
from mmemb_r1.training.rationales.table import read_rationales
from mmemb_r1.training.tables import PAIR_COLUMNS, read_pairs


def rows(number, start=0):
    return [
        {"qry": chat(f"question {row}", f"Think of {row}.", f"{row}"), "pos": chat(f"answer {row}")}
        for row in range(start, start + number)
    ]


def tables(output):
    """Pairs and rationales, as they are read."""
    pairs = read_pairs(output / "pairs", PAIR_COLUMNS)
    return pairs.to_list(), read_rationales(output / "rationales").to_list()


def skipped(output):
    return [json.loads(line) for line in (output / "skipped.jsonl").read_text().splitlines()]


SOURCE_KINDS = ["T.json", "T.jsonl", "T.parquet"]


def write_source(path, table, write_json):
    if path.suffix == ".parquet":
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(table), path, row_group_size=7)
        return path
    return write_json(path, table)


@pytest.mark.parametrize("before_the_record", [False, True])
@pytest.mark.parametrize("name", SOURCE_KINDS)
def test_an_import_that_was_stopped_goes_on(name, before_the_record, tmp_path, write_json, monkeypatch):
    """Stopped after some whole shards, or after a shard's tables but before its record."""
    table = rows(25)
    table[7] = table[3]  # there twice, in two shards
    source = write_source(tmp_path / "data" / name, table, write_json)
    import_pairs("ume-r1", source, tmp_path / "whole", shard_size=4)
    write = shards.replaced_file
    written = []

    def stops(path):
        written.append(path.parent.name)
        if written.count("records") == 3 and before_the_record or written.count("records") == 4:
            raise KeyboardInterrupt
        return write(path)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "replaced_file", stops)
        with pytest.raises(KeyboardInterrupt):
            import_pairs("ume-r1", source, tmp_path / "out", shard_size=4)
    done = len(list((tmp_path / "out" / "records").iterdir()))
    assert done == (2 if before_the_record else 3)
    summary = import_pairs("ume-r1", source, tmp_path / "out", shard_size=4)
    assert tables(tmp_path / "out") == tables(tmp_path / "whole")
    assert len(tables(tmp_path / "out")[0]) == 24
    assert (tmp_path / "out" / "summary.json").read_text() == (tmp_path / "whole" / "summary.json").read_text()
    assert (summary.total.read, summary.total.written, summary.total.rationales) == (25, 24, 24)
    assert skipped(tmp_path / "out") == skipped(tmp_path / "whole")
    assert [(one["row"], one["reason"]) for one in skipped(tmp_path / "out")] == [
        (7, "it is there already under the same id.")
    ]


@pytest.mark.slow
def test_an_import_that_was_killed_goes_on_without_a_double(tmp_path, write_json):
    source = write_json(tmp_path / "data" / "T.jsonl", rows(5000))
    import_pairs("ume-r1", source, tmp_path / "whole", shard_size=100)
    code = f"from mmemb_r1.training.importing.run import import_pairs\nimport_pairs('ume-r1', {str(source)!r}, "
    child = subprocess.Popen([sys.executable, "-c", code + f"{str(tmp_path / 'out')!r}, shard_size=100)"])
    records = tmp_path / "out" / "records"
    while not records.exists() or len(list(records.iterdir())) < 3:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert len(list(records.glob("*.json"))) < 50
    import_pairs("ume-r1", source, tmp_path / "out", shard_size=100)
    assert tables(tmp_path / "out") == tables(tmp_path / "whole")


def test_repeats_are_taken_out_once_whenever_that_is_stopped(tmp_path, write_json, monkeypatch):
    table = [*rows(6), *rows(6), *rows(1, 6)]
    source = write_json(tmp_path / "data" / "T.jsonl", table)
    write = shards._write
    calls = []

    def stops(path, content):
        calls.append(path)
        if len(calls) == 10:  # of a shard that repeats, the rationales are written anew, and the pairs are not
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write", stops)
        with pytest.raises(KeyboardInterrupt):
            import_pairs("ume-r1", source, tmp_path / "out", shard_size=4)
    assert calls[9].parent.name == "pairs"
    for _ in range(2):
        summary = import_pairs("ume-r1", source, tmp_path / "out", shard_size=4)
        pairs, rationales = tables(tmp_path / "out")
        assert [one["query"]["text"] for one in pairs] == [f"question {row}" for row in range(7)]
        assert [one["pair_id"] for one in rationales] == [one["pair_id"] for one in pairs]
        assert (summary.total.written, summary.total.rationales) == (7, 7)
        assert summary.total.skipped == {"there already under the same id": 6}
        assert [one["row"] for one in skipped(tmp_path / "out")] == list(range(6, 12))


@pytest.mark.slow
def test_jobs_change_nothing(tmp_path, write_json):
    for number in range(3):
        write_json(tmp_path / "data" / f"T{number}.json", rows(30, 20 * number))
    import_pairs("rime", tmp_path / "data", tmp_path / "one", shard_size=8)
    import_pairs("rime", tmp_path / "data", tmp_path / "two", shard_size=8, jobs=2)
    assert tables(tmp_path / "two") == tables(tmp_path / "one")
    assert (tmp_path / "two" / "summary.json").read_text() == (tmp_path / "one" / "summary.json").read_text()


@pytest.mark.slow
def test_a_process_that_is_lost_is_told(tmp_path, write_json, monkeypatch):
    for number in range(2):
        write_json(tmp_path / "data" / f"T{number}.json", rows(3))
    (tmp_path / "import_dies.py").write_text("import os\n\ndef read(row):\n    os._exit(1)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="a process that imported was lost .* The same call goes on"):
        import_pairs("import_dies:read", tmp_path / "data", tmp_path / "out", jobs=2)


def test_ids_depend_on_content_alone(tmp_path, write_json, media):
    """Not on the place of a row, the limit, the shards, or where the pictures lie."""
    table = rows(12)
    table[2]["qry"]["image"] = "images/0.jpg"
    write_json(tmp_path / "a" / "T.json", table)
    write_json(tmp_path / "b" / "T.json", table[::-1])
    (tmp_path / "other").symlink_to(media)
    import_pairs("ume-r1", tmp_path / "a", tmp_path / "all", media=media)
    import_pairs("ume-r1", tmp_path / "b", tmp_path / "few", media=tmp_path / "other", limit=10, shard_size=3)
    ids = {pair["query"]["text"]: pair["pair_id"] for pair in tables(tmp_path / "all")[0]}
    few = {pair["query"]["text"]: pair["pair_id"] for pair in tables(tmp_path / "few")[0]}
    assert len(set(ids.values())) == 12
    assert len(few) == 10
    assert few.items() < ids.items()


def test_limit_and_tasks(tmp_path, write_json):
    table = [{**row, "dataset_name": "AB"[number % 2]} for number, row in enumerate(rows(10))]
    source = write_json(tmp_path / "data" / "T.json", table)
    summary = import_pairs("ume-r1", source, tmp_path / "out", limit=2, shard_size=3)
    assert {task: (counts.written, counts.left_out) for task, counts in summary.tasks.items()} == {
        "A": (2, 3),
        "B": (2, 3),
    }
    summary = import_pairs("ume-r1", source, tmp_path / "B", limit=2, tasks=["B"])
    assert [one["query"]["text"] for one in tables(tmp_path / "B")[0]] == ["question 1", "question 3"]
    assert summary.total.read == 4  # and no further
    for limit in (None, 1):
        with pytest.raises(ValueError, match="there is no task 'C'; there are: A, B. Remove"):
            import_pairs("ume-r1", source, tmp_path / f"C{limit}", tasks=["C", "A"], limit=limit)


def test_another_import_in_the_same_folder_is_refused(tmp_path, write_json):
    source = write_json(tmp_path / "data" / "T.json", rows(3))
    import_pairs("ume-r1", source, tmp_path / "out")
    with pytest.raises(ValueError, match="begun with other settings or data: limit was None, is now 2"):
        import_pairs("ume-r1", source, tmp_path / "out", limit=2)
    write_json(source, rows(3, 1))
    with pytest.raises(ValueError, match="begun with other settings or data: sources.T.json was"):
        import_pairs("ume-r1", source, tmp_path / "out")


def test_what_is_wrong_with_a_row_is_told_with_source_row_and_remedy(tmp_path, write_json, media):
    good = {"qry": chat("a", image="images/0.jpg"), "pos": chat("b")}
    (media / "images" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    wrong = [
        {"qry": chat("c", image="images/none.jpg"), "pos": chat("d")},
        {"qry": chat("e"), "pos": chat("<image>", image="images/blank.jpg")},
        {"qry": chat("f", image=3), "pos": chat("g")},
        {"qry": {"conversations": "h"}, "pos": chat("i")},
        {"qry": chat("j", image="images/broken.jpg"), "pos": chat("k")},
        {"qry": chat("l"), "pos": chat("m\ud83c")},
        {"qry": chat("n", video="frames"), "pos": chat("o")},
        ["p"],
        {"qry": chat("q")},
    ]
    source = write_json(tmp_path / "data" / "T.jsonl", [good, *wrong])
    with source.open("a") as file:
        file.write('\n{"qry": \n')
    summary = import_pairs("ume-r1", source, tmp_path / "out", media=media, decode=True)
    listed = skipped(tmp_path / "out")
    assert {one["table"] for one in listed} == {"T.jsonl"}
    assert [(one["row"], one["side"]) for one in listed] == [
        (1, "query"), (2, "target"), (3, "query"), (4, "query"), (5, "query"), (6, "target"), (7, "query"), (8, "row"),
        (9, "target"), (10, "row"),
    ]  # fmt: skip
    reasons = [one["reason"] for one in listed]
    for reason, told in zip(
        reasons,
        [
            f"its query image 'images/none.jpg' is not in {media}. Fetch the file, or say where such files are: --",
            "it has no target: no text, picture or video; leave the row out.",
            "its query image is 3; allowed: a path, a list of paths, or nothing.",
            "its query is no chat:",
            "broken.jpg",
            "its target holds half a character; correct the text.",
            "its query video 'frames' is neither a video nor a folder of pictures; fetch it again.",
            "it is ['p']; allowed: an object. Correct it.",
            "it has no target",
            "T.jsonl, line 12 can't be read: lines have to be JSON objects of one form",
        ],
        strict=True,
    ):
        assert told in reason
    assert reasons[4].endswith("Fetch it again, or leave the row out.")
    assert summary.total.skipped == {
        "a file is missing": 2, "no target": 2, "of another form": 4, "a picture is broken": 1, "unreadable": 1,
    }  # fmt: skip
    assert (summary.total.read, summary.total.written) == (11, 1)


def test_no_path_of_a_row_ends_an_import_or_hides_other_files(tmp_path, write_json, media):
    (media / "circle").symlink_to("circle")  # of which nothing can be asked: an error of its own
    (media / "nowhere.jpg").symlink_to("none.jpg")
    odd = ["x" * 300 + "/a.jpg", "y/" * 3000 + "a.jpg", "a\0b/c.jpg", "circle/a.jpg", "circle", "nowhere.jpg"]
    folders = [".", "images"]
    given = [{"query": {"image": path}, "target": "b"} for path in (*odd, *folders, "../MMEB-train/images/0.jpg")]
    wrong = [{"query": {"image": {"bytes": data}}, "target": "b"} for data in (5, "abc", [1, 2])]
    source = write_json(tmp_path / "T.jsonl", [*given, *wrong])
    summary = import_pairs("jsonl", source, tmp_path / "out", media=media)
    assert summary.total.skipped == {"a file is missing": len(odd) + len(folders), "of another form": len(wrong)}
    told = [one["reason"] for one in skipped(tmp_path / "out")]
    assert all(f"is not in {media}" in reason for reason in told[: len(odd)])
    assert all("is a folder in" in reason for reason in told[len(odd) : len(odd) + len(folders)])
    assert "its query image has as its bytes 5, of type int; allowed: bytes." in told
    table = read_pairs(tmp_path / "out" / "pairs")
    assert [row["query"]["image"] for row in table] == [[str(media / "images" / "0.jpg")]]


@pytest.mark.parametrize("key", ["pair_id", "task"])
def test_names_are_texts_or_whole_numbers(key, tmp_path, write_json):
    """NaN, which pandas makes of what is missing, would give all such rows one id."""
    values = [7, "x", float("nan"), 1.5, True, ["a"], {}]
    given = [{"query": f"a {place}", "target": "b", key: value} for place, value in enumerate(values)]
    summary = import_pairs("jsonl", write_json(tmp_path / "T.jsonl", given), tmp_path / "out")
    assert summary.total.skipped == {"of another form": 5}
    assert [row[key] for row in read_pairs(tmp_path / "out" / "pairs")] == ["7", "x"]


def test_bytes_that_are_no_picture_are_skipped(tmp_path):
    table = [{"query": "a", "image": {"bytes": data, "path": "a.png"}} for data in (b"no picture", b"")]
    good = picture(tmp_path / "good.png").read_bytes()
    table.append({"query": "b", "image": {"bytes": good, "path": "b.png"}})
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "train-00000-of-00001.parquet")
    summary = import_pairs("visrag", tmp_path / "train-00000-of-00001.parquet", tmp_path / "out")
    assert summary.total.written == 1
    assert [one["reason"] for one in skipped(tmp_path / "out")] == [
        "its target image can't be read: 10 bytes that are no picture. Fetch the file again.",
        f"its target image 'a.png' is not in {tmp_path}. Fetch the file, or say where such files are: --media DIR.",
    ]


def test_a_source_without_a_column_is_refused(tmp_path, write_json):
    source = write_json(tmp_path / "data" / "T.json", [{"anchor": "a", "positive": "b"}])
    with pytest.raises(ValueError) as error:
        import_pairs("ume-r1", source, tmp_path / "out")
    assert "T.json has no column 'qry'; the format 'ume-r1' needs qry, pos, or qry_text, pos_text" in str(error.value)
    assert "It has: anchor, positive." in str(error.value)
    with pytest.raises(ValueError, match="say which: --columns query=anchor target=positive"):
        import_pairs("jsonl", source, tmp_path / "out")
    import_pairs("jsonl", source, tmp_path / "out", columns={"query": "anchor", "target": "positive"})
    assert read_pairs(tmp_path / "out" / "pairs")[0]["query"]["text"] == "a"


@pytest.mark.parametrize("shard_size", [100, 10_000])
def test_a_source_of_which_nothing_is_of_use_is_refused(shard_size, tmp_path, write_json, monkeypatch):
    monkeypatch.setattr(reader, "FIRST_ROWS", 150)
    table = rows(400)
    for row in table[:200]:
        row["qry"]["image"] = "images/0.jpg"
    source = write_json(tmp_path / "data" / "T.json", table)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"T.json: none of its first 150 rows can be imported. Row 0, .*--media"):
            import_pairs("ume-r1", source, tmp_path / "out", shard_size=shard_size)
    few = write_json(tmp_path / "few" / "F.json", table[:20])
    with pytest.raises(ValueError, match="F.json: none of its first 20 rows"):
        import_pairs("ume-r1", few, tmp_path / "few-out")


def test_no_row_is_lost(tmp_path, write_json):
    """A row that is null counts; a blank line is no row, and has no number."""
    source = write_json(tmp_path / "a" / "T.json", [rows(1)[0], None, *rows(1, 1)])
    assert import_pairs("ume-r1", source, tmp_path / "list").total.read == 3
    lines = tmp_path / "a" / "T.jsonl"
    lines.write_text("\n".join(json.dumps(one) for one in rows(1)) + "\n\nnull\n" + json.dumps(rows(1, 1)[0]))
    assert import_pairs("ume-r1", lines, tmp_path / "lines").total.read == 3
    for output, row in (("list", 1), ("lines", 1)):
        (one,) = skipped(tmp_path / output)
        assert (one["row"], one["reason"]) == (row, "it is None; allowed: an object. Correct it.")
    table = tmp_path / "a" / "T.csv"
    table.write_text('query,target\na,b\nc\nd,e,f\n,g\n"h\ni",j\n')
    assert import_pairs("csv", table, tmp_path / "csv").total.written == 2
    assert [one["row"] for one in skipped(tmp_path / "csv")] == [1, 2, 3]
    table.write_text("query,target,query\na,b,c\n")
    with pytest.raises(ValueError, match="each column needs its own name"):
        import_pairs("csv", table, tmp_path / "twice")


def test_a_json_list_that_is_damaged_is_refused_and_keeps_what_was_read(tmp_path, write_json):
    source = write_json(tmp_path / "data" / "T.json", rows(30))
    text = source.read_text()
    source.write_text(text[: text.index("question 20")])
    with pytest.raises(ValueError, match=r"T.json, element 21 can't be read: .*"):
        import_pairs("ume-r1", source, tmp_path / "out", shard_size=8)
    assert len(list((tmp_path / "out" / "pairs").iterdir())) == 2


def test_what_can_not_be_asked_for(tmp_path, write_json):
    source = write_json(tmp_path / "data" / "T.json", rows(2))
    (tmp_path / "empty").mkdir()
    for options, told in (
        ({"name": "ume"}, "there is no format 'ume'; allowed: ume-r1, rime"),
        ({"name": "ume-r"}, "did you mean 'ume-r1'?"),
        ({"source": tmp_path / "none"}, "none: there is no such file or folder"),
        ({"source": tmp_path / "empty"}, "empty holds nothing to be read; needed: files that end in .json"),
        ({"files": "*.x"}, "and match '*.x'"),
        ({"limit": 0}, "limit=0; allowed: whole numbers from 1 on"),
        ({"media": tmp_path / "none"}, "there is no such folder"),
        ({"columns": {"query": "a"}}, "columns are mapped for jsonl, csv, parquet, folder, hub, not for 'ume-r1'"),
        ({"name": "jsonl", "columns": {"question": "a"}}, "'question' is no column of ours; allowed: query, target"),
        ({"name": "jsonl", "columns": {"entity": "a"}}, "'entity' is not imported; allowed: query, target"),
        ({"name": "jsonl", "columns": {"query": "a"}}, "T.json has no column 'a'; the format 'jsonl' needs a, target"),
        ({"name": "jsonl", "columns": {"query": "a", "query.image": "b"}}, "'query' and 'query.image' name the same"),
        ({"name": "hub", "source": "T.json"}, "'T.json' is no id of a data set of the Hub; write owner/name"),
        ({"name": "nothing:here"}, "can't be imported"),
    ):
        given = {"name": "ume-r1", "source": source, **options}
        with pytest.raises(ValueError) as error:
            import_pairs(output=tmp_path / "out", **given)
        assert told in str(error.value)
    assert not (tmp_path / "out").exists()


PEAK = """
import sys
from mmemb_r1.training.importing.run import import_pairs
for source in sys.argv[1:]:
    import_pairs("ume-r1", source, source + "-imported", shard_size=1000)
    with open("/proc/self/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells the peak there")
@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_a_hundred_thousand_rows_stream_in_constant_memory(suffix, tmp_path):
    thought = "It is a long thought, as they are. " * 3
    sources = [tmp_path / str(number) / f"T{suffix}" for number in (10_000, 100_000)]
    for source in sources:
        number = int(source.parent.name)
        table = ({"qry": chat(f"q {row}", thought, "a"), "pos": chat(f"p {row}")} for row in range(number))
        source.parent.mkdir()
        if suffix == ".parquet":
            with pq.ParquetWriter(source, pa.Table.from_pylist(rows(1)).schema) as writer:
                for _ in range(number // 1000):
                    writer.write_table(pa.Table.from_pylist(list(islice(table, 1000))))
        else:
            with source.open("w") as file:
                file.writelines(f"{',' if row else '['}\n{json.dumps(one)}" for row, one in enumerate(table))
                file.write("]")
    child = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, sources)], capture_output=True, text=True, check=True
    )
    few, many = (int(peak) / 1024 for peak in child.stdout.split())
    assert len(read_pairs(tmp_path / "100000" / f"T{suffix}-imported" / "pairs")) == 100_000
    assert many - few < 24, f"{few} MiB for 10,000 rows, {many} MiB for 100,000"  # the content alone takes 100
