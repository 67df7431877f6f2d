"""Files of inputs are cut into blocks of one size, wherever their ends are, and read back without Ray."""

from __future__ import annotations

import json
from io import BytesIO

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.ray.sources import Block, plan_blocks, read_block


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_rows(path, rows, group=3):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)


def read_all(address, size, **options):
    blocks = [Block.from_json(block.to_json()) for block in plan_blocks(str(address), size)]
    assert [block.index for block in blocks] == list(range(len(blocks)))
    assert [block.start for block in blocks] == [size * index for index in range(len(blocks))]
    assert all(block.rows == size for block in blocks[:-1])
    read = [read_block(block, **options) for block in blocks]
    assert [len(one.values) for one in read] == [block.rows for block in blocks]
    return [name for one in read for name in one.ids], [value for one in read for value in one.values]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 100])
def test_lines_and_rows_of_several_files_are_read_in_their_order(size, tmp_path):
    rows = [{"text": f"text {number} é"} for number in range(11)]
    write_lines(tmp_path / "b.jsonl", rows[6:])
    write_lines(tmp_path / "a.jsonl", rows[:6])
    assert read_all(tmp_path, size) == (list(range(11)), rows)
    write_rows(tmp_path / "2.parquet", rows[7:])
    write_rows(tmp_path / "1.parquet", rows[:7])
    assert read_all(tmp_path, size) == (list(range(11)), rows)
    assert read_all(tmp_path / "*.jsonl", size) == (list(range(11)), rows)
    assert read_all(f"local://{tmp_path}", size) == (list(range(11)), rows)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_blank_lines_and_a_mark_at_the_beginning_are_passed_over(size, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes('\ufeff"a"\n\n  \n\x1c\n\u00a0\n"b"\r\n\n"c"'.encode())
    assert read_all(file, size) == ([0, 1, 2], ["a", "b", "c"])


def test_what_is_wrong_is_told_with_its_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('"a"\n\n"b"\n7\n')
    *_, block = plan_blocks(str(file), 2)
    with pytest.raises(ValueError, match=r"a.jsonl: line 4 is 7; allowed"):
        read_block(block)
    file.write_bytes(b'"a"\n"\xff"\n')
    with pytest.raises(ValueError, match=r"a.jsonl: line 2 is no text in UTF-8"):
        read_all(file, 5)
    write_lines(file, [{"id": 1, "text": "a"}, {"text": "b"}])
    with pytest.raises(ValueError, match="line 2 of .* has no 'id'"):
        read_all(file, 5, id_column="id")


def test_ids_and_inputs_may_be_columns(tmp_path):
    rows = [{"name": f"n{number}", "body": f"{number}.png", "year": 1} for number in range(5)]
    expected = [f"n{number}" for number in range(5)], [{"text": f"{number}.png"} for number in range(5)]
    write_rows(tmp_path / "a.parquet", rows)
    assert read_all(tmp_path / "a.parquet", 2, column="body", id_column="name") == expected
    write_lines(tmp_path / "a.jsonl", rows)
    assert read_all(tmp_path / "a.jsonl", 2, column="body", id_column="name") == expected
    with pytest.raises(ValueError, match="a.parquet has none of the columns text, .* There are: name, body, year"):
        read_all(tmp_path / "a.parquet", 2)
    with pytest.raises(ValueError, match="a.parquet has no column 'nome'; there are: name, body, year"):
        read_all(tmp_path / "a.parquet", 2, column="body", id_column="nome")


def test_a_row_has_the_parts_that_are_given(tmp_path):
    picture = BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    stored = {"bytes": picture.getvalue(), "path": "x.png"}
    rows = [{"text": "a", "image": stored, "instruction": None}, {"text": None, "image": stored, "instruction": "b"}]
    write_rows(tmp_path / "a.parquet", rows)
    _, values = read_all(tmp_path / "a.parquet", 1)
    assert values == [{"text": "a", "image": stored}, {"image": stored, "instruction": "b"}]


def test_pictures_of_a_folder_have_their_names(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "a.jpg", "deep/c.png", ".hidden.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    ids, values = read_all(tmp_path, 2)
    assert ids == ["a.jpg", "b.png", "deep/c.png"]
    assert values == [{"image": str(tmp_path / name)} for name in ids]
    ids, values = read_all(f"local://{tmp_path}", 2)
    assert values == [{"image": (tmp_path / name).read_bytes()} for name in ids]


def test_media_elsewhere_are_fetched_where_that_is_allowed(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "lists").mkdir()
    file = tmp_path / "lists" / "a.jsonl"
    message = {"role": "user", "content": [{"type": "image", "image": f"local://{tmp_path}/a.png"}]}
    write_lines(file, ["s3 is text", {"text": "t", "image": f"local://{tmp_path}/a.png"}, [message]])
    with pytest.raises(InputError, match=r"Input 1 .* line 2 of .*a.jsonl: it names 'local:.*add 'local'") as caught:
        read_all(file, 3)
    assert caught.value.index == 1
    _, values = read_all(file, 3, protocols=("local",))
    assert values[0] == "s3 is text"
    assert values[1] == {"text": "t", "image": content}
    assert values[2][0]["content"][0]["image"] == content
    write_lines(file, [{"image": ["a.png", f"local://{tmp_path}/a.png", "https://example.org/b.png"]}])
    _, values = read_all(file, 3, base=f"local://{tmp_path}")
    assert values == [{"image": [content, content, "https://example.org/b.png"]}]
    write_lines(file, ["a", {"image": "missing.png"}])
    with pytest.raises(InputError, match=r"Input 1 .* line 2 .*missing.png' can't be read \(FileNotFoundError"):
        read_all(file, 1, base=f"local://{tmp_path}")
    write_lines(file, [{"image": "simplecache::local:///a.png"}])
    with pytest.raises(InputError, match="it names 'simplecache::"):
        read_all(file, 1, protocols=("simplecache", "local"))


def test_paths_on_this_machine_start_from_the_folder_of_the_file(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    write_lines(tmp_path / "a.jsonl", ["a.png", {"image": "a.png"}])
    assert read_all(tmp_path / "a.jsonl", 2)[1] == [str(tmp_path / "a.png"), {"image": str(tmp_path / "a.png")}]


def test_what_holds_no_inputs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such file or folder"):
        list(plan_blocks(str(tmp_path / "missing"), 2))
    (tmp_path / "notes.txt").write_text("no inputs")
    with pytest.raises(ValueError, match="holds no inputs; needed: files that end in"):
        list(plan_blocks(str(tmp_path), 2))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(ValueError, match=r"a.parquet can't be read: it is no Parquet file"):
        list(plan_blocks(str(tmp_path), 2))
