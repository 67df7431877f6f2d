"""Rephrase the sentences of Atlas rationales: with the same facts, or without any."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from mmemb_r1.atlas.knowledge import LARGEST, RELATIONS, SMALLEST
from mmemb_r1.atlas.tasks import SHIFTS

UNCHANGED_SHARE = 0.5
CONNECTIVE = "So"


@dataclass(frozen=True)
class Form:
    """One kind of sentence.

    Args:
        pattern (`str`): regular expression for a whole sentence of Atlas, its variable parts as named groups.
        wordings (`tuple[str, ...]`): format strings over the groups with the same meaning, that of Atlas first.
        blanks (`dict[str, tuple[str, ...]]`): group that holds a fact -> words that fill its place without a fact.
    """

    pattern: str
    wordings: tuple[str, ...]
    blanks: dict[str, tuple[str, ...]]


COUNTRY = ("the country", "this country")
# What a country has, without saying which: relation -> words in the place of the answer.
KINDS_OF_ANSWER = {
    "capital": ("a city", "some city"),
    "region": ("a part of the world", "some part of the world"),
    "currency": ("a kind of money", "some kind of money"),
    "language": ("a language", "some language"),
    "tld": ("a few letters", "some letters"),
    LARGEST: ("another country", "some country"),
    SMALLEST: ("another country", "some country"),
}
FORMS = (
    Form(
        r"This is the flag of (?P<name>.+)\.",
        ("This is the flag of {name}.", "It is the flag of {name}.", "That must be the flag of {name}."),
        {"name": ("a country", "some country")},
    ),
    Form(
        r"This is (?!the flag of )(?P<thing>.+)\.",
        ("This is {thing}.", "It is {thing}.", "That must be {thing}."),
        {"thing": ("something", "some object")},
    ),
    Form(
        r"The (?P<language>\w+) name is (?P<answer>.+)\.",
        ("The {language} name is {answer}.", "Its {language} name is {answer}.", "In {language} it is {answer}."),
        {"answer": ("a word", "some word")},
    ),
    *(
        Form(
            rf"The {RELATIONS[relation].noun} of (?P<name>.+?) is (?P<answer>.+)\.",
            (
                f"The {RELATIONS[relation].noun} of {{name}} is {{answer}}.",
                f"{{answer}} is the {RELATIONS[relation].noun} of {{name}}.",
            ),
            {"name": COUNTRY, "answer": answers},
        )
        for relation, answers in KINDS_OF_ANSWER.items()
    ),
    *(
        Form(
            rf"(?P<name>[^,]+) has (?P<answer>[^,]+ {unit})\.",
            ("{name} has {answer}.", f"The {relation} of {{name}} is {{answer}}."),
            {"name": COUNTRY, "answer": answers},
        )
        for relation, unit, answers in (
            ("area", "km2", ("an area", "some area")),
            ("population", "people", ("a number of people", "some people")),
        )
    ),
    Form(
        r"First (?P<first>.+), second (?P<second>.+)\.",
        ("First {first}, second {second}.", "The first is {first}, the second is {second}."),
        {"first": ("a country", "some country"), "second": ("a country", "another country")},
    ),
    Form(
        r"(?P<first>.+) has (?P<this>[^,]+), (?P<second>.+) has (?P<that>[^,]+)\.",
        ("{first} has {this}, {second} has {that}.", "{first} has {this} and {second} has {that}."),
        {
            "first": ("the first",),
            "second": ("the second",),
            "this": ("a size", "some size"),
            "that": ("a size", "another size"),
        },
    ),
    Form(
        r"(?P<winner>.+) is (?P<verdict>larger|more populous)\.",
        ("{winner} is {verdict}.", "The {verdict} country is {winner}."),
        {"winner": ("a country", "some country")},
    ),
    Form(
        r"The digits are (?P<digits>\d(?:, \d)*)\.",
        ("The digits are {digits}.", "It says {digits}.", "I read {digits}."),
        {"digits": ("some digits", "a few digits")},
    ),
    Form(
        r"The digit is (?P<digits>\d)\.",
        ("The digit is {digits}.", "It says {digits}.", "I read {digits}."),
        {"digits": ("a digit", "some digit")},
    ),
    Form(
        rf"It is (?P<answer>.+) (?P<shift>{'|'.join(SHIFTS.values())})\.",
        ("It is {answer} {shift}.", "The time {shift} is {answer}."),
        {"answer": ("another time", "some other time")},
    ),
    Form(
        r"The sum is (?P<answer>\d+)\.",
        ("The sum is {answer}.", "They add up to {answer}."),
        {"answer": ("a number", "some number")},
    ),
    Form(
        r"The (?P<which>largest|\d(?:st|nd|rd|th)) is (?P<answer>\d)\.",
        ("The {which} is {answer}.", "The {which} digit is {answer}."),
        {"answer": ("a digit", "some digit")},
    ),
)


def phrasings(segments: Sequence[str]) -> list[str]:
    """List every wording of a rationale with all of its facts in their order, that of Atlas first.

    >>> phrasings(["This is an onion."])
    ['This is an onion.', 'It is an onion.', 'That must be an onion.']
    """
    read = [_read(segment) for segment in segments]
    openings = [[_say(wording, parts) for wording in form.wordings] for form, parts in read[:-1]]
    form, parts = read[-1]
    endings = [_say(wording, parts) for wording in form.wordings]
    if openings:
        endings += [_conclude(wording, parts) for wording in form.wordings]
    return [" ".join(sentences) for sentences in product(*openings, endings)]


def reword(segments: Sequence[str], rng: np.random.Generator) -> str:
    """Draw a wording of a rationale: unchanged in half of the draws, otherwise in other words."""
    unchanged, *others = phrasings(segments)
    return unchanged if rng.random() < UNCHANGED_SHARE else others[rng.integers(len(others))]


def blank(segments: Sequence[str], rng: np.random.Generator) -> str:
    """Remove the facts from the sentences of a rationale.

    >>> segments = ["This is the flag of Peru.", "The capital of Peru is Lima."]
    >>> blank(segments, np.random.default_rng(0))
    'It is the flag of some country. The capital of this country is a city.'
    """
    sentences = []
    for form, parts in map(_read, segments):
        blanks = {group: words[rng.integers(len(words))] for group, words in form.blanks.items()}
        sentences.append(_say(form.wordings[rng.integers(len(form.wordings))], {**parts, **blanks}))
    return " ".join(sentences)


def facts(segments: Sequence[str]) -> set[str]:
    """Find the facts of a rationale: names, answers, figures.

    >>> sorted(facts(["This is a dog face.", "The German name is hundegesicht."]))
    ['dog face', 'hundegesicht']
    """
    found = (parts[group] for form, parts in map(_read, segments) for group in form.blanks)
    return {re.sub("^an? ", "", fact) for fact in found}


@cache
def whole_words(text: str) -> re.Pattern[str]:
    """Match a text where it is not part of other words, in upper or lower case.

    >>> bool(whole_words("Oman").search("in Oman.")), bool(whole_words("Oman").search("a woman"))
    (True, False)
    """
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", re.IGNORECASE)


@cache
def _read(segment: str) -> tuple[Form, dict[str, str]]:
    """The form of a sentence of Atlas and its parts."""
    for form in FORMS:
        if found := re.fullmatch(form.pattern, segment):
            return form, found.groupdict()
    raise ValueError(f"{segment!r} is not a sentence of an Atlas rationale. Add its form to FORMS.")


def _say(wording: str, parts: Mapping[str, str]) -> str:
    sentence = wording.format(**parts)
    return sentence[0].upper() + sentence[1:]


def _conclude(wording: str, parts: Mapping[str, str]) -> str:
    opening = wording if wording.startswith("{") else wording[0].lower() + wording[1:]
    return f"{CONNECTIVE} {opening.format(**parts)}"
