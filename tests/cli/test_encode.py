from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmemb_r1.cli import main
from mmemb_r1.cli.encode import parse_lines, read_inputs


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"image": "pic.png"}, {"image": "{data}/pic.png"}),
        ({"image": {"path": "pic.png", "bytes": None}}, {"image": {"path": "{data}/pic.png", "bytes": None}}),
        ({"image": [{"path": "pic.png"}, "pic.png"]}, {"image": [{"path": "{data}/pic.png"}, "{data}/pic.png"]}),
        ({"video": [{"path": "1.png", "bytes": None}]}, {"video": [{"path": "{data}/1.png", "bytes": None}]}),
        ({"video": ["1.png", "2.png"]}, {"video": ["{data}/1.png", "{data}/2.png"]}),
        ({"image": "file:///elsewhere/a%20b.png"}, {"image": "/elsewhere/a b.png"}),
        ({"image": "HTTPS://example.org/a.png"}, {"image": "HTTPS://example.org/a.png"}),
        ({"image": "DATA:image/png;base64,AAAA"}, {"image": "DATA:image/png;base64,AAAA"}),
        ({"image": "/pic.png", "text": "pic.png"}, {"image": "/pic.png", "text": "pic.png"}),
        ("pic.png", "{data}/pic.png"),
        ("I saw pic.png", "I saw pic.png"),
        ("missing.png", "missing.png"),
        (
            [{"role": "user", "content": [{"type": "image", "image": {"path": "pic.png"}}]}],
            [{"role": "user", "content": [{"type": "image", "image": {"path": "{data}/pic.png"}}]}],
        ),
    ],
)
def test_paths_start_from_the_folder_of_the_file(given, expected, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for folder in (tmp_path, tmp_path / "data"):
        Image.new("RGB", (8, 8)).save(folder / "pic.png")
    monkeypatch.chdir(tmp_path)
    Path("data/in.jsonl").write_text(json.dumps(given) + "\n")
    (found,) = read_inputs("data/in.jsonl")[1]
    assert json.dumps(found) == json.dumps(expected).replace("{data}", "data")
    assert read_inputs("data/in.jsonl", base=str(tmp_path))[1] == [
        json.loads(json.dumps(expected).replace("{data}", str(tmp_path)))
    ]


def test_a_file_of_the_current_folder_is_not_taken_for_that_of_the_input(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "pic.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match="line 1: there is no file 'data/pic.png', but one of that name in the current"
    ):
        parse_lines(['"pic.png"'], Path("data"))


@pytest.mark.parametrize(
    ("given", "output", "options"),
    [
        ("rows.jsonl", "rows.jsonl", []),
        ("y.meta.jsonl", "y.npy", []),
        ("link.jsonl", "rows.jsonl", []),
        ("rows.jsonl", "sub/../rows.jsonl", []),
        ("out/index.json", "out/", []),
        ("out/settings.json", "out", ["--format", "parquet"]),
    ],
)
def test_an_output_that_is_the_input_is_refused(given, output, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("sub", "out"):
        Path(folder).mkdir()
    text = '{"text": "a"}\n'
    Path("rows.jsonl").write_text(text)
    Path("link.jsonl").hardlink_to("rows.jsonl")
    Path(given).write_text(text)
    assert main(["encode", "--model", "none", "--input", given, "--output", output, *options]) == 2
    assert "which is the --input; name another output" in capsys.readouterr().err
    assert Path(given).read_text() == text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("folder", None, "is a folder; name a file of JSON lines"),
        ("rows.csv", b"text\na dog\n", "is a table of separated values; JSON lines are needed"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "is no text; JSON lines are needed"),
        ("pairs.parquet", b"PAR1\x15\x04", "is no text"),
        ("rows.jsonl", '{"text": "a"}\n'.encode("utf-16"), "is UTF-16; convert it: iconv -f UTF-16 -t UTF-8"),
        ("rows.jsonl", '{"text": "ä"}\n'.encode("latin-1"), "is no text in UTF-8"),
        ("missing.jsonl", None, "there is no such file"),
    ],
)
def test_what_is_no_json_lines_is_told_what_it_is(name, content, message, tmp_path, capsys):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif name == "folder":
        path.mkdir()
    assert main(["encode", "--model", "none", "--input", str(path), "--output", str(tmp_path / "out.jsonl")]) == 2
    assert message in capsys.readouterr().err


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n', encoding="utf-8-sig")
    assert read_inputs(str(tmp_path / "rows.jsonl")) == ([1], [{"text": "a"}])


def test_pictures_may_be_made_smaller(tmp_path, tiny_checkpoint):
    Image.effect_noise((128, 128), 60).save(tmp_path / "pic.png")
    (tmp_path / "in.jsonl").write_text(json.dumps({"image": "pic.png"}) + "\n")

    def vectors(*options):
        output = tmp_path / "out.npy"
        command = ["encode", "--model", str(tiny_checkpoint), "--input", str(tmp_path / "in.jsonl"), "--output"]
        assert main([*command, str(output), *options]) == 0
        found = np.load(output)
        output.unlink()
        return found

    plain = vectors()
    assert abs(vectors("--max-image-tokens", "4") - plain).max() == 0
    assert abs(vectors("--max-image-tokens", "1") - plain).max() > 1e-4


def test_a_limit_that_is_none_is_refused(tmp_path, tiny_checkpoint, capsys):
    (tmp_path / "in.jsonl").write_text('"a"\n')
    command = ["encode", "--model", str(tiny_checkpoint), "--input", str(tmp_path / "in.jsonl"), "--output"]
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path / "out.npy"), "--max-image-tokens", "0"])
    assert "max_image_tokens=0 (tokens of one picture) has to be one whole number of at least 1" in (
        capsys.readouterr().err
    )
