"""Take the prompts, marks and control tokens of other models out of their data's texts."""

from __future__ import annotations

import re

_MARK = r"(?:<image>|<video>|<\|(?:image|video)_\d+\|>|<\|(?:vision_start|vision_end|image_pad|video_pad)\|>|<emb>)"
_MARKS = rf"{_MARK}(?:[ \t]*{_MARK})*"
_AT_START = re.compile(rf"(?m)^[ \t]*{_MARKS}[ \t]*(?:\n|$)?")
_WITHIN = re.compile(rf"[ \t]*{_MARKS}[ \t]*")
_AFTER = "<disc_emb>"  # UME-R1 reads its direct vector there; what follows is one fixed instruction
_END = "<gen_emb>"
_TAGS = re.compile(r"</?(?:think|thinking|rethink|answer)>")


def plain_text(text: str, prefix: str = "") -> str:
    """
    Strip from an input's text where its pictures stand, and all that another model adds to every input.

    Args:
        text: as the data has it.
        prefix: a prompt before the text, without marks, that is dropped where it is there.

    >>> plain_text("<|image_1|>\\nWhat is it? <image> And this?\\n<disc_emb>\\nRepresent the above ... <gen_emb>")
    'What is it? And this?'
    """
    text = text.split(_AFTER)[0].replace(_END, "")
    return _WITHIN.sub(" ", _AT_START.sub("", text)).strip().removeprefix(prefix).strip()


def thought_parts(text: str) -> tuple[list[str], bool]:
    """
    Split a rationale at the tags of UME-R1 (`<think>`, `<answer>`) and Embed-RL (`<thinking>`, `<rethink>`).

    Returns:
        The parts that are not blank, of which the last is the answer where there are several; and whether the
        rationale was cut off before its thought ended.

    >>> thought_parts("<think>It is red.</think><answer>A red flag.</answer><gen_emb>")
    (['It is red.', 'A red flag.'], False)
    >>> thought_parts("<think>It is r")
    (['It is r'], True)
    """
    text = text.split(_END)[0]
    parts = [part.strip() for part in _TAGS.split(text)]
    tags = _TAGS.findall(text)
    return [part for part in parts if part], bool(tags) and tags[-1] in ("<think>", "<thinking>", "<rethink>")


def joined_parts(parts: list[str]) -> str:
    """
    Make one text of a rationale's parts, whose last line is the answer.

    >>> joined_parts(["It is red.", "A red\\nflag."])
    'It is red.\\nA red flag.'
    """
    if len(parts) < 2:
        return "".join(parts)
    return "\n".join([*parts[:-1], " ".join(parts[-1].split())])
