"""Miniatures of public data sets: their files and columns, as their authors document them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

INSTRUCTION = (
    "\n<disc_emb>\nRepresent the above input text, images, videos, or any combination of the three as embeddings. "
    "First output the thinking process in <think> </think> tags and then summarize the entire input in a word or "
    "sentence. Finally, use the <gen_emb> tag to represent the entire input."
)


def picture(path: Path, shade: int = 0) -> Path:
    """Draw a small picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)
    return path


def chat(text: str, thought: str | None = None, answer: str = "", **media: Any) -> dict[str, Any]:
    """One side of a row of UME-R1's supervised data."""
    turns = [{"from": "human", "value": text + INSTRUCTION}]
    if thought is not None:
        turns.append({"from": "gpt", "value": f"<think>{thought}</think><answer>{answer}</answer><gen_emb>"})
    return {"conversations": turns, **media}


@pytest.fixture
def write_json() -> Callable[[Path, Iterable[Any]], Path]:
    """`write_json(path, rows)`: a JSON list, or JSON lines where the path ends so."""

    def write(path: Path, rows: Iterable[Any]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = list(rows)
        text = "\n".join(map(json.dumps, rows)) + "\n" if path.suffix == ".jsonl" else json.dumps(rows, indent=1)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with pictures `images/0.jpg` to `images/3.jpg`, and a video's frames `frames/v/0.jpg` to `9.jpg`."""
    folder = tmp_path / "MMEB-train"
    for number in range(4):
        picture(folder / "images" / f"{number}.jpg", number * 60)
    for number in range(10):
        picture(folder / "frames" / "v" / f"{number}.jpg", number * 20)
    picture(folder / "images" / "blank.jpg", 255)
    return folder
