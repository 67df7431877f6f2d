from __future__ import annotations

import pytest

from mmemb_r1.atlas.knowledge import load_countries
from mmemb_r1.atlas.splits import unique_answers
from mmemb_r1.atlas.tasks import comparison, country_lookups, digit_question, flag_facts, flag_lookups


@pytest.fixture(scope="module")
def countries():
    return {country.code: country for country in load_countries()}


def test_neighbour_chain_has_three_segments(countries):
    questions = {(q.task, q.variant): q for q in flag_facts(countries["PE"], countries)}
    question = questions["neighbour-capital", "largest-neighbour"]
    assert question.text == "capital of its largest neighbour?"
    assert question.pictures == ("PE",)
    assert question.answer == "Brasília"
    assert question.rationale == (
        "This is the flag of Peru.",
        "The largest neighbour of Peru is Brazil.",
        "The capital of Brazil is Brasília.",
    )


def test_an_island_has_no_neighbour_questions(countries):
    assert not [q for q in flag_facts(countries["JP"], countries) if q.task.startswith("neighbour-")]


def test_comparison_states_both_facts_and_depends_on_order(countries):
    question = comparison("area", countries["PE"], countries["CL"])
    assert question.rationale == (
        "First Peru, second Chile.",
        "Peru has 1.3 million km2, Chile has 760 thousand km2.",
        "Peru is larger.",
    )
    swapped = comparison("area", countries["CL"], countries["PE"])
    assert swapped.pictures == ("CL", "PE") and swapped.answer == question.answer == "Peru"
    assert comparison("population", countries["CL"], countries["PE"]).rationale[-1] == "Peru is more populous."


def test_close_countries_are_not_compared(countries):
    assert comparison("area", countries["CN"], countries["US"]) is None


def test_digit_questions():
    asked = {task: digit_question(task, "digits-0-1-2", [3, 7, 5], 2) for task in ("digits-sum", "digits-nth")}
    assert asked["digits-sum"].rationale == ("The digits are 3, 7, 5.", "The sum is 15.")
    assert asked["digits-nth"].text == "3rd digit?" and asked["digits-nth"].answer == "5"
    assert digit_question("digits-largest", "digits-0-1", [3, 7]).answer == "7"


def test_shared_facts_are_not_looked_up(countries):
    unique = unique_answers(list(countries.values()))
    assert "Kingston" not in unique["capital"]
    assert [question.variant for question in country_lookups(countries["JM"], unique)] == ["tld"]
    (by_capital, _) = flag_lookups(countries["PE"], unique)
    assert by_capital.text == "flag of the country with capital Lima?"
    assert by_capital.rationale == ("The capital of Peru is Lima.", "This is the flag of Peru.")
    assert by_capital.answer_rationale == ("This is the flag of Peru.",)
