"""An index holds what its source holds, whatever happened before; nothing is embedded twice."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import Image
from tests.index.conftest import COLOURS, pdf_bytes

from mmemb_r1 import MMEmbR1
from mmemb_r1.index import Index, build_index
from mmemb_r1.index.building import LOCK, SETTINGS
from mmemb_r1.index.store import open_rows
from mmemb_r1.tiny import build_tiny_vlm

IDS = [f"colours/{name}.png" for name in sorted(COLOURS)]
IDS = sorted([*IDS, "clip.mp4", "it's a note.txt", "report.pdf#page=1", "report.pdf#page=2"])


def rows(directory):
    found = open_rows(directory).to_arrow().to_pylist()
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: row for row in sorted(found, key=lambda row: row["id"])}


def counts(summary):
    return summary.added, summary.changed, summary.deleted, summary.unchanged, summary.embedded


def test_a_folder_of_pictures_a_video_a_pdf_and_a_text(model, media, tmp_path):
    (media / ".hidden").mkdir()
    Image.new("RGB", (9, 9)).save(media / ".hidden" / "x.png")
    (media / "data.xyz").write_text("?")
    summary = build_index(media, model, tmp_path / "index")
    assert counts(summary) == (len(IDS), 0, 0, 0, len(IDS))
    assert (summary.unreadable, summary.passed_over) == ([], {".xyz": 1})
    found = rows(tmp_path / "index")
    assert list(found) == IDS
    kinds = {name: row["kind"] for name, row in found.items()}
    assert [kinds[name] for name in IDS if "png" not in name] == ["video", "text", "page", "page"]
    page = found["report.pdf#page=1"]
    assert (page["page"], page["path"], page["text"]) == (1, "report.pdf", "The harbour of Lima")
    assert found["it's a note.txt"]["text"] == "Rain in the evening"
    for name, row in found.items():
        if row["kind"] == "text":
            assert row["thumbnail"] is None
            continue
        small = Image.open(io.BytesIO(row["thumbnail"]))
        assert small.format == "JPEG" and max(small.size) <= 256, name
    assert Image.open(io.BytesIO(page["thumbnail"])).size == (256, 128)
    red = Image.open(io.BytesIO(found["colours/red.png"]["thumbnail"]))
    assert np.abs(np.subtract(red.getpixel((5, 5)), (255, 0, 0))).max() < 5


def test_vectors_are_those_of_encode_document_of_unit_norm(model, media, tmp_path):
    build_index(media, model, tmp_path / "index", shard_size=4)
    found = rows(tmp_path / "index")
    names = ["colours/red.png", "clip.mp4", "it's a note.txt"]
    values = [{"image": str(media / names[0])}, {"video": str(media / names[1])}, {"text": "Rain in the evening"}]
    expected = model.encode_document(values)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(np.array([found[name]["vector"] for name in names]) - expected).max() < 1e-5
    assert not any(row["reasoned"] for row in found.values())
    build_index(media, model, tmp_path / "thought", reasoning="always")
    thought = rows(tmp_path / "thought")
    assert all(row["reasoned"] and row["rationale"] for row in thought.values())
    expected = model.encode_document(values, reasoning="always")
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(np.array([thought[name]["vector"] for name in names]) - expected).max() < 1e-5


def test_only_what_is_new_or_changed_is_embedded(model, media, tmp_path, embedded):
    build_index(media, model, tmp_path / "index")
    embedded.clear()
    assert counts(build_index(media, model, tmp_path / "index")) == (0, 0, 0, len(IDS), 0)
    assert embedded == []
    Image.new("RGB", (64, 48), "white").save(media / "new.png")
    Image.new("RGB", (64, 48), "black").save(media / "colours" / "red.png")
    (media / "it's a note.txt").unlink()
    (media / "colours" / "blue.png").rename(media / "sea.png")  # the same content
    (media / "report.pdf").write_bytes(pdf_bytes("The harbour of Lima"))  # one page less, and another file
    summary = build_index(media, model, tmp_path / "index")
    # added: new, sea; changed: red, page 1; deleted: the note, blue, page 2
    assert counts(summary) == (2, 2, 3, len(IDS) - 5, 3)
    pictures = [value["image"] for value in embedded]
    assert [picture for picture in pictures if isinstance(picture, str)] == [
        str(media / "colours" / "red.png"),
        str(media / "new.png"),
    ]
    left = [name for name in IDS if name not in ("it's a note.txt", "colours/blue.png", "report.pdf#page=2")]
    assert list(rows(tmp_path / "index")) == sorted([*left, "new.png", "sea.png"])
    fresh = tmp_path / "fresh"
    build_index(media, model, fresh)
    for name, row in rows(fresh).items():
        there = rows(tmp_path / "index")[name]
        assert np.allclose(there.pop("vector"), row.pop("vector"), atol=1e-5)
        assert there.pop("gate_prob") == pytest.approx(row.pop("gate_prob"), abs=1e-5)
        assert there == row


def test_what_cannot_be_read_is_listed_and_the_others_are_there(model, media, tmp_path):
    (media / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (media / "photo.heic").write_bytes(b"0")
    (media / "empty.txt").write_text(" \n")
    (media / "latin.txt").write_bytes("Größe".encode("latin-1"))
    (media / "damaged.pdf").write_bytes(b"%PDF-1.4 and no more")
    (media / "cut.mp4").write_bytes((media / "clip.mp4").read_bytes()[:900])
    summary = build_index(media, model, tmp_path / "index")
    reasons = dict(summary.unreadable)
    assert sorted(reasons) == ["broken.png", "cut.mp4", "damaged.pdf", "empty.txt", "latin.txt", "photo.heic"]
    assert "convert it first" in reasons["photo.heic"] and "UTF-8" in reasons["latin.txt"]
    assert list(rows(tmp_path / "index")) == IDS
    # tried again; what was there and is broken now is no longer found as what it was
    Image.new("RGB", (64, 48), "white").save(media / "broken.png")
    (media / "colours" / "red.png").write_bytes(b"")
    summary = build_index(media, model, tmp_path / "index")
    assert counts(summary) == (1, 0, 1, len(IDS) - 1, 1)
    assert "colours/red.png" in dict(summary.unreadable)


def test_what_only_the_model_finds_unreadable_takes_nobody_with_it(model, tmp_path):
    from datasets import Dataset

    Image.new("RGB", (32, 32), "red").save(tmp_path / "good.png")
    pictures = [["good.png"], ["good.png", "missing.png"], ["good.png", "good.png"]]
    table = Dataset.from_dict({"id": ["one", "two", "three"], "image": pictures})
    summary = build_index(table, model, tmp_path / "index", base=tmp_path)
    assert [one.id for one in summary.unreadable] == ["two"]
    assert list(rows(tmp_path / "index")) == ["one", "three"]


@pytest.mark.parametrize("after", [1, 3])
def test_a_run_that_was_interrupted_goes_on(model, media, tmp_path, monkeypatch, embedded, after):
    explain, calls = MMEmbR1.explain, []

    def interrupted(self, values, **options):
        calls.append(len(values))
        if len(calls) > after:
            raise KeyboardInterrupt
        return explain(self, values, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MMEmbR1, "explain", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_index(media, model, tmp_path / "index", shard_size=2)
    assert len(rows(tmp_path / "index")) == len(embedded) == 2 * after
    summary = build_index(media, model, tmp_path / "index", shard_size=2)
    assert counts(summary) == (len(IDS) - 2 * after, 0, 0, 2 * after, len(IDS) - 2 * after)
    assert list(rows(tmp_path / "index")) == IDS and len(embedded) == len(IDS)


def test_what_a_killed_process_left_of_a_table_is_no_table(model, media, tmp_path):
    (tmp_path / "index" / "items.lance" / "_versions").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no index; make one: mmemb-r1 index"):
        Index.open(tmp_path / "index", model)
    build_index(media, model, tmp_path / "index")
    assert len(Index.open(tmp_path / "index", model)) == len(IDS)


def test_another_model_source_or_options_are_refused(model, media, tmp_path):
    index = tmp_path / "index"
    build_index(media, model, index)
    other = MMEmbR1.from_vlm(*build_tiny_vlm("qwen3_vl"))
    with pytest.raises(ValueError, match="checkpoint was .* Name another folder for the index"):
        build_index(media, other, index)
    with pytest.raises(ValueError, match="reasoning was 'never', is now 'always'"):
        build_index(media, model, index, reasoning="always")
    with pytest.raises(ValueError, match="truncate_dim was None, is now 8"):
        build_index(media, model, index, truncate_dim=8)
    media.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="say moved=True"):
        build_index(tmp_path / "elsewhere", model, index)
    assert counts(build_index(tmp_path / "elsewhere", model, index, moved=True)) == (0, 0, 0, len(IDS), 0)
    assert Index.open(index, model).source == str(tmp_path / "elsewhere")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="holds nothing to index"):  # a disk that is not there
        build_index(tmp_path / "nothing", model, index, moved=True)
    with pytest.raises(ValueError, match="there is no such file or folder"):
        build_index(tmp_path / "missing", model, index)
    with pytest.raises(ValueError, match="precision='int4' is not known; allowed: float32, int8, binary"):
        build_index(media, model, index, precision="int4")
    with pytest.raises(ValueError, match="convert_to_tensor can't be chosen here"):
        build_index(media, model, index, convert_to_tensor=True)


def test_settings_of_a_run_that_wrote_nothing_bind_nobody(model, media, tmp_path):
    other = MMEmbR1.from_vlm(*build_tiny_vlm("qwen3_vl"))
    for path in list(media.rglob("*.*")):
        path.write_bytes(b"")
    assert len(build_index(media, other, tmp_path / "index").unreadable) == 9
    assert not (tmp_path / "index" / SETTINGS).exists()
    Image.new("RGB", (64, 48)).save(media / "a.png")
    assert build_index(media, model, tmp_path / "index").added == 1


def test_two_processes_do_not_write_at_once(model, media, tmp_path):
    from filelock import FileLock

    (tmp_path / "index").mkdir()
    held, done = threading.Event(), threading.Event()

    def hold():
        with FileLock(tmp_path / "index" / LOCK):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        with pytest.raises(ValueError, match="another process writes to the index"):
            build_index(media, model, tmp_path / "index")
    finally:
        done.set()
        thread.join()
    assert build_index(media, model, tmp_path / "index").added == len(IDS)


def test_the_index_may_lie_in_what_it_is_of(model, media):
    build_index(media, model, media / "index")
    assert counts(build_index(media, model, media / "index")) == (0, 0, 0, len(IDS), 0)
