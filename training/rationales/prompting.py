"""Ask a model for a rationale, in words from a file, and find the rationale in its output."""

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
_HEADERS = {"# rationale: answer": False, "# rationale: reasoning": True}
_OPEN = re.compile(r"<think(?:ing)?>|\[THINK\]|◁think▷")
_CLOSE = re.compile(r"</think(?:ing)?>|\[/THINK\]|◁/think▷")
_TAG = re.compile(f"{_OPEN.pattern}|{_CLOSE.pattern}")


@dataclass(frozen=True)
class Style:
    """
    A way to ask a model for rationales.

    Args:
        name: the file's name without its suffix.
        template: the instructions (system turn), the same for both sides.
        thinking: whether the rationale is the model's reasoning before its answer, or the answer itself.
    """

    name: str
    template: str
    thinking: bool

    @property
    def definition(self) -> dict[str, Any]:
        """All that determines the rationales: the text itself, wherever the file is."""
        return {"template": self.template, "thinking": self.thinking}


def load_style(name_or_path: str | os.PathLike[str]) -> Style:
    """
    Read a style.

    Args:
        name_or_path: one of `STYLES`, or the path of a `.txt` file. Its first line says which part of the model's
            output is the rationale, `# rationale: answer` or `# rationale: reasoning`; the rest are the instructions.

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


def style_of(worker: Any) -> Style:
    """Load the style of a worker; an error names the worker."""
    try:
        return load_style(worker.style)
    except ValueError as error:
        raise ValueError(f"Worker {worker.name!r}: `style` can't be used. {error}") from error


def request_conversation(style: Style, request: RationaleRequest, num_video_frames: int = 8) -> list[dict[str, Any]]:
    """
    Make the chat messages of a request, with opened media, in the form that processors' templates take.

    The style's instructions are the system turn. The user's turn holds the input and nothing else: first its own
    instruction, as `Task: ...`, then pictures, videos and text. The model is not told the side.

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
    Find the rationale in a model's output: without tags, and `""` if there is none.

    For a thinking style it is the first block of reasoning, with or without its opening tag (some templates open it
    in the prompt); a block that is not closed extends to the end. For other styles it is what is outside such blocks.

    >>> parse_rationale("<think>Red and white: Peru.</think> Lima", load_style("thinking"))
    'Red and white: Peru.'
    >>> parse_rationale("Red and white: Peru.</think> Lima", load_style("thinking"))
    'Red and white: Peru.'
    >>> parse_rationale("<think>Red and white: Peru.</think> Lima", load_style("instruct"))
    'Lima'
    """
    reasoning, answer = split_reasoning(text)
    return answer if reasoning is None or not style.thinking else reasoning


def why_empty(style: Style, output: str, finish_reason: Any) -> str:
    """Say why a model's output holds no rationale, and what to do."""
    ended = f"(finish_reason {finish_reason!r})"
    if not output.strip():
        return f"the model's output is empty {ended}."
    if style.thinking:
        return f"the model's reasoning is empty {ended}; is thinking switched on in this model?"
    return (
        f"the model's output is reasoning without an answer {ended}; raise `max_tokens`, or use a style whose "
        "rationale is the reasoning."
    )


def split_reasoning(text: str) -> tuple[str | None, str]:
    """
    Split a model's output into the first block of reasoning, `None` if there is no tag, and all text outside blocks.

    >>> split_reasoning("<think>a</think> b <think>c</think> d")
    ('a', 'b d')
    >>> split_reasoning("a</think> b")
    ('a', 'b')
    >>> split_reasoning("<think>a")
    ('a', '')
    >>> split_reasoning(" b ")
    (None, 'b')
    """
    blocks, outside, rest = [], [], text
    if (end := _CLOSE.search(rest)) and not _OPEN.search(rest[: end.start()]):  # opened in the prompt
        blocks.append(rest[: end.start()])
        rest = rest[end.end() :]
    while start := _OPEN.search(rest):
        outside.append(rest[: start.start()])
        end = _CLOSE.search(rest, start.end())
        blocks.append(rest[start.end() : end.start() if end else None])
        rest = rest[end.end() :] if end else ""
    outside.append(rest)
    return (_clean(blocks[0]) if blocks else None), " ".join(filter(None, map(_clean, outside)))


def _clean(text: str) -> str:
    """Remove tags that have no partner."""
    return _TAG.sub("", text).strip()
