"""Read the rows of public data sets, whose layouts differ in the names of their columns and little else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from mmemb_r1.training.importing.pair import RowError
from mmemb_r1.training.importing.text import plain_text

_KEYS = {"query": "qry", "target": "pos", "negatives": "neg"}
_BLANK_PICTURE = "blank.jpg"  # given to inputs that have no picture
_TASKS = ("dataset_name", "source_dataset", "dataset")


@dataclass(frozen=True)
class PairLayout:
    """
    Read rows of two sides, `qry` and `pos`, and `neg`, of the family of MMEB's training set.

    A side is a chat (`{"conversations": [...], "image" or "video": ...}`), or a text in its own column or `*_text`
    beside `*_image_path` or `*_image` and `*_video`.

    Args:
        answers: whether the answers in chats are rationales; else they may be texts of the pair.
        rationales: side -> the column of its rationale.
        prefix: a prompt of the peer before texts.
    """

    answers: bool = True
    rationales: tuple[tuple[str, str], ...] = ()
    prefix: str = ""

    def __call__(self, row: Mapping[str, Any], file: str) -> dict[str, Any]:
        """Make a pair of a row, for [`as_pair`]."""
        task = next((row[name] for name in _TASKS if row.get(name)), None)
        pair: dict[str, Any] = {"task": task}
        for side in ("query", "target"):
            pair[side], rationale = self._side(row, side, str(task))
            if rationale:
                pair[f"{side}_rationale"] = rationale
        for side, column in self.rationales:
            if row.get(column):
                pair[f"{side}_rationale"] = row[column]
        pair["negatives"] = self._negatives(row, str(task))
        return pair

    def _side(self, row: Mapping[str, Any], side: str, task: str) -> tuple[dict[str, Any], Any]:
        key = _KEYS[side]
        value = row.get(key)
        text: Any
        rationale: Any
        if isinstance(value, Mapping):
            turns = _turns(value, side)
            text, rationale = turns.get("human", ""), turns.get("gpt", "")
            if not self.answers:
                # Embed-RL writes a video's caption or the answer to a question as the other party's turn
                told = (side == "query") == ("video_retrieval" in task)
                text, rationale = _given(*((rationale, text) if told else (text, rationale)), prefix=self.prefix), ""
            media = {"image": value.get("image"), "video": value.get("video")}
        else:
            text, rationale = row.get(f"{key}_text") if value is None else value, None
            image = row[f"{key}_image_path"] if f"{key}_image_path" in row else row.get(f"{key}_image")
            media = {"image": image, "video": row.get(f"{key}_video")}
        return {"text": self._plain(text), **{kind: _without_blank(one) for kind, one in media.items()}}, rationale

    def _negatives(self, row: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
        value = row.get("neg")
        chats = [value] if isinstance(value, Mapping) else value if isinstance(value, list) else []
        if chats and all(isinstance(one, Mapping) for one in chats):
            return [self._side({"neg": one}, "negatives", task)[0] for one in chats]
        texts = _listed(row.get("neg_text") if value is None else value)
        images = _listed(row["neg_image_path"] if "neg_image_path" in row else row.get("neg_image"))
        if len(texts) > 1 and len(images) > 1 and len(texts) != len(images):
            raise RowError(
                "of another form",
                f"it has {len(texts)} texts and {len(images)} pictures of negatives; give each negative one of both.",
                "negatives",
            )
        number = max(len(texts), len(images))
        texts, images = texts + [None] * (number - len(texts)), images + [None] * (number - len(images))
        return [
            {"text": self._plain(text), "image": _without_blank(image)}
            for text, image in zip(texts, images, strict=True)
        ]

    def _plain(self, text: Any) -> Any:
        return plain_text(text, self.prefix) if isinstance(text, str) else text


def _without_blank(media: Any) -> Any:
    def is_blank(one: Any) -> bool:
        return isinstance(one, str) and PurePosixPath(one).name == _BLANK_PICTURE

    if isinstance(media, list | tuple):
        return [one for one in media if not is_blank(one)]
    return None if is_blank(media) else media


def _turns(chat: Mapping[str, Any], side: str) -> dict[str, str]:
    """Take the first turn of each party of a chat."""
    found: dict[str, str] = {}
    try:
        for turn in chat["conversations"]:
            found.setdefault(turn["from"], turn["value"])
    except (KeyError, TypeError, AttributeError) as error:
        raise RowError(
            "of another form",
            f'its {side} is no chat: {{"conversations": [{{"from": "human", "value": ...}}, ...]}} was expected.',
            side,
        ) from error
    return found


def _given(first: Any, second: Any, prefix: str) -> Any:
    return first if isinstance(first, str) and plain_text(first, prefix) else second


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def page_to_answer(row: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Read a row of the training set of ColPali as VLM2Vec-V2 does: a page and a question about it -> the answer."""
    query = {"text": row["query"], "image": row["image"]}
    return {"query": query, "target": row["answer"], "task": row.get("source")}


def query_to_page(row: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Read a row of VisRAG's training set: a question -> the page that answers it."""
    return {"query": row["query"], "target": row["image"], "task": row.get("source")}


def video_pairs(row: Mapping[str, Any], file: str) -> list[dict[str, Any]]:
    """
    Read a row of LLaVA-Hound as VLM2Vec-V2 does: of a file `video_caption*` two pairs, video -> caption and caption ->
    video, and of others a video with a question -> the answer.
    """
    turns = _turns(row, "conversations")
    asked, told = plain_text(turns.get("human", "")), turns.get("gpt")
    video = {"video": row["video"]}
    query = {"text": asked, **video}
    if not file.startswith("video_caption"):
        return [{"query": query, "target": told, "task": "video-qa"}]
    return [
        {"query": query, "target": told, "task": "video-to-caption"},
        {"query": told, "target": video, "task": "caption-to-video"},
    ]
