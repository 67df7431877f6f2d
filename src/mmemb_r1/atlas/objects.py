"""Everyday objects: which emoji become pictures, and their CLDR names in four languages."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .hashing import unit_hash
from .pictures import svg_folder

LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French"}

# Blocks that hold things, food, plants and animals: people, gestures, hearts, moons, buttons and clocks are left out,
# because at 64 pixels they are many pictures of nearly the same.
BLOCKS = (
    (0x1F30A, 0x1F30B),
    (0x1F321, 0x1F43F),
    (0x1F451, 0x1F460),
    (0x1F484, 0x1F484),
    (0x1F488, 0x1F48E),
    (0x1F490, 0x1F490),
    (0x1F4A1, 0x1F4A3),
    (0x1F4B0, 0x1F4F2),
    (0x1F4F7, 0x1F4FF),
    (0x1F50B, 0x1F52F),
    (0x1F56F, 0x1F579),
    (0x1F58A, 0x1F58D),
    (0x1F5A5, 0x1F5DE),
    (0x1F680, 0x1F6AA),
    (0x1F6B2, 0x1F6B2),
    (0x1F6BD, 0x1F6BF),
    (0x1F6C1, 0x1F6C1),
    (0x1F6CB, 0x1F6FC),
    (0x1F940, 0x1F96F),
    (0x1F97B, 0x1F9B4),
    (0x1F9BA, 0x1F9CB),
    (0x1F9E0, 0x1FAC1),
    (0x1FACD, 0x1FADC),
)
LEFT_OUT = re.compile(
    r"\b(person|people|man|woman|flags?|oncoming|banknote|button|sign|symbol|light latin|no|off|input|one|playing"
    r"|mobile phone|envelope|station|horse racing|snowboarder|selfie|deaf|love|ice hockey|detective|superhero)\b"
)
SHORT_NAME = re.compile(r"(?=.{3,18}$)[a-z]+(?:[ -][a-z]+){0,2}")


@dataclass(frozen=True)
class PictureObject:
    """One object.

    Args:
        hexcode (`str`): code point, OpenMoji's file name ("1F436").
        name (`str`): English name, unique among the objects.
        translations (`dict[str, str]`): language code -> name in that language.
    """

    hexcode: str
    name: str
    translations: dict[str, str]

    def state(self) -> str:
        """The one sentence that says what the picture shows."""
        return f"This is {with_article(self.name)}."


def load_objects() -> list[PictureObject]:
    """All eligible objects in a fixed mixed order, so that the first n are a fair sample. Names are unique."""
    import emoji

    emoji.config.load_language(list(LANGUAGES))
    folder = svg_folder()
    found: dict[str, PictureObject] = {}
    for character, data in emoji.EMOJI_DATA.items():
        code = character.rstrip("\ufe0f")
        name = _words(data["en"])
        if data["status"] != emoji.STATUS["fully_qualified"] or len(code) != 1 or not _is_eligible(ord(code), name):
            continue
        hexcode = f"{ord(code):X}"
        if not (folder / f"{hexcode}.svg").exists():
            continue
        translations = {language: _words(data[language]) for language in LANGUAGES if language in data}
        found.setdefault(name, PictureObject(hexcode, name, translations))
    return sorted(found.values(), key=lambda thing: unit_hash("object", thing.hexcode))


def with_article(name: str) -> str:
    """
    >>> with_article("dog face"), with_article("onion"), with_article("grapes"), with_article("compass")
    ('a dog face', 'an onion', 'grapes', 'a compass')
    """
    if name.endswith("s") and not name.endswith(("ss", "us")):
        return name
    return f"an {name}" if name[0] in "aeio" else f"a {name}"


def _words(label: str) -> str:
    return label.strip(":").replace("_", " ")


def _is_eligible(code_point: int, name: str) -> bool:
    in_block = any(first <= code_point <= last for first, last in BLOCKS)
    return in_block and bool(SHORT_NAME.fullmatch(name)) and not LEFT_OUT.search(name)
