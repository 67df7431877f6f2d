"""Tasks of MMEB-V2 from the Hub: what is downloaded, unpacked and noted."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mmemb_r1.cli import main
from mmemb_r1.evaluation import load_results
from mmemb_r1.evaluation.mmeb import download_task, load_tasks
from mmemb_r1.evaluation.mmeb.download import unpack
from mmemb_r1.hub import HubError

FRAMES = "video-tasks/frames"


def parquet(rows) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def archive(*names: str, size: int = 16) -> bytes:
    """Pictures in a gzipped tar archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name in names:
            picture = io.BytesIO()
            Image.effect_noise((size, size), 50).save(picture, "PNG")  # it does not get smaller
            entry = tarfile.TarInfo(name)
            entry.size = len(picture.getvalue())
            tar.addfile(entry, io.BytesIO(picture.getvalue()))
    return file.getvalue()


def readme(*configs: str) -> bytes:
    files = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test-*\n" for name in configs
    )
    return f"---\nconfigs:\n{files}---\n".encode()


@pytest.fixture
def didemo(hub):
    rows = [{"video": f"videos/{number}.mp4", "caption": f"caption {number}"} for number in range(2)]
    files = {"README.md": b"# DiDeMo\n", "data/test-00000-of-00001.parquet": parquet(rows), "0.mp4": b"too large"}
    hub.create("VLM2Vec/DiDeMo", **files)
    frames = archive(*(f"./DiDeMo/{number}/frame_000{frame}.png" for number in range(2) for frame in range(3)))
    hub.create("TIGER-Lab/MMEB-V2", **{f"{FRAMES}/video_ret.tar.gz": frames, "other.tar.gz": b"not asked for"})
    return hub


def test_a_task_is_downloaded_and_read(didemo, tmp_path):
    place = download_task("DiDeMo", tmp_path / "mmeb")
    assert place == tmp_path / "mmeb" / "annotations" / "VLM2Vec" / "DiDeMo"
    (task,) = load_tasks(tmp_path / "mmeb")
    assert [len(candidate["video"]) for candidate in task.candidates] == [3, 3]
    assert task.data["revision"] == didemo.head("VLM2Vec/DiDeMo")
    assert not didemo.downloads["0.mp4"] and not didemo.downloads["other.tar.gz"]


def test_frames_are_found_where_the_published_archive_unpacks_them(didemo, tmp_path):
    packed = archive(*(f"data/ziyan/video_retrieval/DiDeMo/frames/{number}/0001.png" for number in range(2)))
    didemo.create("TIGER-Lab/MMEB-V2", **{f"{FRAMES}/video_ret.tar.gz": packed})
    download_task("DiDeMo", tmp_path)
    (task,) = load_tasks(tmp_path)
    assert all("video_retrieval/DiDeMo/frames" in frame for one in task.candidates for frame in one["video"])


def test_what_is_there_is_not_downloaded_again(didemo, tmp_path):
    download_task("DiDeMo", tmp_path)
    before = didemo.downloads.copy()
    download_task("DiDeMo", tmp_path)
    assert didemo.downloads == before
    assert didemo.downloads[f"{FRAMES}/video_ret.tar.gz"] == 1


def test_the_command_downloads_what_it_evaluates(didemo, tiny_checkpoint, one_thread, tmp_path, capsys):
    options = ["--tasks", "DiDeMo", "--modes", "never", "--device", "cpu", "--output", str(tmp_path / "results.json")]
    command = ["evaluate", "--model", str(tiny_checkpoint), "--mmeb", str(tmp_path / "mmeb"), *options]
    assert main(command) == 2
    assert "there is no folder" in capsys.readouterr().err and not didemo.downloads
    assert main([*command, "--download"]) == 0
    assert load_results(tmp_path / "results.json")["tasks"]["DiDeMo"]["n"] == 2
    assert "downloading DiDeMo (1 of 1)" in capsys.readouterr().err
    before = didemo.downloads.copy()
    assert before and main([*command, "--download"]) == 0 and didemo.downloads == before
    assert main([*command[:-1], str(tmp_path / "other.json"), "--tasks", "GQA", "--download"]) == 2
    assert "there is no repository ziyjiang/MMEB_Test_Instruct" in capsys.readouterr().err


def test_annotations_alone(didemo, tmp_path):
    download_task("DiDeMo", tmp_path, media=False)
    assert not didemo.downloads[f"{FRAMES}/video_ret.tar.gz"]
    assert load_tasks(tmp_path).names == ["DiDeMo"]


def test_a_copy_stays_at_its_commit(didemo, tmp_path):
    download_task("DiDeMo", tmp_path)
    first = didemo.head("VLM2Vec/DiDeMo")
    second = didemo.change("VLM2Vec/DiDeMo", **{"data/test-00000-of-00001.parquet": parquet([{"video": "0.mp4"}])})
    download_task("DiDeMo", tmp_path)
    assert load_tasks(tmp_path)[0].data["revision"] == first
    with pytest.raises(ValueError, match=rf"DiDeMo was begun with other .*revision was '{first}', is now '{second}'"):
        download_task("DiDeMo", tmp_path, revision="main")
    assert len(load_tasks(tmp_path)[0].queries) == 2


def test_a_removed_copy_is_made_anew(didemo, tmp_path):
    place = download_task("DiDeMo", tmp_path)
    for file in sorted(place.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    place.rmdir()
    head = didemo.change("VLM2Vec/DiDeMo", **{"README.md": b"# New\n"})
    download_task("DiDeMo", tmp_path)
    assert load_tasks(tmp_path)[0].data["revision"] == head


def test_a_cut_archive_goes_on(didemo, tmp_path):
    didemo.failing.add(f"{FRAMES}/video_ret.tar.gz")
    with pytest.raises(OSError):
        download_task("DiDeMo", tmp_path)
    didemo.failing.clear()
    download_task("DiDeMo", tmp_path)
    assert len(load_tasks(tmp_path)[0].candidates) == 2


def test_pictures_of_image_tasks(hub, tmp_path):
    row = {
        "qry_inst": "<|image_1|> What?", "qry_text": "", "qry_img_path": "GQA/1.png", "tgt_inst": "",
        "tgt_text": ["a", "b"], "tgt_img_path": ["", ""],
    }  # fmt: skip
    files = {f"{name}/test-00000-of-00001.parquet": parquet([row]) for name in ("GQA", "TextVQA")}
    hub.create("ziyjiang/MMEB_Test_Instruct", **{"README.md": readme("GQA", "TextVQA"), **files})
    hub.create("TIGER-Lab/MMEB-V2", **{"image-tasks/mmeb_v1.tar.gz": archive("MMEB/GQA/1.png", "MMEB/other/2.png")})
    download_task("GQA", tmp_path)
    assert (tmp_path / "image-tasks" / "GQA" / "1.png").is_file()
    assert not (tmp_path / "image-tasks" / "MMEB").exists()
    assert [task.name for task in load_tasks(tmp_path, ["TextVQA", "GQA"])] == ["GQA", "TextVQA"]


def test_pages_need_no_archive(hub, tmp_path):
    tables = {
        "queries": [{"query-id": 1, "query": "what"}],
        "corpus": [{"corpus-id": number, "image": {"bytes": b"picture", "path": None}} for number in range(2)],
        "qrels": [{"query-id": 1, "corpus-id": 0, "score": 1}],
    }
    files = {f"{name}/test-00000-of-00001.parquet": parquet(rows) for name, rows in tables.items()}
    hub.create("VLM2Vec/ViDoSeek-page-fixed", **{"README.md": readme(*tables), **files})
    download_task("ViDoSeek-page-fixed", tmp_path)
    assert len(load_tasks(tmp_path)[0].candidates) == 2


def test_what_the_hub_lacks_is_said(hub, tmp_path):
    with pytest.raises(HubError, match="there is no repository VLM2Vec/DiDeMo"):
        download_task("DiDeMo", tmp_path)
    assert not list(tmp_path.rglob("*.json"))
    with pytest.raises(ValueError, match="no task 'Didemo'; did you mean DiDeMo"):
        download_task("Didemo", tmp_path)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    file = tmp_path / "frames.tar.gz"
    file.write_bytes(archive(*(f"video_qa/NExTQA/{number}/0001.png" for number in range(20)), size=64))
    return file


def unpacked(target: Path) -> list[str]:
    return sorted(file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file())


def test_an_archive_in_parts(packed, tmp_path):
    content, parts = packed.read_bytes(), []
    for number, start in enumerate(range(0, len(content), 9999)):
        parts.append(tmp_path / f"part-{number:02}")
        parts[-1].write_bytes(content[start : start + 9999])
    assert len(parts) > 3
    unpack(parts, tmp_path / "out", "video_qa")
    assert len(unpacked(tmp_path / "out")) == 20
    unpack([packed], tmp_path / "whole", "video_qa")
    for name in unpacked(tmp_path / "whole"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(ValueError, match="part-00 can't be unpacked into .*short"):
        unpack(parts[:-1], tmp_path / "short")


def test_unpacking_goes_on_where_it_was_cut(packed, tmp_path):
    target = tmp_path / "out"
    unpack([packed], target, "video_qa")
    names = unpacked(target)
    kept, cut = target / names[0], target / names[1]
    before = kept.stat().st_mtime_ns
    whole = cut.read_bytes()
    cut.write_bytes(whole[:100])
    (target / names[2]).unlink()
    unpack([packed], target, "video_qa")
    assert unpacked(target) == names and cut.read_bytes() == whole
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("content", [b"no archive", b"\x1f\x8b broken", b""])
def test_no_archive(content, tmp_path):
    file = tmp_path / "frames.tar.gz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="frames.tar.gz can't be unpacked .* Remove it, and download it again"):
        unpack([file], tmp_path / "out")


@pytest.mark.parametrize("name", ["../outside.png", "video_qa/../../outside.png"])
def test_nothing_lands_outside(name, tmp_path):
    file = tmp_path / "evil.tar.gz"
    file.write_bytes(archive(name))
    with pytest.raises(ValueError, match="can't be unpacked"):
        unpack([file], tmp_path / "out", "video_qa")
    assert not (tmp_path / "outside.png").exists()


def test_the_note_says_what_was_unpacked(didemo, tmp_path):
    download_task("DiDeMo", tmp_path)
    note = json.loads((tmp_path / FRAMES / "video_ret" / ".unpacked.json").read_text())
    assert note == {"archive": [f"{FRAMES}/video_ret.tar.gz"]}
