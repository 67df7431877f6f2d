"""Assign questions to splits: disjoint by country, by digit image and, for evaluation, by object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, permutations, product

from mmemb_r1.atlas import tasks
from mmemb_r1.atlas.drawings import SAME_CLOCK, SAME_FLAG, SAME_PERSON, SAME_SIGN, SPLIT_TASKS, Drawing
from mmemb_r1.atlas.hashing import seeded_rng, split_keys, unit_hash
from mmemb_r1.atlas.knowledge import Country
from mmemb_r1.atlas.tasks import AtlasQuestion
from mmemb_r1.atlas.world import LANGUAGES, World

TRAIN = "train"
FRACTIONS = {TRAIN: 0.55, "policy": 0.13, "validation": 0.07, "test": 0.25}
SPLITS = tuple(FRACTIONS)
# Every object is trained; the other splits show disjoint subsets in other renderings.
OBJECT_FRACTIONS = {"policy": 0.3, "validation": 0.15, "test": 0.55}
# Comparisons and digits can be generated without end: rows of each such task, as a share of `generated_rows`.
GENERATED = {TRAIN: 1.0, "policy": 0.2, "validation": 0.05, "test": 0.08}
# Where drawings are few, each is asked for in so many renderings; else in one.
RENDERINGS = {
    SAME_PERSON: {"policy": 2, "test": 2},
    SAME_FLAG: {"policy": 2, "test": 2},
    SAME_CLOCK: {"test": 2},
    SAME_SIGN: {"test": 2},
}
DIGIT_TASKS = ("digits-sum", "digits-largest", "digits-nth")


def split_questions(world: World, *, seed: int, generated_rows: int) -> dict[str, list[AtlasQuestion]]:
    """Ask the questions of every split, in a fixed order."""
    by_code = {country.code: country for country in world.countries}
    unique = unique_answers(world.countries)
    country_split = split_keys((flag.code for flag in world.flags), FRACTIONS, seed, "country")
    object_split = split_keys((thing.hexcode for thing in world.objects), OBJECT_FRACTIONS, seed, "object")
    digit_split = split_keys(map(str, range(len(world.digits))), FRACTIONS, seed, "digit")

    questions: dict[str, list[AtlasQuestion]] = {}
    for split, share in GENERATED.items():
        own = [flag for flag in world.flags if country_split[flag.code] == split]
        named, things, known = own, [t for t in world.objects if object_split[t.hexcode] == split], own
        if split == TRAIN:
            named, things, known = world.flags, world.objects, world.countries
        rows: list[AtlasQuestion] = []
        for flag in named:
            rows.extend(tasks.flag_naming(flag))
        for thing in things:
            rows.extend(tasks.object_naming(thing, LANGUAGES if thing.hexcode in world.translated else ()))
        for country in known:
            rows.extend(tasks.country_facts(country))
            rows.extend(tasks.country_lookups(country, unique))
        for flag in own:
            rows.extend(tasks.flag_facts(flag, by_code))
            rows.extend(tasks.flag_lookups(flag, unique))
        number = round(share * generated_rows)
        rows.extend(_comparisons(own, number, seed))
        own_digits = [index for index in range(len(world.digits)) if digit_split[str(index)] == split]
        rows.extend(_digit_questions(own_digits, world.digits, number, seed, split))
        rows.extend(_same_drawings(world.drawings, seed, split))
        rows.extend(_mixed_sums(own_digits, world.digits, number, seed, split))
        rows.extend(_mixed_times(world.clocks, number, seed, split))
        questions[split] = rows
    return questions


def unique_answers(countries: Collection[Country]) -> Mapping[str, set[str]]:
    """Find the answers that belong to one country only, by relation (Kingston is the capital of two)."""
    counts = {
        relation: Counter(country.facts[relation] for country in countries) for relation in tasks.LOOKUP_RELATIONS
    }
    return {relation: {answer for answer, n in count.items() if n == 1} for relation, count in counts.items()}


@dataclass(frozen=True)
class DigitCell:
    """A digit of a picture of digits: a handwritten one, or a keycap."""

    image: int = 0  # number of the handwritten image
    keycap: bool = False
    digit: int = 0  # of the keycap


def digit_cells(key: str) -> list[DigitCell]:
    """Read what a picture of digits shows out of its key.

    >>> digit_cells("digits-12-k7")
    [DigitCell(image=12, keycap=False, digit=0), DigitCell(image=0, keycap=True, digit=7)]
    """
    parts = key.split("-")[1:]
    return [DigitCell(keycap=True, digit=int(part[1:])) if part[0] == "k" else DigitCell(int(part)) for part in parts]


def digit_indices(key: str) -> list[int]:
    """Read the handwritten images out of the key of a picture of digits.

    >>> digit_indices("digits-12-845"), digit_indices("digits-12-k7")
    ([12, 845], [12])
    """
    return [cell.image for cell in digit_cells(key) if not cell.keycap]


def _comparisons(flags: list[Country], number: int, seed: int) -> Iterator[AtlasQuestion]:
    by_code = {flag.code: flag for flag in flags}
    for relation in tasks.COMPARISONS:
        ordered = sorted(permutations(by_code, 2), key=lambda pair: unit_hash(seed, "compare", relation, *pair))
        asked = (tasks.comparison(relation, by_code[first], by_code[second]) for first, second in ordered)
        yield from islice(filter(None, asked), number)


def _digit_questions(
    indices: list[int], labels: Sequence[int], number: int, seed: int, split: str
) -> Iterator[AtlasQuestion]:
    for task in DIGIT_TASKS:
        rng = seeded_rng(seed, "digits", split, task)
        asked: dict[str, AtlasQuestion] = {}
        while len(asked) < number:
            count = int(rng.integers(2, tasks.MAX_DIGITS + 1))
            chosen = [indices[i] for i in rng.choice(len(indices), size=count, replace=False)]
            key = "-".join(["digits", *map(str, chosen)])
            place = int(rng.integers(count))
            asked.setdefault(key, tasks.digit_question(task, key, [int(labels[i]) for i in chosen], place))
        yield from asked.values()


def _same_drawings(drawings: Sequence[Drawing], seed: int, split: str) -> Iterator[AtlasQuestion]:
    """Ask for drawings among near-duplicates, which are of the split or trained: of no other evaluation split."""
    for task in dict.fromkeys(drawing.task for drawing in drawings):
        own = [drawing for drawing in drawings if drawing.task == task]
        split_of = dict.fromkeys((drawing.entity for drawing in own), split)
        if task in SPLIT_TASKS:
            split_of = split_keys(split_of, FRACTIONS, seed, task)
        shown = {drawing.key for drawing in own if split_of[drawing.entity] in (TRAIN, split)}
        renderings = range(1, RENDERINGS.get(task, {}).get(split, 1) + 1)
        asked = product((drawing for drawing in own if split_of[drawing.entity] == split), renderings)
        yield from (tasks.same_drawing(drawing, shown, rendering) for drawing, rendering in asked)


def _mixed_sums(
    indices: list[int], labels: Sequence[int], number: int, seed: int, split: str
) -> Iterator[AtlasQuestion]:
    """Ask for sums of up to three digits, half of them of a single one; several are not all keycaps."""
    rng = seeded_rng(seed, "mixed-sum", split)
    asked: dict[str, AtlasQuestion] = {}
    while len(asked) < number:
        count = 1 if rng.random() < 0.5 else int(rng.integers(2, tasks.MAX_SUMMED + 1))
        cells = [DigitCell(keycap=True, digit=int(rng.integers(10))) for _ in range(count)]
        images = rng.choice(len(indices), size=count, replace=False)
        written = rng.random(count) < 0.5
        if count > 1:  # the sums of keycaps alone are few: they would be the trained ones
            written[rng.integers(count)] = True
        cells = [
            DigitCell(indices[image]) if own else cell for cell, image, own in zip(cells, images, written, strict=True)
        ]
        key = "-".join(["mixed", *(f"k{cell.digit}" if cell.keycap else str(cell.image) for cell in cells)])
        digits = [cell.digit if cell.keycap else int(labels[cell.image]) for cell in cells]
        asked.setdefault(key, tasks.mixed_sum(key, digits))
    yield from asked.values()


def _mixed_times(clocks: Mapping[str, str], number: int, seed: int, split: str) -> Iterator[AtlasQuestion]:
    """
    Ask clock faces for the time, and for the time some half hours later or earlier.

    All faces are trained; the combinations of face and shift are split.
    """
    keys = {f"{key}{shift:+}": (key, shift) for key, shift in product(clocks, tasks.SHIFTS)}
    split_of = split_keys(keys, FRACTIONS, seed, "mixed-time")
    asked = [tasks.mixed_time(clocks, key) for key in clocks]
    asked += [tasks.mixed_time(clocks, *of) for name, of in keys.items() if split_of[name] == split]
    yield from sorted(asked, key=lambda one: unit_hash(seed, "mixed-time", one.entity, one.variant))[:number]
