"""Find drawings that are nearly the same: what tells them apart is small, but can be seen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
from PIL import Image

from mmemb_r1.atlas.hashing import unit_hash
from mmemb_r1.atlas.naming import emoji_hexcodes, singular, with_article
from mmemb_r1.atlas.pictures import as_vector, colour_histogram, keep_distinct, render_svg

SAME_TONE, SAME_PERSON, SAME_FLAG, SAME_COLOURS = "same-tone", "same-person", "same-flag", "same-colours"
SAME_CLOCK, SAME_SIGN = "same-clock", "same-sign"
# Whose drawings are enough to keep some of them out of training; of the others all are trained.
SPLIT_TASKS = (SAME_TONE, SAME_PERSON, SAME_FLAG, SAME_COLOURS)
PERCEPTUAL_TASKS = (*SPLIT_TASKS, SAME_CLOCK, SAME_SIGN)

TONES = ("light", "medium", "dark")  # those between them can't be told where brightness and contrast vary
# Mean absolute differences, as in `keep_distinct`. Below them drawings can't be told, or not at 64 pixels.
TONE_DISTANCE, PERSON_DISTANCE, FLAG_DISTANCE = 0.04, 0.02, 0.0025
FLAG_GROUP_DISTANCE = 0.05  # flags that are nearer are taken for each other
NUM_RIVALS = 12
SCALE = 2  # most of the time that drawings take is rendering
PLAIN_NAME = re.compile(r"(?=.{3,30}$)[a-z]+(?:[ -][a-z]+)*")
# Of both genders or of two people, mirrored, rude, or no noun that stands after an article.
LEFT_OUT = re.compile(
    r"\b(man|woman|men|women|people|couple|kiss|handshake|facing right|middle finger|sign of the horns|palms)\b"
)
HOURS = ("twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
CLOCKS = tuple(chain.from_iterable((f"{hour} o’clock", f"{hour}-thirty") for hour in HOURS))  # half an hour apart
MOONS = (
    "new moon", "waxing crescent moon", "first quarter moon", "waxing gibbous moon", "full moon",
    "waning gibbous moon", "last quarter moon", "waning crescent moon", "first quarter moon face",
    "last quarter moon face",
)  # fmt: skip
ARROWS = (
    "up arrow", "up-right arrow", "right arrow", "down-right arrow", "down arrow", "down-left arrow", "left arrow",
    "up-left arrow", "up-down arrow", "left-right arrow", "right arrow curving up", "right arrow curving down",
    "right arrow curving left", "left arrow curving right", "BACK arrow", "END arrow", "ON! arrow", "SOON arrow",
    "TOP arrow",
)  # fmt: skip

Pictures = dict[str, Image.Image]
Sentences = Mapping[str, str]  # key of a picture -> what it shows, in the sentence used everywhere


@dataclass(frozen=True)
class Drawing:
    """A picture that is looked for among others that are nearly the same."""

    task: str  # one of `PERCEPTUAL_TASKS`
    key: str  # of its picture: OpenMoji's file name, or a country's code
    entity: str  # what its questions are about: a base drawing, a profession, a group of flags, else itself
    sentence: str  # what it shows, in the sentence used everywhere
    rivals: tuple[str, ...]  # keys of drawings that are nearly the same, nearest first, at least one


def load_drawings(
    size: int, number: int, *, flags: Sentences, objects: Sentences, pictures: Mapping[str, Image.Image]
) -> tuple[list[Drawing], Pictures]:
    """
    Choose the drawings of all perceptual tasks, and render those that are not rendered yet.

    Args:
        size: side of a picture in pixels.
        number: drawings of each task at most.
        flags, objects: what each shows; of flags that are the same, the first is taken.
        pictures: of flags and objects, by key.

    Returns:
        The drawings, task by task, and the pictures of all of them.
    """
    drawings: list[Drawing] = []
    shown: Pictures = {}
    by_group = {
        SAME_TONE: _tones(size),
        SAME_PERSON: _persons(size),
        SAME_FLAG: _look_alike_flags(flags, pictures),
    }
    for task, groups in by_group.items():
        for group in _at_most(groups, number):
            vectors = {key: as_vector(picture) for key, (_, picture) in group.items()}
            entity = next(iter(group))
            drawings += [Drawing(task, key, entity, group[key][0], near) for key, near in _nearest(vectors).items()]
            shown |= {key: picture for key, (_, picture) in group.items()}
    for task, names in ((SAME_CLOCK, CLOCKS), (SAME_SIGN, MOONS), (SAME_SIGN, ARROWS)):
        chosen = _some(names, number if task == SAME_CLOCK else number // 2)
        own = {emoji_hexcodes()[name]: name for name in chosen}
        shown |= {key: _draw(key, size) for key in own}
        for key, near in _nearest({key: as_vector(shown[key]) for key in own}).items():
            said = own[key] if task == SAME_CLOCK else with_article(own[key])
            drawings.append(Drawing(task, key, key, f"This is {said}.", near))
    alike = _nearest({key: colour_histogram(pictures[key]) for key in _alike_in_colour(objects, pictures, number)})
    drawings += [Drawing(SAME_COLOURS, key, key, objects[key], near) for key, near in alike.items()]
    shown |= {key: pictures[key] for key in alike}
    return drawings, shown


def clock_faces() -> dict[str, str]:
    """Map the key of each clock face to the time that it shows, each half an hour later than the one before."""
    return {emoji_hexcodes()[name]: name for name in CLOCKS}


Group = dict[str, tuple[str, Image.Image]]  # key -> what it shows, its picture; the first key is the group's


def _tones(size: int) -> Iterator[Group]:
    """Draw hands and people with each skin tone: a group for each base drawing, in a fixed mixed order."""
    hexcodes = emoji_hexcodes()
    bases = [name.removesuffix(" light skin tone") for name in hexcodes if name.endswith(" light skin tone")]
    for base in _mixed(base for base in bases if PLAIN_NAME.fullmatch(base) and not LEFT_OUT.search(base)):
        of_tone = {tone: hexcodes.get(f"{base} {tone} skin tone") for tone in TONES}
        group = {
            key: (f"This is {with_article(base)}: {tone} skin tone.", _draw(key, size))
            for tone, key in of_tone.items()
            if key is not None
        }
        if len(_tellable(group, TONE_DISTANCE)) == len(TONES):
            yield group


def _persons(size: int) -> Iterator[Group]:
    """Draw a man, a woman and a person who do the same: a group for each profession, in a fixed mixed order."""
    hexcodes = emoji_hexcodes()
    what = [name.removeprefix("man ") for name in hexcodes if name.startswith("man ") and f"wo{name}" in hexcodes]
    for done in _mixed(name for name in what if PLAIN_NAME.fullmatch(name) and "skin tone" not in name):
        if LEFT_OUT.search(done):
            continue
        both, neutral = [f"man {done}", f"woman {done}"], [n for n in (done, f"person {done}") if n in hexcodes]
        group = {
            hexcodes[name]: (f"This is {singular(name)}.", _draw(hexcodes[name], size))
            for name in (*both, *neutral[:1])
        }
        group = _tellable(group, PERSON_DISTANCE)  # of many professions, the person is drawn as the man or the woman
        if all(hexcodes[name] in group for name in both):
            yield group


def _look_alike_flags(flags: Sentences, pictures: Mapping[str, Image.Image]) -> Iterator[Group]:
    """Group flags that are taken for each other, in a fixed mixed order of the groups."""
    kept = keep_distinct({code: pictures[code] for code in flags}, FLAG_DISTANCE)
    vectors = {code: as_vector(pictures[code]) for code in kept}
    groups: dict[str, list[str]] = {}
    while kept:
        code, *kept = kept
        near = [other for other in kept if _distance(vectors[code], vectors[other]) < FLAG_GROUP_DISTANCE]
        if near:
            groups[code] = [code, *near]
            kept = [other for other in kept if other not in near]
    for code in _mixed(groups):
        yield {member: (flags[member], pictures[member]) for member in groups[code]}


def _alike_in_colour(objects: Sentences, pictures: Mapping[str, Image.Image], number: int) -> list[str]:
    """Choose the objects that have another one of the most similar colours, in the order of `objects`."""
    histograms = {key: colour_histogram(pictures[key]) for key in objects}
    table = np.stack(list(histograms.values()))  # (N, bins)
    nearest = {key: np.sort(np.abs(table - own).sum(axis=1))[1] for key, own in histograms.items()}
    chosen = set(sorted(objects, key=lambda key: (nearest[key], key))[:number])
    return [key for key in objects if key in chosen]


def _draw(key: str, size: int) -> Image.Image:
    return render_svg(key, size, SCALE)


def _tellable(group: Group, distance: float) -> Group:
    kept = keep_distinct({key: picture for key, (_, picture) in group.items()}, distance)
    return {key: group[key] for key in kept}


def _nearest(vectors: Mapping[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    """List the `NUM_RIVALS` nearest others of each, nearest first."""
    keys, table = list(vectors), np.stack(list(vectors.values()))  # (N, D)
    found = {}
    for place, key in enumerate(keys):
        order = np.argsort(np.abs(table - table[place]).mean(axis=1), kind="stable")
        found[key] = tuple(keys[other] for other in order.tolist() if other != place)[:NUM_RIVALS]
    return found


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def _mixed(names: Iterable[str]) -> list[str]:
    """Put names in a fixed mixed order, so that the first n are a fair sample."""
    return sorted(names, key=lambda name: unit_hash("drawing", name))


def _some(names: tuple[str, ...], number: int) -> list[str]:
    chosen = set(_mixed(names)[:number])
    return [name for name in names if name in chosen]


def _at_most(groups: Iterable[Group], number: int) -> Iterator[Group]:
    """Yield the groups that fit into `number` drawings together; each has two at least."""
    for group in groups:
        if len(group) <= number:
            yield group
            number -= len(group)
        if number < 2:
            return
