"""Pictures and frames: no path of the annotations leads out of the local copy."""

from __future__ import annotations

import re
import shutil

import pytest

from mmemb_r1.evaluation.mmeb import task_named
from mmemb_r1.evaluation.mmeb.annotations import Media


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
        (copy.root / task.media).mkdir(parents=True)
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
