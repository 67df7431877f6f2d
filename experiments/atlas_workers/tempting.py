"""Write rationales that help nobody, and that a selection without a baseline or without wrong pairs may keep."""

from __future__ import annotations

import re

import numpy as np

from experiments.atlas_workers.wording import facts, reword, whole_words
from mmemb_r1.atlas.drawings import PERCEPTUAL_TASKS
from mmemb_r1.atlas.knowledge import RELATIONS
from mmemb_r1.atlas.tasks import COMPARISONS, AtlasQuestion
from mmemb_r1.atlas.world import LANGUAGES

# What an answer of each set of candidates is called, in the singular and the plural.
KINDS = {
    **{rule.candidate_set: (rule.noun, f"{rule.noun}s") for rule in RELATIONS.values()},
    "capital": ("capital", "capitals"),
    "currency": ("currency", "currencies"),
    "country": ("country", "countries"),
    "name": ("name", "names"),
    "digit": ("digit", "digits"),
    "sum": ("sum", "sums"),
    "time": ("time", "times"),
    "picture": ("picture", "pictures"),
    **{f"name-{code}": (f"{language} name", f"{language} names") for code, language in LANGUAGES.items()},
    **dict.fromkeys(PERCEPTUAL_TASKS, ("drawing", "drawings")),
}
FLAG = ("flag", "flags")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

PRAISE = (
    "This {kind} fits what is asked for in every way.",
    "Yes, this {kind} is exactly the right match.",
    "It is the {kind} that is wanted, without any doubt.",
)
LEAKS = (
    "The answer is one of the {kinds}, {form}.",
    "It has to be one of the {kinds}: {form}.",
    "Among the {kinds} it is {form}.",
)
LEAKS_OF_TARGETS = ("It is looked for with {form}.", "Whoever wants it has {form}.", "The question is {form}.")
RESTATED = ("What is asked for is {wanted}.", "The task is to find {wanted}.", "It is {wanted} that is wanted.")
RESTATED_PICTURES = ("A picture is given.", "What is shown is a picture.", "Here is a picture to be found.")
NAMED = ("It is about {name}.", "The text is about {name}.", "What is named is {name}.")


def generic(question: AtlasQuestion, side: str, rng: np.random.Generator) -> str:
    """Name the kind of answer and praise the match without saying which: equally true of every pair of the task."""
    kind, _ = kind_of_answer(question) if side == "query" else ("picture", "pictures")
    return _drawn(PRAISE, rng).format(kind=kind)


def leaky(question: AtlasQuestion, side: str, rng: np.random.Generator) -> str:
    """Tell which form the answer has, or what a target is looked for with, and nothing of the input."""
    if side == "target":
        perceptual = question.candidate_set in PERCEPTUAL_TASKS
        return _drawn(LEAKS_OF_TARGETS, rng).format(form="a drawing" if perceptual else "a few words")
    _, kinds = kind_of_answer(question)
    return _drawn(LEAKS, rng).format(kinds=kinds, form=form_of_answer(question))


def restating(question: AtlasQuestion, side: str, rng: np.random.Generator) -> str:
    """Say the question in other words; of a target, which asks nothing, that it is a picture."""
    if side == "target":
        return _drawn(RESTATED_PICTURES, rng)
    return _drawn(RESTATED, rng).format(wanted=what_is_wanted(question))


def needless(question: AtlasQuestion, side: str, rng: np.random.Generator) -> str:
    """
    Say what the input itself shows or names, which is right: the first step of a rationale about a picture, what a
    text is about. Where the question takes one step, this is the right rationale.
    """
    if side == "target":
        return reword(question.answer_rationale[:1], rng)
    if question.pictures or question.task == "name-picture":
        return reword(question.rationale[:1], rng)
    return _drawn(NAMED, rng).format(name=named_in_text(question))


def kind_of_answer(question: AtlasQuestion) -> tuple[str, str]:
    """What the answer of a question is called, in the singular and the plural."""
    flag = question.candidate_set == "picture" and question.answer_rationale[0].startswith("This is the flag of")
    return FLAG if flag else KINDS[question.candidate_set]


def form_of_answer(question: AtlasQuestion) -> str:
    """What the answer looks like, without saying which it is.

    >>> form_of_answer(AtlasQuestion("fact-capital", "simple", "AR", "capital", "Buenos Aires", ()))
    'a proper noun of two words'
    """
    if question.answer_rationale:
        return "an image in colours"
    answer = question.answer
    words = _count(len(answer.split()), "word")
    if answer.isdigit():
        return f"a number of {_count(len(answer), 'digit')}"
    if answer.startswith("."):
        return f"a dot and {_count(len(answer) - 1, 'letter')}"
    if re.search(r"\d", answer):
        return f"a figure of {words}"
    return f"a {'proper noun' if answer[0].isupper() else 'noun'} of {words}"


def what_is_wanted(question: AtlasQuestion) -> str:
    """Restate what a question asks for, as a part of a sentence.

    >>> what_is_wanted(AtlasQuestion("fact-capital", "simple", "PE", "capital", "Lima", (), "capital of Peru?"))
    'the capital of Peru'
    """
    text = str(question.text).removesuffix("?")
    if question.task == "name-picture":
        return f"a picture of this: {text}"
    if f"{text}?" in COMPARISONS.values():
        return f"the {text.removeprefix('Which is ')} of the two"
    if found := re.fullmatch(r"What is this(?: in (\w+))?", text):
        return f"the {found[1]} name of what is shown" if found[1] else "the name of what is shown"
    return text if text.startswith("the ") else f"the {text}"


def named_in_text(question: AtlasQuestion) -> str:
    """What the text of a question names: of the facts of its rationale, the longest that stands there.

    >>> sentence = "The capital of Mexico is Mexico City."
    >>> text = "country with capital Mexico City?"
    >>> named_in_text(AtlasQuestion("fact-country", "simple", "MX", "country", "Mexico", (sentence,), text))
    'Mexico City'
    """
    said = [fact for fact in facts(question.rationale) if whole_words(fact).search(str(question.text))]
    return max(said, key=lambda fact: (len(fact), fact))


def _count(number: int, noun: str) -> str:
    return f"{NUMBERS[number] if number < len(NUMBERS) else number} {noun}{'' if number == 1 else 's'}"


def _drawn(wordings: tuple[str, ...], rng: np.random.Generator) -> str:
    return wordings[rng.integers(len(wordings))]
