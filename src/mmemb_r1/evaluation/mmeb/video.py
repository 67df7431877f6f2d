"""Read the video annotations. A video is a folder of frames; each dataset names its columns itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from mmemb_r1.evaluation.mmeb.annotations import read_annotations
from mmemb_r1.evaluation.mmeb.building import TaskBuilder
from mmemb_r1.evaluation.mmeb.catalogue import MVBENCH

# The classes of four datasets, as their annotations write them: candidates even where no video shows them.
LABELS: Mapping[str, list[str]] = json.loads(files(__package__).joinpath("labels.json").read_text(encoding="utf-8"))
NUM_CLIPS = 10  # that a moment competes among


def _rows(builder: TaskBuilder, *columns: str) -> list[tuple[str, dict[str, Any]]]:
    """Read the rows of a task, each with the id of its query."""
    task = builder.task
    if task.layout == "mvbench":
        return [
            (f"{subset}/{number}", {**row, "subset": subset})
            for subset in MVBENCH
            for number, row in enumerate(read_annotations(task, builder.folder, subset, columns))
        ]
    rows = read_annotations(task, builder.folder, task.config, columns)
    return [(str(number), row) for number, row in enumerate(rows[: task.num_queries if task.first_rows else None])]


def read_video_labels(builder: TaskBuilder) -> None:
    """Read which of all the dataset's classes a video shows: `video_id`, `pos_text`."""
    labels = {label: builder.candidate(label, text=label) for label in LABELS[builder.task.name]}
    for query_id, row in _rows(builder, "video_id", "pos_text"):
        label, video = row["pos_text"] or "", str(row["video_id"])
        if label not in labels:
            builder.note_odd(query_id, "its class is none of the task's, and competes with them")
            labels[label] = builder.candidate(label, text=label)
        builder.query(query_id, {"video": builder.video(video)}, [labels[label]], {labels[label]: 1.0}, video)


def read_video_choices(builder: TaskBuilder) -> None:
    """Read which of its row's classes a video shows: `video_id`, `pos_text`, and all of them in `neg_text`."""
    for query_id, row in _rows(builder, "video_id", "pos_text", "neg_text"):
        texts, video = row["neg_text"] or [], str(row["video_id"])
        pool = {text: builder.candidate(text, text=text) for text in texts}
        if not pool:
            raise builder.error(query_id, "it has no candidates (neg_text)")
        right = {pool[text]: 1.0 for text in texts if text == row["pos_text"]}
        builder.query(query_id, {"video": builder.video(video)}, [pool[text] for text in texts], right, video)


def read_video_search(builder: TaskBuilder) -> None:
    """Read which of all videos a text tells of; of several captions the first."""
    columns = builder.task.columns
    video_column, text_column = columns.get("video", columns.get("file", "")), columns["text"]
    for query_id, row in _rows(builder, video_column, text_column):
        text = row[text_column] if isinstance(row[text_column], str) else next(iter(row[text_column] or []), "")
        video = str(row[video_column])
        if "file" in columns:
            video = PurePosixPath(video).stem
        right = builder.candidate(video, video=builder.video(video))
        builder.query(query_id, {"text": text.strip()}, [right], {right: 1.0}, video)


class VideoQuestion(NamedTuple):
    """Holds what a row of a dataset of questions says."""

    video: str  # folder of its frames
    text: str  # the question, with the options to choose from
    options: Sequence[str]  # as they compete
    right: Sequence[int]  # which of them are the answer; none if the row names none of them


def _nextqa(row: Mapping[str, Any]) -> VideoQuestion:
    options = [row[f"a{number}"] for number in range(5)]
    text, _ = _lettered(row["question"], options)
    return VideoQuestion(str(row["video"]), text, options, [_place(row["answer"], options)])


def _mvbench(row: Mapping[str, Any]) -> VideoQuestion:
    text, options = _lettered(row["question"], row["candidates"])
    right = [place for place, option in enumerate(row["candidates"]) if option == row["answer"]]
    return VideoQuestion(f"{row['subset']}/{row['video']}", text, options, right)


def _with_letters(video: str, options: str, row: Mapping[str, Any]) -> VideoQuestion:
    """Parse a row whose options have letters already, from the columns of these names."""
    text = "\n".join([row["question"], *row[options]])
    return VideoQuestion(str(row[video]), text, _unlettered(row[options]), [_place(row["answer"], row[options])])


def _activitynetqa(row: Mapping[str, Any]) -> VideoQuestion:
    options = ["yes", "no"]
    right = [place for place, option in enumerate(options) if option == row["answer"]]
    return VideoQuestion(f"v_{row['video_name']}", f"{row['question'].rstrip('? ')}? (A) yes; (B) no.", options, right)


def _lettered(question: str, options: Sequence[str]) -> tuple[str, list[str]]:
    """
    Write a question with its options, and the options, all with letters.

    >>> _lettered("Who?", ["he", "she"])
    ('Who?\\nOptions:\\n(A) he\\n(B) she', ['(A) he', '(B) she'])
    """
    marked = [f"({chr(ord('A') + place)}) {option}" for place, option in enumerate(options)]
    return "\n".join([question, "Options:", *marked]), marked


def _unlettered(options: Sequence[str]) -> list[str]:
    """
    Strip options of their letters and the full stops around them.

    >>> _unlettered(["A. In the kitchen.", "B. 3.5"])
    ['In the kitchen', '3.5']
    """
    return [re.sub(r"^[A-Z]\.\s+", "", option).strip(". ") for option in options]


def _place(answer: Any, options: Sequence[str]) -> int:
    """
    Find which option an answer names by its letter or its number from 0; -1 if none of them.

    >>> _place("B", ["x", "y"]), _place("1", ["x", "y"]), _place(7, ["x", "y"])
    (1, 1, -1)
    """
    text = str(answer).strip()
    place = int(text) if text.isdecimal() else ord(text) - ord("A") if len(text) == 1 else -1
    return place if 0 <= place < len(options) else -1


QUESTIONS: Mapping[str, tuple[Callable[[Mapping[str, Any]], VideoQuestion], tuple[str, ...]]] = {
    "nextqa": (_nextqa, ("video", "question", "answer", "a0", "a1", "a2", "a3", "a4")),
    "mvbench": (_mvbench, ("video", "question", "answer", "candidates")),
    "video-mme": (partial(_with_letters, "videoID", "options"), ("videoID", "question", "options", "answer")),
    "egoschema": (partial(_with_letters, "video_idx", "option"), ("video_idx", "question", "option", "answer")),
    "activitynetqa": (_activitynetqa, ("video_name", "question", "answer")),
}


def read_video_questions(builder: TaskBuilder) -> None:
    """Read which of its row's answers is right, seen the video."""
    parse, columns = QUESTIONS[builder.task.layout]
    for query_id, row in _rows(builder, *columns):
        video, text, options, right = parse(row)
        if not options:
            raise builder.error(query_id, "it has no candidates")
        pool = [builder.candidate(option, text=option) for option in options]
        value = {"text": f"Question: {text}", "video": builder.video(video)}
        builder.query(query_id, value, pool, {pool[place]: 1.0 for place in right if place >= 0}, video)


def read_moments(builder: TaskBuilder) -> None:
    """
    Read which clip of a video a text tells of: `query`, `video_path`. In the video's folder are folders of frames:
    `query` holds the whole video, `positive*` the right clip, all the others wrong ones.
    """
    for query_id, row in _rows(builder, "query", "video_path"):
        video = PurePosixPath(row["video_path"]).stem
        clips = [name for name in builder.media.folders(video) if name != "query"]
        if len(clips) != NUM_CLIPS:
            builder.note_odd(video, f"another number of clips than {NUM_CLIPS}; some may be missing in the local copy")
        ids = {name: builder.candidate(f"{video}/{name}", video=builder.video(f"{video}/{name}")) for name in clips}
        right = {ids[name]: 1.0 for name in clips if name.startswith("positive")}
        if not right:
            builder.media.note_missing(video, "holds no clip that is called positive")
        value = {"text": row["query"], "video": builder.video(f"{video}/query")}
        builder.query(query_id, value, ids.values(), right, video)


SEEK_TEXT = "Find the clip that corresponds to the given text:"
SEEK_IMAGE = "Select the video clip that aligns with the given text and image:"
SEEK_VIDEO = "Find the clip that corresponds to the given sentence and video segment:"


def read_momentseeker(builder: TaskBuilder) -> None:
    """
    Read which clips a text tells of, alone or with a picture or a video: `query`, `input_frames`, and the paths of
    clips in `positive_frames` and `negative_frames`. Several clips may be right.
    """
    columns = ("query", "input_frames", "positive_frames", "negative_frames")
    for query_id, row in _rows(builder, *columns):
        shown = row["input_frames"] or ""
        value: dict[str, Any] = {"instruction": SEEK_TEXT, "text": row["query"]}
        if shown.endswith(".mp4"):
            value |= {"instruction": SEEK_VIDEO, "video": builder.video(_clip_folder(shown), may_be_none=True)}
            if not value["video"]:
                builder.note_odd(query_id, "the video it shows has no frames: its text asks alone")
        elif shown.endswith(".jpg"):
            value |= {"instruction": SEEK_IMAGE, "image": builder.media.picture(f"query_{shown}")}
        elif shown:
            builder.note_odd(query_id, "it shows neither a .jpg nor a .mp4: its text asks alone")
        right, wrong = (
            [_clip(builder, query_id, clip) for clip in row[column] or []]
            for column in ("positive_frames", "negative_frames")
        )
        if not right and not wrong:
            raise builder.error(query_id, "it has no clips (positive_frames, negative_frames)")
        builder.query(query_id, value, [*right, *wrong], dict.fromkeys(right, 1.0), query_id)


def _clip(builder: TaskBuilder, query_id: str, clip: Mapping[str, Any]) -> str:
    if not clip.get("output_path"):
        raise builder.error(query_id, "a clip has no output_path")
    name = _clip_folder(clip["output_path"])
    return builder.candidate(name, video=builder.video(name))


def _clip_folder(path: str) -> str:
    """
    Say where the frames of a clip are.

    >>> _clip_folder("videos/ego_19/334.00_338.00.mp4")
    'video_frames/videos_ego_19_334.00_338.00'
    """
    return f"video_frames/{path.replace('/', '_').split('.mp4')[0]}"
