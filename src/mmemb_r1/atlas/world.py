"""The choice of countries, flags, objects and digits that one Atlas is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .knowledge import Country, load_countries, restrict_neighbours
from .objects import LANGUAGES, PictureObject, load_objects
from .pictures import flag_hexcode, keep_distinct, render_svg

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

FLAG_DISTANCE = 0.0125
OBJECT_DISTANCE = 0.03
SPARE_OBJECTS = 30  # rendered beside those asked for, because look-alikes fall away
NUM_TRANSLATED = 150


@dataclass(frozen=True)
class World:
    """Everything that questions and candidates are made of.

    Args:
        countries (`list[Country]`): all whose facts are taught, most populous first.
        flags (`list[Country]`): those among them whose flag is shown: it looks like no other's.
        objects (`list[PictureObject]`): all objects shown.
        translated (`set[str]`): hexcodes of the objects that are named in other languages too.
        digits (`list[int]`): the label of each digit image.
        digit_images (`np.ndarray`): shape (N, 8, 8), ink 0 to 16.
        pictures (`dict[str, PIL.Image.Image]`): canonical picture of each flag (by code) and object (by hexcode).
    """

    countries: list[Country]
    flags: list[Country]
    objects: list[PictureObject]
    translated: set[str]
    digits: list[int]
    digit_images: np.ndarray = field(repr=False)
    pictures: dict[str, Image.Image] = field(repr=False)


def make_world(size: int, num_objects: int, num_countries: int | None) -> World:
    """Load, render at `size` pixels, and drop look-alikes. ValueError when more is asked for than there is."""
    countries, flags, flag_pictures = _choose_countries(size, num_countries)
    objects, object_pictures = _choose_objects(size, num_objects)
    digits, digit_images = _load_digits()
    pictures = flag_pictures | object_pictures
    return World(countries, flags, objects, _translated(objects), digits, digit_images, pictures)


def _choose_countries(
    size: int, num_countries: int | None
) -> tuple[list[Country], list[Country], dict[str, Image.Image]]:
    countries = load_countries()
    rendered = {country.code: render_svg(flag_hexcode(country.code), size) for country in countries}
    distinct = set(keep_distinct(rendered, FLAG_DISTANCE))  # of two alike, the first is the more populous one
    flags = [country for country in countries if country.code in distinct]
    if num_countries is not None:
        _check_enough("num_countries", num_countries, len(flags))
        flags = countries = restrict_neighbours(flags[:num_countries])
    return countries, flags, {flag.code: rendered[flag.code] for flag in flags}


def _choose_objects(size: int, num_objects: int) -> tuple[list[PictureObject], dict[str, Image.Image]]:
    objects = load_objects()
    _check_enough("num_objects", num_objects, len(objects))
    available = objects[: num_objects + SPARE_OBJECTS]
    rendered = {thing.hexcode: render_svg(thing.hexcode, size) for thing in available}
    distinct = set(keep_distinct(rendered, OBJECT_DISTANCE))
    objects = [thing for thing in available if thing.hexcode in distinct][:num_objects]
    _check_enough("num_objects", num_objects, len(objects))
    return objects, {thing.hexcode: rendered[thing.hexcode] for thing in objects}


def _translated(objects: Iterable[PictureObject]) -> set[str]:
    """The first objects whose name is theirs alone in every language."""
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


def _load_digits() -> tuple[list[int], np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.target.tolist(), digits.images
