"""
An extension of Griffe, which reads the docstrings for the site: they are written for the readers of the code.

In types, as in "name (`int`, *optional*, defaults to `3`): ...", nothing is marked up; a name in brackets, [`Name`]
or [`~module.Name`], is code; and an example is a block of code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ARGUMENT = re.compile(r"^(\s+\*{0,2}\w+ )(\(`.*\)):", re.MULTILINE)
REFERENCE = re.compile(r"\[`(?:~[\w.]+\.)?([^`\n]+)`\](?![(\[])")
EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class PlainDocstrings(griffe.Extension):
    """Rewrite each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = plain(obj.docstring.value)


def plain(text: str) -> str:
    """Rewrite a docstring: "n (`int`, *optional*): of [`Row`]" becomes "n (int, optional): of `Row`"."""
    text = ARGUMENT.sub(lambda argument: argument[1] + re.sub("[`*]", "", argument[2]) + ":", text)
    return EXAMPLE.sub(r"```pycon\n\g<0>\n```", REFERENCE.sub(r"`\1`", text))
