"""Pictures and frames: no path of the annotations leads out of the local copy."""

from __future__ import annotations

import re
import shutil

import pytest

from mmemb_r1.evaluation.mmeb import task_named
from mmemb_r1.evaluation.mmeb.media import Media


@pytest.fixture
def outside(copy):
    """A picture, and a folder of them, beside the copy."""
    picture = copy.picture("../secret.png")
    copy.frames("../secret")
    return picture


def refused(task, what, name):
    return rf"^{task}: the annotations name the {what} {re.escape(repr(str(name)))}, which leads out of the local copy"


@pytest.mark.parametrize("absolute", [False, True])
def test_no_path_leads_out_of_the_copy(absolute, copy, outside):
    """What asks for a path: pictures, frames and folders of clips."""
    for name, paths in (
        ("GQA", {"picture": "../../secret.png"}),
        ("DiDeMo", {"folder of frames": "../../../../../secret", "folder of clips": "../../../../../secret"}),
    ):
        task = task_named(name)
        copy.picture(f"{task.media}/there.jpg")
        media = Media(task, copy.root, 8)
        ask = {"picture": media.picture, "folder of frames": media.frames, "folder of clips": media.folders}
        for what, path in paths.items():
            there = outside if what == "picture" else outside.with_suffix("")
            assert there.exists() and (media.root / path).exists(), "it is there to be had"
            given = str(there) if absolute else path
            with pytest.raises(ValueError, match=refused(name, what, given)):
                ask[what](given)
        assert not media.sizes


def test_an_absolute_path_into_the_copy_is_refused_too(copy, miniature):
    """It would be another one wherever else the copy lies."""
    miniature("GQA")
    media = Media(task_named("GQA"), copy.root, 8)
    path = media.picture("GQA/0.jpg")
    with pytest.raises(ValueError, match=refused("GQA", "picture", path)):
        media.picture(path)


def test_rows_of_every_kind_are_looked_at(copy, rows_of, miniature, outside):
    rows = rows_of("GQA")
    rows[1]["qry_img_path"] = "../../secret.png"
    copy.rows("GQA", rows)
    with pytest.raises(ValueError, match=refused("GQA", "picture", "../../secret.png")):
        copy.load("GQA")
    task = miniature("ViDoSeek-doc", pages_inside=False)
    corpus = [{"corpus-id": one} for one in (0, 1, 2, 3, 4, f"{'../' * (len(task.media.split('/')) + 1)}secret")]
    copy.rows("ViDoSeek-doc", [{"corpus-id": str(row["corpus-id"])} for row in corpus], "corpus")
    with pytest.raises(ValueError, match="^ViDoSeek-doc: the annotations name the picture .*secret.png', which leads"):
        copy.load("ViDoSeek-doc")


def test_a_link_out_of_the_copy_is_refused(copy, miniature, outside):
    miniature("GQA")
    (copy.root / "image-tasks" / "GQA" / "link.jpg").symlink_to(outside)
    with pytest.raises(ValueError, match=refused("GQA", "picture", "GQA/link.jpg")):
        Media(task_named("GQA"), copy.root, 8).picture("GQA/link.jpg")


def test_the_media_may_lie_on_another_disk(copy, miniature, tmp_path):
    miniature("GQA")
    shutil.move(copy.root / "image-tasks", tmp_path / "disk")
    (copy.root / "image-tasks").symlink_to(tmp_path / "disk")
    assert len(copy.load("GQA").queries) == 3


RETRIEVAL = "video-tasks/frames/video_ret/data/ziyan/video_retrieval/{}/frames"
PACKED = {
    "EgoSchema": "video-tasks/frames/video_qa/egoschema",
    "Charades-STA": "video-tasks/frames/video_mret/Charades-STA",
    **{name: RETRIEVAL.format(name) for name in ("DiDeMo", "MSR-VTT", "MSVD", "VATEX", "YouCook2")},
}


@pytest.mark.parametrize("name", PACKED)
def test_frames_are_found_as_the_archives_pack_them(name, copy, miniature):
    """Seven tasks' folders are called otherwise in the published archives than in the benchmark's own evaluation."""
    task = miniature(name)
    there, packed = copy.root / task.media, copy.root / PACKED[name]
    before = copy.load(name)
    packed.parent.mkdir(parents=True, exist_ok=True)
    there.rename(packed)
    there.mkdir()  # an empty one is none
    after = copy.load(name)
    assert after.relevance == before.relevance
    for side in ("queries", "candidates"):
        moved = [value | {"video": [frame.replace(str(there), str(packed)) for frame in value["video"]]}
                 if "video" in value else value for value in getattr(before, side)]  # fmt: skip
        assert list(getattr(after, side)) == moved
    shutil.rmtree(packed)
    with pytest.raises(ValueError, match=f"^{name}: the folder {there} of .*; nor is anything in {packed}. Unpack "):
        copy.load(name)


def test_all_that_is_missing_is_counted(copy, miniature):
    task = miniature("DiDeMo")
    for number in range(2):
        shutil.rmtree(copy.root / task.media / f"{number}x")
    archive, place = "video-tasks/frames/video_ret.tar.gz", copy.root / "video-tasks/frames/video_ret"
    told = (
        f"DiDeMo: the folder {copy.root / task.media / '0x'} of a video's frames is missing. 2 are missing or empty, "
        f"of the 3 pictures and folders of frames looked for in {copy.root / task.media}. Unpack {archive} of "
        f"TIGER-Lab/MMEB-V2 into {place}, or call download_task('DiDeMo', folder)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        copy.load("DiDeMo")
    (place / ".unpacked.json").write_text("{}")  # without it nothing would be unpacked again
    with pytest.raises(ValueError, match=f"or remove {place / '.unpacked.json'} and call download_task"):
        copy.load("DiDeMo")
