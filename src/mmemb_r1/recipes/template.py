"""Write a recipe's prompt as a chat template, which is saved with the model: every loader and server applies it."""

from __future__ import annotations

import json
import sys
import unicodedata
from functools import cache
from importlib.resources import files

from mmemb_r1.recipes.recipe import Recipe

TEMPLATE = "prompt.jinja"


@cache
def punctuation() -> str:
    """List all punctuation of Unicode, the characters of the categories P*, in order."""
    return "".join(filter(is_punctuation, map(chr, range(sys.maxunicode + 1))))


def is_punctuation(character: str) -> bool:
    """
    Tell whether a character is punctuation by Unicode.

    >>> [is_punctuation(character) for character in ".?。«a+"]
    [True, True, True, True, False, False]
    """
    return unicodedata.category(character).startswith("P")


def prompt_template(recipe: Recipe) -> str:
    """
    Write the Jinja chat template of a recipe, of `messages`; it ends in the recipe's marker.

    Rendering raises an error for parts that are neither text, image nor video, and for a chat of several turns where
    the recipe has no form for turns.
    """
    prompt = recipe.prompt
    values = {
        "turn_start": prompt.turn_start,
        "turn_end": prompt.turn_end,
        "ending": prompt.ending,
        "system": prompt.system or "",
        "instruction_in_text": prompt.instruction == "text",
        "instruction_ends": prompt.instruction_ends or "",
        "punctuation": punctuation() if prompt.instruction_ends else "",
        "instruction_separator": prompt.instruction_separator,
        "order": list(prompt.order),
        "separator": prompt.separator,
        "first_text": prompt.first_text,
        "empty": prompt.empty,
        "media": {"image": prompt.image, "video": prompt.video},
        "marker": recipe.read.marker,
    }
    # JSON's strings, lists and booleans are Jinja's, too; escapes of surrogate pairs would not be
    header = "".join(
        f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}\n" for name, value in values.items()
    )
    return header + files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8").strip()
