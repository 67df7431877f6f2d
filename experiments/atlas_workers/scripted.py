"""Write the rationales of eight kinds of workers for an Atlas question: one kind helps, the others do not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.atlas_workers.look_alikes import LookAlikes
from experiments.atlas_workers.tempting import generic, leaky, needless, restating
from experiments.atlas_workers.wording import blank, facts, reword, whole_words
from mmemb_r1.atlas.hashing import seeded_rng
from mmemb_r1.atlas.tasks import AT_SIGHT, AtlasQuestion

# Behaviour -> whether its rationales help to find the target.
POOL = {"correct": True, "confused": False, "verbose": False, "format": False}  # the usual pool
TEMPTING = {"generic": generic, "leaky": leaky, "restating": restating, "needless": needless}
HELPFUL = {**POOL, **dict.fromkeys(TEMPTING, False)}  # the hard pool
BEHAVIOURS = tuple(HELPFUL)

VERBOSE_LENGTHS = (2, 3)  # times the words of the right rationale
# True of whatever is seen or read, and of no use. No digits and no number words: these are answers.
ABOUT_PICTURES = (
    "The background is plain and light.",
    "Everything stands out well against the empty background.",
    "There is little here to distract the eye.",
    "Some parts are darker than others, which gives contrast.",
    "It may help to look at shapes before details.",
    "People could ask who made this and for what purpose.",
    "The style is plain, without shadows or perspective.",
    "There are many ways to describe what is shown.",
    "It would look different in another light or in print.",
    "A closer look would hardly change the overall impression.",
    "Its proportions are even and easy on the eye.",
    "Simple drawings leave much to the viewer.",
    "Colour alone rarely settles a question.",
    "Nobody can tell from this how large the original is.",
    "Lines and areas are balanced in a pleasant way.",
    "What matters most is usually found near the middle.",
)
ABOUT_TEXTS = (
    "The text is short and clearly put.",
    "There is nothing to look at, only words to read.",
    "Words like these can be read in more than a single way.",
    "It would be interesting to know who asks and why.",
    "A longer text might say more about what is wanted.",
    "Short texts leave much to the reader.",
    "Such requests are common in quizzes and searches.",
    "The spelling is correct and the tone is neutral.",
    "The order of the words carries some of the meaning.",
    "Reading it again would hardly change anything.",
    "It can be dealt with briefly or at length.",
    "There is little to say about style or grammar.",
    "People ask such things out of curiosity or for work.",
    "It helps to know who wrote it, and when.",
    "Nothing in it is urgent or surprising.",
    "Some would put it more politely.",
)


def right_rationale(question: AtlasQuestion, side: str) -> tuple[str, ...]:
    """The right rationale of one side; empty for a target that is text."""
    return question.rationale if side == "query" else question.answer_rationale


def helps(behaviour: str, question: AtlasQuestion, side: str) -> bool:
    """Tell whether a rationale adds a fact that the question needs beyond what the input shows.

    Only those of a helpful worker can, and only where there is such a fact. Where everything needed is shown or said
    (the name of a picture, the one digit of a sum), "correct" and "needless" write the same, and neither counts as
    helpful: their rationales are right, and the direct vector can know as much. Of several steps, "needless" says
    the first alone, which is not enough: the country that a flag shows is no capital.

    Args:
        behaviour (`str`): one of `BEHAVIOURS`.
        question (`AtlasQuestion`): what is asked.
        side (`str`): "query" or "target", which input the rationale is about. A target is a picture, and shows all.
    """
    if side == "target" or question.task == "name-picture":
        return False
    shown = bool(question.pictures) and (len(question.rationale) == 1 or question.variant == AT_SIGHT)
    return HELPFUL[behaviour] and not shown


def scripted_rationale(
    behaviour: str, question: AtlasQuestion, side: str, seed: int, look_alikes: LookAlikes
) -> str | None:
    """Write the rationale of a worker for one side of a question, a pure function of its arguments.

    Args:
        behaviour (`str`): one of `BEHAVIOURS`. "correct" gives the right rationale; "confused" mistakes what is
            seen for a look-alike and reasons on from there; "verbose" talks at length of something else; "format" has
            the sentences of a right one, without the facts; "generic" praises any match; "leaky" tells the form of
            the answer; "restating" repeats the question in other words; "needless" says what the input shows.
        question (`AtlasQuestion`): what is asked.
        side (`str`): "query" or "target": which input the worker was shown.
        seed (`int`): other seeds give other words, other mistakes, other chatter.
        look_alikes (`LookAlikes`): what can be mistaken for what.

    Returns:
        `str`, or None where the side has no rationale: a target that is text.

    Raises:
        ValueError: unknown behaviour.
    """
    if behaviour not in HELPFUL:
        raise ValueError(f"behaviour is {behaviour!r}; allowed: {', '.join(BEHAVIOURS)}.")
    right = right_rationale(question, side)
    if not right:
        return None
    rng = seeded_rng(behaviour, seed, side, question.task, question.entity, question.variant)
    if behaviour in TEMPTING:
        return TEMPTING[behaviour](question, side, rng)
    if behaviour == "confused":
        mistakes = look_alikes.mistakes(question, side)
        return reword(mistakes[rng.integers(len(mistakes))], rng)
    if behaviour == "verbose":
        sees_picture = side == "target" or bool(question.pictures)
        return chatter(ABOUT_PICTURES if sees_picture else ABOUT_TEXTS, right, rng)
    return reword(right, rng) if behaviour == "correct" else blank(right, rng)


def chatter(sentences: Sequence[str], right: Sequence[str], rng: np.random.Generator) -> str:
    """Draw sentences in any order, two to three times as long as a rationale, without a word of its facts."""
    secrets = [whole_words(fact) for fact in facts(right)]
    usable = [sentence for sentence in sentences if not any(secret.search(sentence) for secret in secrets)]
    length = sum(len(segment.split()) for segment in right)
    least, most = (times * length for times in VERBOSE_LENGTHS)
    chosen: list[str] = []
    words = 0
    for place in rng.permutation(len(usable)):
        added = len(usable[place].split())
        if words < least and words + added <= most:
            chosen.append(usable[place])
            words += added
    return " ".join(chosen)
