"""
Read the image annotations: rows of a query and its own candidates, of which the first is right.

    qry_inst, qry_text, qry_img_path, tgt_inst, tgt_text: [...], tgt_img_path: [...]
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from mmemb_r1.evaluation.mmeb.annotations import read_annotations
from mmemb_r1.evaluation.mmeb.building import TaskBuilder, plain

QUERY_COLUMNS = ("qry_inst", "qry_text", "qry_img_path", "tgt_text")


def read_image_text(builder: TaskBuilder) -> None:
    """Read rows whose candidates are texts: labels, answers, captions. They have no instruction."""

    @cache  # a million candidates, of which a few thousand are different
    def add(text: str) -> str:
        return builder.candidate(text, text=text)

    for query_id, row, value in _queries(builder, QUERY_COLUMNS):
        texts = [(text or "").strip() for text in row["tgt_text"] or []]
        if not texts:
            raise builder.error(query_id, "it has no candidates (tgt_text)")
        _add(builder, query_id, row, value, list(map(add, texts)))


def read_image_image(builder: TaskBuilder) -> None:
    """Read rows whose candidates are pictures, some with a text: two objects of one picture are two candidates."""

    @cache
    def add(path: str, text: str, instruction: str) -> str:
        name = f"{path}:{text}" if text else path
        return builder.candidate(name, instruction=instruction, text=text, image=builder.media.picture(path))

    for query_id, row, value in _queries(builder, (*QUERY_COLUMNS, "tgt_inst", "tgt_img_path")):
        texts, paths = [plain(text) for text in row["tgt_text"] or []], row["tgt_img_path"] or []
        if not paths or not all(paths) or len(texts) != len(paths):
            raise builder.error(
                query_id, f"it has {len(paths)} pictures (tgt_img_path) and {len(texts)} texts; each needs a path"
            )
        instruction = plain(row["tgt_inst"])
        pool = [add(path, text, instruction) for path, text in zip(paths, texts, strict=True)]
        _add(builder, query_id, row, value, pool)


def _queries(builder: TaskBuilder, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for number, row in enumerate(read_annotations(builder.task, builder.folder, builder.task.config, columns)):
        path = row["qry_img_path"]
        image = builder.media.picture(path) if path else None
        yield str(number), row, {"instruction": plain(row["qry_inst"]), "text": plain(row["qry_text"]), "image": image}


def _add(builder: TaskBuilder, query_id: str, row: dict[str, Any], value: dict[str, Any], pool: list[str]) -> None:
    # questions about one picture are not independent of each other
    builder.query(query_id, value, pool, {pool[0]: 1.0}, row["qry_img_path"] or query_id)
