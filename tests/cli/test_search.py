"""`mmemb-r1 index` and `mmemb-r1 search`: what they print and write."""

from __future__ import annotations

import json
import re
import webbrowser

import pytest
from PIL import Image

from mmemb_r1.cli import main


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (32, 32), colour).save(folder / f"{colour}.png")
    lines = ["file_name,id,note", *(f"{name}.png,{name},<b>{name}</b>" for name in ("red", "green", "blue"))]
    (folder / "metadata.csv").write_text("\n".join([*lines, "missing.png,missing,none"]))
    return folder


def test_index_then_search(tiny_checkpoint, pictures, tmp_path, capsys, monkeypatch):
    index = str(tmp_path / "index")
    build = ["index", str(pictures), "--model", str(tiny_checkpoint), "--index", index, "--shard-size", "2"]
    assert main(build) == 0
    told = capsys.readouterr().err
    assert "3 added, 0 changed, 0 deleted, 0 unchanged, 3 embedded, 1 unreadable" in told
    assert "not indexed: missing: " in told
    assert main([*build, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["unchanged"], summary["embedded"]) == (3, 0)
    assert [one["id"] for one in summary["unreadable"]] == ["missing"]

    search = ["search", "--index", index, "--image", str(pictures / "red.png"), "-k", "2"]
    assert main([*search, "a colour"]) == 0
    table = capsys.readouterr().out
    assert len(re.findall(r"image +(?:red|green|blue)", table)) == 2 and "gate 0." in table
    assert main([*search, "--json", "--reasoning", "never"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hits"][0]["id"] == "red" and found["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert found["hits"][0]["metadata"] == {"note": "<b>red</b>"} and not found["reasoned"]
    assert main([*search, "--json", "--filter", "id = 'blue'", "--hybrid", "--variety", "0.5", "--exact"]) == 0
    assert [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]] == ["blue"]

    shown = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    page = tmp_path / "out" / "hits.html"
    assert main([*search, "<i>q</i>", "--html", str(page), "--open"]) == 0
    assert shown == [page.as_uri()]
    text = page.read_text(encoding="utf-8")
    assert text.count('src="data:image/jpeg;base64,') == 2
    assert text.count("note: &lt;b&gt;") == 2 and "&lt;i&gt;q&lt;/i&gt;" in text
    assert "<i>" not in text and "note: <b>" not in text and "http" not in text
    assert main([*search, "--open"]) == 0
    assert shown[1].endswith("/hits.html")


def test_what_is_wrong_is_one_line(tiny_checkpoint, pictures, tmp_path, capsys):
    index = ["--index", str(tmp_path / "index")]
    model = ["--model", str(tiny_checkpoint)]
    for command, told in (
        (["search", *index], "there is no query; give a TEXT"),
        (["search", "x", *index], "holds no index; make one"),
        (["index", str(tmp_path / "nope"), *model, *index], "there is no such file or folder"),
        (["index", str(pictures), *model, *index, "--columns", "image"], "allowed: OURS=THEIRS"),
    ):
        assert main(command) == 2
        assert told in capsys.readouterr().err
