"""Find what can be mistaken for what, and the wrong rationales that follow from such a mistake."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import TYPE_CHECKING

import numpy as np

from experiments.atlas_workers.wording import facts, whole_words
from mmemb_r1.atlas.knowledge import Country
from mmemb_r1.atlas.pictures import as_vector
from mmemb_r1.atlas.splits import digit_cells
from mmemb_r1.atlas.tasks import ORDINALS, PERCEPTUAL, AtlasQuestion, comparison, digit_question, mixed_sum

if TYPE_CHECKING:
    from PIL import Image

    from mmemb_r1.atlas.world import World


NEAREST = 4  # things that one thing is mistaken for
# What each handwritten digit is easily read as.
MISREAD = ((6, 8), (7, 4), (3, 7), (8, 5), (9, 1), (6, 3), (5, 0), (1, 9), (3, 0), (4, 7))


class LookAlikes:
    """
    Mistakes that can be made about the inputs of an Atlas.

    Whoever mistakes a flag, a country or an object for another one goes on to that one's answer to the same question.
    Those others are taken from the training questions, so that a wrong rationale, too, gives away nothing
    about countries that are held out.

    Args:
        world (`World`): what is asked about.
        questions (`Iterable[AtlasQuestion]`): those of the training split.
    """

    def __init__(self, world: World, questions: Iterable[AtlasQuestion]) -> None:
        self._digits = world.digits
        self._sentences = {(drawing.task, drawing.key): drawing.sentence for drawing in world.drawings}
        self._countries = {country.code: country for country in world.countries}
        self._asked = {(question.task, question.variant, question.entity): question for question in questions}
        objects = {thing.hexcode: thing.name for thing in world.objects}
        flags = {code: picture for code, picture in world.pictures.items() if code in self._countries}
        things = {code: picture for code, picture in world.pictures.items() if code in objects}
        clocks = {key: world.drawn[key] for key in world.clocks}
        self._seen_as = nearest_pictures(flags) | nearest_pictures(things) | nearest_pictures(clocks)
        self._taken_for = nearest_countries(self._countries) | nearest_names(objects)
        self._found: dict[tuple[AtlasQuestion, str], list[tuple[str, ...]]] = {}

    def mistakes(self, question: AtlasQuestion, side: str) -> list[tuple[str, ...]]:
        """The rationales of some mistakes about the input of one side, the likeliest first.

        Args:
            question (`AtlasQuestion`): what is asked.
            side (`str`): "query" or "target", the latter for answers that are pictures only.

        Returns:
            `list[tuple[str, ...]]`: at least one; the conclusion of each is wrong.
        """
        if (question, side) not in self._found:
            self._found[question, side] = self._find(question, side)
        return self._found[question, side]

    def _find(self, question: AtlasQuestion, side: str) -> list[tuple[str, ...]]:
        if question.complexity == PERCEPTUAL:
            return self._near_duplicates(question)
        if side == "target":
            others = self._others("name-picture", "", self._seen_as[question.entity])
            return unlike(question.answer_rationale, (other.answer_rationale for other in others))
        if question.task.startswith(("digits-", "mixed-sum")):
            cells = digit_cells(question.entity)
            digits = [cell.digit if cell.keycap else self._digits[cell.image] for cell in cells]
            return misread_digits(question, digits)
        if question.task.startswith("compare-"):
            return self._mistaken_comparisons(question)
        order = (self._seen_as if question.pictures else self._taken_for)[question.entity]
        others = self._others(question.task, question.variant, order)
        # in a small world nobody else may have such a neighbour: then another question with answers of the same kind
        return unlike(question.rationale, (other.rationale for other in others)) or unlike(
            question.rationale, self._with_answers_like(question, order)
        )

    def _near_duplicates(self, question: AtlasQuestion) -> list[tuple[str, ...]]:
        """Another drawing is seen: one that is nearly the same, unless its name holds the right one."""
        near = [(self._sentences[question.task, key],) for key in question.negatives]
        trained = [other.rationale for other in self._asked.values() if other.task == question.task]
        return unlike(question.rationale, near) or unlike(question.rationale, trained)

    def _others(self, task: str, variant: str, order: Iterable[str]) -> Iterator[AtlasQuestion]:
        return (self._asked[task, variant, code] for code in order if (task, variant, code) in self._asked)

    def _with_answers_like(self, question: AtlasQuestion, order: Iterable[str]) -> list[tuple[str, ...]]:
        place = {code: rank for rank, code in enumerate(order)}
        kind = (question.candidate_set, bool(question.pictures))
        alike = [other for other in self._asked.values() if (other.candidate_set, bool(other.pictures)) == kind]
        known = sorted((other for other in alike if other.entity in place), key=lambda other: place[other.entity])
        return [other.rationale for other in known]

    def _mistaken_comparisons(self, question: AtlasQuestion) -> list[tuple[str, ...]]:
        """One of the two flags is taken for another, or both are right and the verdict is not."""
        codes = question.entity.split("+")
        mistakes: list[tuple[str, ...]] = []
        for place, code in enumerate(codes):
            others = self._others("flag-capital", "", self._seen_as[code])
            believed = ([*codes[:place], other.entity, *codes[place + 1 :]] for other in others)
            compared = (self._compare(question.task, *pair) for pair in believed if len(set(pair)) == len(pair))
            wrong = (other.rationale for other in compared if other and other.answer != question.answer)
            mistakes += islice(wrong, NEAREST // 2)
        (loser,) = {self._countries[code].name for code in codes} - {question.answer}
        *right, verdict = question.rationale
        return [*mistakes, (*right, loser + verdict.removeprefix(question.answer))]

    def _compare(self, task: str, first: str, second: str) -> AtlasQuestion | None:
        return comparison(task.removeprefix("compare-"), self._countries[first], self._countries[second])


def unlike(right: Sequence[str], rationales: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The first few rationales that name nothing of which the right one's conclusion speaks: no use, not by chance.

    >>> unlike(["This is a house."], [("This is a derelict house.",), ("This is a hut.",)])
    [('This is a hut.',)]
    """
    truths = [whole_words(fact) for fact in facts(right[-1:])]
    wrong = (each for each in rationales if not any(truth.search(" ".join(each)) for truth in truths))
    return list(islice(wrong, NEAREST))


def misread_digits(question: AtlasQuestion, digits: list[int]) -> list[tuple[str, ...]]:
    """The rationales that follow from reading as few digits wrongly as it takes to get a wrong answer.

    >>> misread_digits(digit_question("digits-largest", "digits-0-1", [9, 2]), [9, 2])[0]
    ('The digits are 4, 2.', 'The largest is 4.')
    """
    place = ORDINALS.index(str(question.text).split()[0]) if question.task == "digits-nth" else 0
    wrong: dict[int, list[tuple[str, ...]]] = {}
    for read in product(*((digit, *MISREAD[digit]) for digit in digits)):
        believed = (
            mixed_sum(question.entity, read)
            if question.task == "mixed-sum"
            else digit_question(question.task, question.entity, read, place)
        )
        if believed.answer != question.answer:
            errors = sum(a != b for a, b in zip(read, digits, strict=True))
            wrong.setdefault(errors, []).append(believed.rationale)
    return wrong[min(wrong)]


def nearest_pictures(pictures: Mapping[str, Image.Image]) -> dict[str, list[str]]:
    """Key -> all other keys, those with the most similar pictures first.

    Args:
        pictures (`Mapping[str, PIL.Image.Image]`): RGB.
    """
    keys = list(pictures)
    vectors = np.stack([as_vector(picture) for picture in pictures.values()])
    orders = {}
    for place, key in enumerate(keys):
        distances = np.abs(vectors - vectors[place]).mean(axis=1)
        orders[key] = [keys[other] for other in distances.argsort(kind="stable") if other != place]
    return orders


def nearest_names(names: Mapping[str, str]) -> dict[str, list[str]]:
    """Key -> all other keys, those with the most similar names first: they share the most pairs of letters.

    >>> nearest_names({"a": "dog face", "b": "train", "c": "cat face"})["a"]
    ['c', 'b']
    """
    pairs = {key: {name[place : place + 2] for place in range(len(name) - 1)} for key, name in names.items()}
    orders = {}
    for key, own in pairs.items():
        shared = {other: len(own & theirs) / len(own | theirs) for other, theirs in pairs.items() if other != key}
        orders[key] = sorted(shared, key=shared.__getitem__, reverse=True)
    return orders


def nearest_countries(countries: Mapping[str, Country]) -> dict[str, list[str]]:
    """Code -> all other codes, neighbours first, then those with the most similar names."""
    orders = nearest_names({code: country.name for code, country in countries.items()})
    for code, order in orders.items():
        far = set(order) - set(countries[code].neighbours.values())
        order.sort(key=far.__contains__)
    return orders
