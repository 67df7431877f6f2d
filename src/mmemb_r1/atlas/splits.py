"""Assign questions to splits: disjoint by country, by digit image and, for evaluation, by object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice, permutations

from mmemb_r1.atlas import tasks
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
        questions[split] = rows
    return questions


def unique_answers(countries: Collection[Country]) -> Mapping[str, set[str]]:
    """Find the answers that belong to one country only, by relation (Kingston is the capital of two)."""
    counts = {
        relation: Counter(country.facts[relation] for country in countries) for relation in tasks.LOOKUP_RELATIONS
    }
    return {relation: {answer for answer, n in count.items() if n == 1} for relation, count in counts.items()}


def digit_indices(key: str) -> list[int]:
    """Read the digit images out of a digit picture's key.

    >>> digit_indices("digits-12-845")
    [12, 845]
    """
    return [int(index) for index in key.split("-")[1:]]


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
