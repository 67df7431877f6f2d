from __future__ import annotations

from itertools import product

import pytest
from PIL import Image

from experiments.atlas_workers.look_alikes import MISREAD, misread_digits, nearest_countries, nearest_pictures
from mmemb_r1.atlas.knowledge import load_countries
from mmemb_r1.atlas.tasks import comparison, digit_question, mixed_sum


def test_the_most_similar_picture_comes_first():
    colors = {"red": (255, 0, 0), "blue": (0, 0, 255), "rose": (255, 40, 40), "white": (255, 255, 255)}
    pictures = {name: Image.new("RGB", (64, 64), color) for name, color in colors.items()}
    assert nearest_pictures(pictures)["red"] == ["rose", "blue", "white"]


def test_neighbours_come_before_similar_names():
    countries = {country.code: country for country in load_countries()}
    order = nearest_countries(countries)["AU"]  # no land border
    assert order[0] == "AT" and "AU" not in order and len(order) == len(countries) - 1
    around = set(countries["NE"].neighbours.values())
    assert len(around) == 2 and set(nearest_countries(countries)["NE"][:2]) == around  # and not Nigeria


@pytest.mark.parametrize("task", ["digits-sum", "digits-largest", "digits-nth"])
def test_misread_digits_change_the_answer(task):
    for digits in product(range(10), repeat=3):
        question = digit_question(task, "digits-0-1-2", digits, 1)
        mistakes = misread_digits(question, list(digits))
        assert mistakes
        for listed, conclusion in mistakes:
            read = [int(digit) for digit in listed if digit.isdigit()]
            assert all(seen == digit or seen in MISREAD[digit] for seen, digit in zip(read, digits, strict=True))
            # it follows from what was read, and it is wrong
            assert (listed, conclusion) == digit_question(task, "digits-0-1-2", read, 1).rationale
            assert conclusion != question.rationale[1]


@pytest.mark.slow
def test_a_mistaken_flag_leads_to_its_own_answer(recalled, look_alikes):
    """The rationale of a mistake is the gold one of another training question of the same kind."""
    _, asked = recalled
    trained = {
        (question.rationale, question.candidate_set): question
        for pair_id, question in asked.items()
        if pair_id.startswith("train/")
    }
    for question in asked.values():
        if question.task.startswith(("compare-", "digits-")):
            continue
        if question.complexity == "perceptual" or question.task == "mixed-sum":
            continue
        mistakes = look_alikes.mistakes(question, "query")
        assert 1 <= len(mistakes) <= 4
        for mistake in mistakes:
            assert trained[mistake, question.candidate_set].answer != question.answer
            assert mistake[-1] != question.rationale[-1]


def test_another_drawing_is_seen_and_none_that_is_held_out(recalled, look_alikes):
    """A near-duplicate first: of the tones of a hand, another tone of that hand."""
    world, asked = recalled
    drawn = {(drawing.task, drawing.sentence): drawing for drawing in world.drawings}
    trained = {question.entity for pair_id, question in asked.items() if pair_id.startswith("train/")}
    questions = {pair_id: question for pair_id, question in asked.items() if question.complexity == "perceptual"}
    assert {question.task for question in questions.values()} == {drawing.task for drawing in world.drawings}
    for question in questions.values():
        for side in ("query", "target"):
            mistakes = look_alikes.mistakes(question, side)
            assert 1 <= len(mistakes) <= 4
            for (sentence,) in mistakes:
                seen = drawn[question.task, sentence]
                assert seen.key != question.answer and seen.entity in {question.entity, *trained}
                assert question.task != "same-tone" or seen.entity == question.entity


def test_a_misread_sum_follows_from_what_was_read_and_is_wrong(recalled, look_alikes):
    _, asked = recalled
    questions = [question for question in asked.values() if question.task == "mixed-sum"]
    assert {question.variant for question in questions} == {"sight", "step"}
    for question in questions:
        for listed, conclusion in look_alikes.mistakes(question, "query"):
            read = [int(digit) for digit in listed if digit.isdigit()]
            assert (listed, conclusion) == mixed_sum(question.entity, read).rationale
            assert conclusion != question.rationale[1]


def test_a_comparison_goes_wrong_by_one_flag_or_by_the_verdict(recalled, look_alikes):
    world, asked = recalled
    countries = {country.name: country for country in world.countries}
    for question in asked.values():
        if not question.task.startswith("compare-"):
            continue
        right = question.rationale[0][len("First ") : -1].split(", second ")
        wrong_verdicts = 0
        for names, figures, verdict in look_alikes.mistakes(question, "query"):
            read = names[len("First ") : -1].split(", second ")
            believed = comparison(question.task.removeprefix("compare-"), *(countries[name] for name in read))
            assert figures == believed.rationale[1] and verdict != question.rationale[2]
            if read == right:
                wrong_verdicts += 1
            else:
                assert verdict == believed.rationale[2]
                assert sum(seen != name for seen, name in zip(read, right, strict=True)) == 1
        assert wrong_verdicts == 1
