"""Rationales that help nobody, and that a selection may take for helpful."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from experiments.atlas_workers.scripted import BEHAVIOURS, helps, right_rationale, scripted_rationale
from experiments.atlas_workers.tempting import form_of_answer, kind_of_answer, what_is_wanted
from experiments.atlas_workers.wording import facts, phrasings, whole_words
from mmemb_r1.atlas.tasks import AtlasQuestion

SEEDS = range(6)


@pytest.fixture(scope="module")
def asked(recalled):
    """(question, side) of every input of the Atlas that has a rationale."""
    sides = ((question, side) for question in recalled[1].values() for side in ("query", "target"))
    return [*dict.fromkeys((question, side) for question, side in sides if right_rationale(question, side))]


@pytest.fixture(scope="module")
def write(look_alikes):
    """Writes some rationales of a behaviour."""

    def written(behaviour, question, side="query"):
        return {scripted_rationale(behaviour, question, side, seed, look_alikes) for seed in SEEDS}

    return written


def question_of(asked, task, **wanted):
    found = (question for question, _ in asked if question.task == task)
    return next(q for q in found if all(getattr(q, name) == value for name, value in wanted.items()))


def test_generic_says_the_same_of_every_pair_of_a_task(asked, write):
    """Else it could tell a right pair from a wrong one."""
    said = defaultdict(set)
    for question, side in asked:
        said[question.task, side, kind_of_answer(question)] |= write("generic", question, side)
    assert all(len(texts) <= 3 for texts in said.values())
    (capitals,) = (texts for (task, *_), texts in said.items() if task == "flag-capital")
    assert all("capital" in text for text in capitals)


def test_leaky_depends_on_the_form_of_the_answer_alone(asked, write):
    said = defaultdict(set)
    for question, side in asked:
        form = form_of_answer(question) if side == "query" else question.candidate_set
        said[kind_of_answer(question), side, form] |= write("leaky", question, side)
    assert all(len(texts) <= 3 for texts in said.values())
    forms = {form for (kind, side, form) in said if side == "query" and kind == ("capital", "capitals")}
    assert "a proper noun of one word" in forms and "a proper noun of two words" in forms


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("Lima", "a proper noun of one word"),
        ("monkey face", "a noun of two words"),
        (".pe", "a dot and two letters"),
        ("12", "a number of two digits"),
        ("1.4 billion people", "a figure of three words"),
        ("six o’clock", "a noun of two words"),
    ],
)
def test_the_form_of_an_answer(answer, form):
    assert form_of_answer(AtlasQuestion("fact-capital", "simple", "PE", "capital", answer, ())) == form


def test_restating_asks_the_same_and_adds_no_fact(asked, write):
    for question, side in asked:
        for text in write("restating", question, side):
            assert side == "target" or what_is_wanted(question) in text
            told = {fact for fact in facts(right_rationale(question, side)) if whole_words(fact).search(text)}
            assert all(side == "query" and whole_words(fact).search(question.text) for fact in told), text


@pytest.mark.parametrize(
    ("task", "wanted", "restated"),
    [
        ("flag-capital", {}, "the capital of this country"),
        ("picture-name-flag", {}, "the name of what is shown"),
        ("picture-name-de", {}, "the German name of what is shown"),
        ("compare-population", {}, "the more populous of the two"),
        ("same-flag", {}, "the same drawing"),
        ("digits-nth", {"text": "2nd digit?"}, "the 2nd digit"),
    ],
)
def test_questions_in_other_words(asked, task, wanted, restated):
    assert what_is_wanted(question_of(asked, task, **wanted)) == restated


def test_needless_says_what_the_input_shows_and_no_more(asked, write):
    for question, side in asked:
        said, right = write("needless", question, side), right_rationale(question, side)
        if question.pictures or side == "target":
            assert said <= set(phrasings(right[:1]))
        for text in said if not question.pictures and side == "query" else ():
            named = {fact for fact in facts(right) if whole_words(fact).search(text)}
            assert named and all(whole_words(fact).search(question.text) for fact in named)
        if helps("correct", question, side):
            assert not any(conclusion in text for text in said for conclusion in phrasings(right[-1:]))


def test_correct_helps_where_needless_does_not_say_all(asked, write):
    """The same text never counts both ways."""
    for question, side in asked:
        assert [worker for worker in BEHAVIOURS if helps(worker, question, side)] in ([], ["correct"])
        same = write("needless", question, side) & write("correct", question, side)
        assert not (helps("correct", question, side) and same)


@pytest.mark.parametrize(
    ("task", "wanted", "helpful"),
    [
        ("flag-capital", {}, True),
        ("neighbour-capital", {}, True),
        ("compare-area", {}, True),
        ("fact-flag", {}, True),
        ("fact-capital", {}, True),
        ("picture-name-de", {}, True),
        ("mixed-sum", {"variant": "step"}, True),
        ("mixed-sum", {"variant": "sight"}, False),
        ("mixed-time", {"variant": "sight"}, False),
        ("picture-name-flag", {}, False),
        ("name-picture", {}, False),
        ("same-flag", {}, False),
    ],
)
def test_what_a_question_needs_beyond_its_input(asked, task, wanted, helpful):
    question = question_of(asked, task, **wanted)
    assert helps("correct", question, "query") is helpful
    assert not helps("needless", question, "query")
    assert not helps("correct", question, "target"), "a picture shows what it is"


def test_needless_stops_at_the_country(asked, write):
    question = question_of(asked, "flag-capital")
    (name,) = re.findall("This is the flag of (.+)[.]", question.rationale[0])
    assert all(name in text and text.count(".") == 1 for text in write("needless", question))
