from __future__ import annotations

import re

import numpy as np
import pytest

from experiments.atlas_workers.wording import FORMS, blank, facts, phrasings, reword, whole_words
from mmemb_r1.atlas.drawings import clock_faces
from mmemb_r1.atlas.knowledge import load_countries
from mmemb_r1.atlas.tasks import (
    COMPARISONS,
    SHIFTS,
    comparison,
    country_facts,
    digit_question,
    flag_facts,
    mixed_sum,
    mixed_time,
    object_naming,
)
from mmemb_r1.atlas.world import LANGUAGES, load_objects

CHAIN = ("This is the flag of Peru.", "The largest neighbour of Peru is Brazil.", "The capital of Brazil is Brasília.")


@pytest.fixture(scope="module")
def rationales():
    """Every rationale about one country or object, and some comparisons and digits."""
    countries = load_countries()
    by_code = {country.code: country for country in countries}
    questions = [question for country in countries for question in country_facts(country)]
    questions += [question for country in countries for question in flag_facts(country, by_code)]
    for thing in load_objects():
        questions += object_naming(thing, [language for language in LANGUAGES if language in thing.translations])
    for first, second in zip(countries, countries[7:], strict=False):
        questions += filter(None, (comparison(relation, first, second) for relation in COMPARISONS))
    for task in ("digits-sum", "digits-largest", "digits-nth"):
        questions += [digit_question(task, "digits-0-1-2", [4, 0, place], place) for place in range(3)]
    questions += [mixed_sum("mixed-k4", [4]), mixed_sum("mixed-k4-0", [4, 0])]
    clocks = clock_faces()
    questions += [mixed_time(clocks, key, shift) for key in clocks for shift in (0, *SHIFTS)]
    return {question.rationale for question in questions}


def test_every_sentence_has_one_form(rationales):
    for sentence in {sentence for rationale in rationales for sentence in rationale}:
        assert sum(re.fullmatch(form.pattern, sentence) is not None for form in FORMS) == 1, sentence


def test_the_gold_wording_comes_first_and_all_keep_every_fact(rationales):
    for rationale in rationales:
        gold, *others = phrasings(rationale)
        assert gold == " ".join(rationale)
        assert others and gold not in others
        for said in others:
            assert all(fact in said for fact in facts(rationale)), said
            assert said.endswith(".") and said[:1] == said[:1].upper()


def test_other_words_for_a_chain():
    said = "It is the flag of Peru. Brazil is the largest neighbour of Peru. So Brasília is the capital of Brazil."
    assert said in phrasings(CHAIN)


def test_half_of_the_draws_are_gold():
    said = [reword(CHAIN, np.random.default_rng(seed)) for seed in range(400)]
    assert 160 < said.count(" ".join(CHAIN)) < 240
    assert len(set(said)) > 10


def test_blanks_keep_the_form_and_no_fact(rationales):
    for rationale in rationales:
        said = blank(rationale, np.random.default_rng(0))
        assert said.count(".") == len(rationale)
        assert not [fact for fact in facts(rationale) if whole_words(fact).search(said)], said


def test_a_sentence_of_no_form_is_an_error():
    with pytest.raises(ValueError, match="'Peru is nice.' is not a sentence of an Atlas rationale. Add its form"):
        phrasings(["Peru is nice."])
