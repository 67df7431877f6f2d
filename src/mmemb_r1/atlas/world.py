"""Choose the countries, flags, objects and digits that one Atlas is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from mmemb_r1.atlas.drawings import Drawing, clock_faces, load_drawings
from mmemb_r1.atlas.hashing import unit_hash
from mmemb_r1.atlas.knowledge import Country, flag_sentence, load_countries, restrict_neighbours
from mmemb_r1.atlas.naming import with_article, words_of
from mmemb_r1.atlas.pictures import flag_hexcode, keep_distinct, render_svg, svg_folder

LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French"}

# Blocks that hold things, food, plants and animals: people, gestures, hearts, moons, buttons and clocks are left out,
# because at 64 pixels they are many pictures of nearly the same.
BLOCKS = (
    (0x1F30A, 0x1F30B), (0x1F321, 0x1F43F), (0x1F451, 0x1F460), (0x1F484, 0x1F484), (0x1F488, 0x1F48E),
    (0x1F490, 0x1F490), (0x1F4A1, 0x1F4A3), (0x1F4B0, 0x1F4F2), (0x1F4F7, 0x1F4FF), (0x1F50B, 0x1F52F),
    (0x1F56F, 0x1F579), (0x1F58A, 0x1F58D), (0x1F5A5, 0x1F5DE), (0x1F680, 0x1F6AA), (0x1F6B2, 0x1F6B2),
    (0x1F6BD, 0x1F6BF), (0x1F6C1, 0x1F6C1), (0x1F6CB, 0x1F6FC), (0x1F940, 0x1F96F), (0x1F97B, 0x1F9B4),
    (0x1F9BA, 0x1F9CB), (0x1F9E0, 0x1FAC1), (0x1FACD, 0x1FADC),
)  # fmt: skip
LEFT_OUT = re.compile(
    r"\b(person|people|man|woman|flags?|oncoming|banknote|button|sign|symbol|light latin|no|off|input|one|playing"
    r"|mobile phone|envelope|station|horse racing|snowboarder|selfie|deaf|love|ice hockey|detective|superhero)\b"
)
SHORT_NAME = re.compile(r"(?=.{3,18}$)[a-z]+(?:[ -][a-z]+){0,2}")


@dataclass(frozen=True)
class PictureObject:
    """An object that Atlas shows."""

    hexcode: str  # code point, OpenMoji's file name ("1F436")
    name: str  # English, unique among the objects
    translations: dict[str, str]  # language code -> name in that language

    def state(self) -> str:
        """Say what the picture shows, in the sentence used everywhere."""
        return f"This is {with_article(self.name)}."


def load_objects() -> list[PictureObject]:
    """Load all eligible objects in a fixed mixed order, so that the first n are a fair sample. Names are unique."""
    import emoji

    emoji.config.load_language(list(LANGUAGES))
    folder = svg_folder()
    found: dict[str, PictureObject] = {}
    for character, data in emoji.EMOJI_DATA.items():
        code = character.rstrip("\ufe0f")
        name = words_of(data["en"])
        if data["status"] != emoji.STATUS["fully_qualified"] or len(code) != 1 or not _is_eligible(ord(code), name):
            continue
        hexcode = f"{ord(code):X}"
        if not (folder / f"{hexcode}.svg").exists():
            continue
        translations = {language: words_of(data[language]) for language in LANGUAGES if language in data}
        found.setdefault(name, PictureObject(hexcode, name, translations))
    return sorted(found.values(), key=lambda thing: unit_hash("object", thing.hexcode))


def _is_eligible(code_point: int, name: str) -> bool:
    in_block = any(first <= code_point <= last for first, last in BLOCKS)
    return in_block and bool(SHORT_NAME.fullmatch(name)) and not LEFT_OUT.search(name)


FLAG_DISTANCE = 0.0125
OBJECT_DISTANCE = 0.03
SPARE_OBJECTS = 30  # rendered in addition, because look-alikes are dropped
NUM_TRANSLATED = 150


@dataclass(frozen=True)
class World:
    """Everything that questions and candidates are made of."""

    countries: list[Country]  # all whose facts are taught, most populous first
    flags: list[Country]  # those among them whose flag is shown: it looks like no other's
    objects: list[PictureObject]
    translated: set[str]  # hexcodes of the objects that are named in other languages too
    digits: list[int]  # the label of each digit image
    digit_images: np.ndarray = field(repr=False)  # (N, 8, 8), ink 0 to 16
    pictures: dict[str, Image.Image] = field(repr=False)  # canonical, of each flag (by code) and object (by hexcode)
    drawings: list[Drawing]  # what the perceptual tasks show, task by task
    clocks: dict[str, str]  # key of each clock face -> the time, half an hour later than the one before
    drawn: dict[str, Image.Image] = field(repr=False)  # canonical, of each drawing and clock face, by key
    keycaps: list[Image.Image] = field(repr=False)  # canonical, of the digits 0 to 9


def make_world(size: int, num_objects: int, num_countries: int | None, num_drawings: int) -> World:
    """Load and render countries, objects and digits without look-alikes. ValueError if there are too few."""
    from sklearn.datasets import load_digits

    every = countries = load_countries()
    rendered = {country.code: render_svg(flag_hexcode(country.code), size) for country in countries}
    distinct = set(keep_distinct(rendered, FLAG_DISTANCE))  # of two alike, the first is the more populous one
    flags = [country for country in countries if country.code in distinct]
    if num_countries is not None:
        _check_enough("num_countries", num_countries, len(flags))
        flags = countries = restrict_neighbours(flags[:num_countries])

    objects = load_objects()
    _check_enough("num_objects", num_objects, len(objects))
    objects = objects[: num_objects + SPARE_OBJECTS]
    rendered |= {thing.hexcode: render_svg(thing.hexcode, size) for thing in objects}
    distinct = set(keep_distinct({thing.hexcode: rendered[thing.hexcode] for thing in objects}, OBJECT_DISTANCE))
    objects = [thing for thing in objects if thing.hexcode in distinct][:num_objects]
    _check_enough("num_objects", num_objects, len(objects))

    drawings, drawn = load_drawings(
        size,
        num_drawings,
        flags={country.code: flag_sentence(country) for country in every},
        objects={thing.hexcode: thing.state() for thing in objects},
        pictures=rendered,
    )
    clocks = clock_faces()
    drawn |= {key: render_svg(key, size) for key in clocks if key not in drawn}
    keycaps = [render_svg(f"003{digit}-FE0F-20E3", size) for digit in range(10)]

    shown = [*(flag.code for flag in flags), *(thing.hexcode for thing in objects)]
    pictures = {key: rendered[key] for key in shown}
    digits = load_digits()
    return World(
        countries,
        flags,
        objects,
        _translated(objects),
        digits.target.tolist(),
        digits.images,
        pictures,
        drawings,
        clocks,
        drawn,
        keycaps,
    )


def _translated(objects: Iterable[PictureObject]) -> set[str]:
    """Choose the first objects whose name in every language is theirs alone."""
    chosen: set[str] = set()
    used: set[tuple[str, str]] = set()
    for thing in objects:
        names = set(thing.translations.items())
        if len(chosen) < NUM_TRANSLATED and len(names) == len(LANGUAGES) and not names & used:
            chosen.add(thing.hexcode)
            used |= names
    return chosen


def _check_enough(name: str, wanted: int, available: int) -> None:
    if wanted > available:
        raise ValueError(f"{name} is {wanted}, but there are only {available} that differ; ask for fewer.")
