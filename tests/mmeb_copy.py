"""Miniatures of every contract of MMEB-V2, as fixtures: three queries each, pictures of a few pixels."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from PIL import Image

from mmemb_r1.evaluation.mmeb import load_tasks, task_named
from mmemb_r1.evaluation.mmeb.catalogue import MVBENCH, MMEBTask
from mmemb_r1.evaluation.mmeb.video import LABELS
from mmemb_r1.evaluation.mmeb.visdoc import page_file
from mmemb_r1.evaluation.tasks import RetrievalTask

Row = Mapping[str, Any]


class Copy:
    """A local copy of MMEB-V2, for tests to fill."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def dataset(self, name: str) -> Path:
        return self.root / "annotations" / task_named(name).dataset

    def rows(self, name: str, rows: Sequence[Row], config: str | None = None, suffix: str = ".parquet") -> Path:
        """Write the annotations of a task, as a copy of its Hub dataset has them: README.md says what is where."""
        task, place = task_named(name), self.dataset(name)
        config = config or task.config
        file = place / (config or "data") / f"{task.split}-00000-of-00001{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file, row_group_size=2)
        else:
            file.write_text(json.dumps(list(rows)), encoding="utf-8")
        readme = place / "README.md"
        known = yaml.safe_load(readme.read_text(encoding="utf-8").split("---")[1]) if readme.exists() else {}
        if config:
            files = [{"split": task.split, "path": file.relative_to(place).as_posix()}]
            others = [entry for entry in known.get("configs", []) if entry["config_name"] != config]
            known["configs"] = [*others, {"config_name": config, "data_files": files}]
        readme.write_text(f"---\n{yaml.safe_dump(known)}---\n", encoding="utf-8")
        return file

    def picture(self, path: str, shade: int = 0) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(shade, "PNG" if path.endswith("png") else "JPEG"))
        return file

    def frames(self, path: str, count: int = 3, first: int = 0) -> Path:
        """Frames that say by their shade which one they are: a file's name is one more than its place."""
        for place in range(count):
            self.picture(f"{path}/frame_{place + 1}.jpg", (first + place) % 256)
        return self.root / path

    def load(self, name: str, **options: Any) -> RetrievalTask:
        (task,) = load_tasks(self.root, [name], **options)
        return task


def picture(shade: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (shade, shade, shade)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    (tmp_path / "mmeb").mkdir()
    return Copy(tmp_path / "mmeb")


def image_rows(task: MMEBTask, copy: Copy) -> list[Row]:
    """Query `n` is about picture `n`; its candidates are three, the right one first."""
    to_text = task.layout == "image-text"
    for number in range(3):
        copy.picture(f"image-tasks/{task.name}/{number}.jpg", 50 * number)
    return [
        {
            "qry_inst": "<|image_1|> Answer the question.\n",
            "qry_text": f"question {number}",
            "qry_img_path": f"{task.name}/{number}.jpg",
            "tgt_inst": None if to_text else "<|image_1|> Represent the given image.\n",
            "tgt_text": [f"answer {other}" if to_text else "" for other in order],
            "tgt_img_path": ["" if to_text else f"{task.name}/{other}.jpg" for other in order],
        }
        for number, order in enumerate([(0, 1, 2), (1, 2, 0), (2, 0, 1)])
    ]


def video_rows(task: MMEBTask, copy: Copy) -> list[Row]:
    """Rows of any layout but MVBench's, and the frames that they name."""
    if task.layout == "moments":
        for number in range(3):
            copy.frames(f"{task.media}/v{number}/query", 12)
            for clip in ("positive", *(f"negative_{other}" for other in range(9))):
                copy.frames(f"{task.media}/v{number}/{clip}", 2, first=20 * number)
        return [{"query": f"scene {number}", "video_path": f"videos/v{number}.mp4"} for number in range(3)]
    if task.layout == "momentseeker":
        for number in range(4):
            copy.frames(f"{task.media}/video_frames/movie_{number}.0", first=20 * number)
        copy.picture(f"{task.media}/query_shown.jpg", 9)
        clips = [{"output_path": f"movie/{number}.0.mp4"} for number in range(4)]
        return [
            {"query": f"moment {row}", "input_frames": shown, "positive_frames": right, "negative_frames": wrong}
            for row, (shown, right, wrong) in enumerate(
                [
                    ("", clips[:1], clips[1:]),
                    ("shown.jpg", clips[1:3], clips[3:]),
                    ("movie/0.0.mp4", clips[2:3], clips[3:]),
                ]
            )
        ]
    rows = []
    for number in range(3):
        video = {"activitynetqa": f"v_{number}x"}.get(task.layout, f"{number}x")
        copy.frames(f"{task.media}/{video}", 10, first=20 * number)
        answers = [f"{task.name} {option}{number}" for option in "vwxyz"]
        if task.layout == "video-labels":
            row = {"video_id": f"{number}x", "pos_text": LABELS[task.name][number]}
        elif task.layout == "video-choices":
            row = {
                "video_id": f"{number}x",
                "pos_text": f"doing {number}",
                "neg_text": ["doing 0", "doing 1", "doing 2"],
            }
        elif task.layout == "video-search":
            video_column = task.columns.get("video") or task.columns["file"]
            path = f"{number}x" if "video" in task.columns else f"videos/{number}x.mp4"
            texts = [f"caption {number}", "another"] if task.name in ("MSVD", "VATEX") else f"caption {number}"
            row = {video_column: path, task.columns["text"]: texts}
        elif task.layout == "nextqa":
            options = {f"a{place}": answer for place, answer in enumerate(answers)}
            row = {"video": f"{number}x", "question": "what", "answer": number, **options}
        elif task.layout == "video-mme":
            options = [f"{letter}. {answer}." for letter, answer in zip("ABCD", answers, strict=False)]
            row = {"videoID": f"{number}x", "question": "What?", "options": options, "answer": "ABCD"[number]}
        elif task.layout == "egoschema":
            options = [f"{letter}. {answer}" for letter, answer in zip("ABCDE", answers, strict=True)]
            row = {"video_idx": f"{number}x", "question": "What?", "option": options, "answer": str(number)}
        else:
            row = {"video_name": f"{number}x", "question": "is it", "answer": ["yes", "no", "no"][number]}
        rows.append(row)
    return rows


def mvbench(task: MMEBTask, copy: Copy) -> None:
    for subset in MVBENCH:
        copy.frames(f"{task.media}/{subset}/clip.mp4", 2)
        options = ["up", "down", "left"]
        row = {"video": "clip.mp4", "question": "Where?", "candidates": options, "answer": "down"}
        copy.rows(task.name, [row], subset, suffix=".json")


def visdoc(task: MMEBTask, copy: Copy, pages_inside: bool = True) -> None:
    ids = [f"{'page ' * 20}{number}.jpg" if task.meta_task == "visdoc/visrag" else number for number in range(5)]
    pages: list[dict[str, Any]] = [{"corpus-id": one} for one in ids]
    for number, page in enumerate(pages):
        if pages_inside:
            page["image"] = {"bytes": picture(40 * number), "path": None}
        else:
            copy.picture(f"{task.media}/{page_file(str(page['corpus-id']), task.meta_task)}", 40 * number)
    languages = ["english", "english", "french", "english"]
    queries = [
        {"query-id": number, "query": f"question {number}", "language": language}
        for number, language in enumerate(languages)
    ]
    if not task.language:
        queries = queries[:3]
    grades = [(0, 0, 1), (0, 1, 2), (0, 2, 0), (1, 1, 1), (1, 1, 2), (2, 3, 1), (3, 4, 1)]
    qrels = [{"query-id": query, "corpus-id": ids[page], "score": score} for query, page, score in grades]
    for config, rows in (("queries", queries), ("corpus", pages), ("qrels", qrels)):
        copy.rows(task.name, rows, config)


@pytest.fixture
def miniature(copy: Copy) -> Callable[..., MMEBTask]:
    """`miniature(name)`: put a task into the copy."""

    def fill(name: str, **options: Any) -> MMEBTask:
        task = task_named(name)
        if task.layout == "mvbench":
            mvbench(task, copy)
        elif task.modality == "visdoc":
            visdoc(task, copy, **options)
        else:
            rows = image_rows(task, copy) if task.modality == "image" else video_rows(task, copy)
            copy.rows(name, rows)
        return task

    return fill


@pytest.fixture
def rows_of(copy: Copy, miniature: Callable[..., MMEBTask]) -> Callable[[str], list[dict[str, Any]]]:
    """`rows_of(name)`: the same, and the rows, to be changed and written again."""

    def fill(name: str) -> list[dict[str, Any]]:
        task = miniature(name)
        rows = image_rows(task, copy) if task.modality == "image" else video_rows(task, copy)
        return [dict(row) for row in rows]

    return fill
