"""How a worker is asked for a rationale, and how the rationale is found in what it says. The texts are files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.training.rationales.worker import RationaleRequest

STYLES = ("instruct", "thinking")
_HEADERS = {"# rationale: answer": False, "# rationale: thought": True}
_OPEN = re.compile(r"<think(?:ing)?>|\[THINK\]|◁think▷")
_CLOSE = re.compile(r"</think(?:ing)?>|\[/THINK\]|◁/think▷")
_TAG = re.compile(f"{_OPEN.pattern}|{_CLOSE.pattern}")


@dataclass(frozen=True)
class Style:
    """
    A way to ask for rationales.

    Args:
        name: the file's name without its suffix.
        template: what the worker is told; the same for both sides.
        thinking: whether the rationale is what the model thinks before it answers, or the answer.
    """

    name: str
    template: str
    thinking: bool

    @property
    def definition(self) -> dict[str, Any]:
        """What determines the rationales: the text itself, wherever it lies."""
        return {"template": self.template, "thinking": self.thinking}


def load_style(name_or_path: str | os.PathLike[str]) -> Style:
    """
    Read a style.

    Args:
        name_or_path: one of `STYLES`, or the path of a `.txt` file. Its first line says what of a model's
            output the rationale is, `# rationale: answer` or `# rationale: thought`; the rest is the text.

    Raises:
        ValueError: if there is no such style, or the file is not as described.
    """
    text = _style_text(name_or_path)
    header, _, template = text.partition("\n")
    if header.strip() not in _HEADERS:
        raise ValueError(
            f"The style {str(name_or_path)!r} begins with {header.strip()[:80]!r}; its first line has to be one of: "
            f"{', '.join(map(repr, _HEADERS))}."
        )
    if not template.strip():
        raise ValueError(f"The style {str(name_or_path)!r} has no text after its first line.")
    return Style(Path(name_or_path).stem, template.strip(), _HEADERS[header.strip()])


def _style_text(name_or_path: str | os.PathLike[str]) -> str:
    if name_or_path in STYLES:
        return files("mmemb_r1.training").joinpath("prompts", f"{name_or_path}.txt").read_text(encoding="utf-8")
    if str(name_or_path).endswith(".txt"):
        try:
            return Path(name_or_path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ValueError(f"The style {str(name_or_path)!r} can't be read ({error}).") from error
    raise ValueError(
        f"There is no style {str(name_or_path)!r}. Allowed: {', '.join(STYLES)}, or the path of a .txt file."
    )


def request_conversation(style: Style, request: RationaleRequest, num_video_frames: int = 8) -> list[dict[str, Any]]:
    """
    A request -> chat messages with opened media, in the form that processors' templates take.

    The style's text is the system turn. The user's turn holds the input and nothing else: first its own instruction,
    as `Task: ...`, then pictures, videos and text.

    Args:
        style: how to ask.
        request: what is asked about; its side is not told.
        num_video_frames: frames that are sampled evenly from a video file.

    Raises:
        InputError: if the input can't be used; its `reason` says why.
    """
    [[system, user]] = to_conversations([request.input], style.template, MediaOptions(num_video_frames))
    if request.input.get("instruction"):  # it took the system turn
        task = {"type": "text", "text": f"Task: {system['content'][0]['text']}\n"}
        system = {"role": "system", "content": [{"type": "text", "text": style.template}]}
        user = {"role": "user", "content": [task, *user["content"]]}
    return [system, user]


def parse_rationale(text: str, style: Style) -> str:
    """
    The rationale in what a model said, without tags; `""` if there is none.

    Of a thought it is the first block, with or without its opening tag (some templates open it in the prompt); one
    that is not closed goes on to the end. Of an answer it is what is outside of such blocks.

    >>> parse_rationale("<think>Red and white: Peru.</think> Lima", load_style("thinking"))
    'Red and white: Peru.'
    >>> parse_rationale("Red and white: Peru.</think> Lima", load_style("thinking"))
    'Red and white: Peru.'
    >>> parse_rationale("<think>Red and white: Peru.</think> Lima", load_style("instruct"))
    'Lima'
    """
    thought, answer = split_thought(text)
    if not style.thinking:
        return answer
    return thought if thought is not None else answer


def split_thought(text: str) -> tuple[str | None, str]:
    """
    The first thought, `None` if no tag tells of one, and what is outside of all of them.

    >>> split_thought("<think>a</think> b <think>c</think> d")
    ('a', 'b d')
    >>> split_thought("a</think> b")
    ('a', 'b')
    >>> split_thought("<think>a")
    ('a', '')
    >>> split_thought(" b ")
    (None, 'b')
    """
    thoughts, outside, rest = [], [], text
    if (end := _CLOSE.search(rest)) and not _OPEN.search(rest[: end.start()]):  # opened in the prompt
        thoughts.append(rest[: end.start()])
        rest = rest[end.end() :]
    while start := _OPEN.search(rest):
        outside.append(rest[: start.start()])
        end = _CLOSE.search(rest, start.end())
        thoughts.append(rest[start.end() : end.start() if end else None])
        rest = rest[end.end() :] if end else ""
    outside.append(rest)
    return (_clean(thoughts[0]) if thoughts else None), " ".join(filter(None, map(_clean, outside)))


def _clean(text: str) -> str:
    """Without tags that have no partner."""
    return _TAG.sub("", text).strip()
