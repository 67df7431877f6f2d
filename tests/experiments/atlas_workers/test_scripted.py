from __future__ import annotations

import pytest

from experiments.atlas_workers.scripted import BEHAVIOURS, HELPFUL, POOL, right_rationale, scripted_rationale
from experiments.atlas_workers.wording import facts, phrasings, whole_words
from mmemb_r1.atlas.tables import PICTURE_SETS

SIDES = ("query", "target")
SEEDS = range(4)


@pytest.fixture(scope="module")
def asked(recalled):
    """(question, side) of every input of the Atlas that has a rationale."""
    found = {
        (question, side): None
        for question in recalled[1].values()
        for side in SIDES
        if right_rationale(question, side)
    }
    tasks = {(question.task, side) for question, side in found}
    assert len(tasks) >= 28 and {("name-picture", "target"), ("fact-flag", "target")} <= tasks
    return list(found)


@pytest.fixture(scope="module")
def names(recalled):
    """Code of a country, object or drawing -> its name."""
    world, _ = recalled
    things = {thing.hexcode: thing.name for thing in world.objects}
    drawn = {drawing.key: fact for drawing in world.drawings for fact in facts([drawing.sentence])}
    return things | {country.code: country.name for country in world.countries} | drawn


def secrets(question, names):
    """What gives the answer away: the answer itself, the names of what is asked about."""
    entities = [names[code] for code in question.entity.split("+") if code in names]
    return [names.get(question.answer, question.answer), *entities]


def test_only_the_correct_one_helps():
    assert list(POOL) == ["correct", "confused", "verbose", "format"]
    assert BEHAVIOURS == (*POOL, "generic", "leaky", "restating", "needless")
    assert [behaviour for behaviour in BEHAVIOURS if HELPFUL[behaviour]] == ["correct"]


def test_correct_names_the_answer(asked, names, look_alikes):
    for question, side in asked:
        answer = names[question.answer] if question.candidate_set in PICTURE_SETS else question.answer
        for seed in SEEDS:
            said = scripted_rationale("correct", question, side, seed, look_alikes)
            assert answer in said
            assert said in phrasings(right_rationale(question, side))


def test_confused_is_as_fluent_and_concludes_wrongly(asked, look_alikes):
    for question, side in asked:
        right = right_rationale(question, side)
        fluent = {said for mistake in look_alikes.mistakes(question, side) for said in phrasings(mistake)}
        for seed in SEEDS:
            said = scripted_rationale("confused", question, side, seed, look_alikes)
            assert said in fluent
            assert not [conclusion for conclusion in phrasings(right[-1:]) if conclusion in said]


@pytest.mark.parametrize("behaviour", ["verbose", "format", "generic", "leaky"])
def test_empty_talk_gives_nothing_away(asked, names, look_alikes, behaviour):
    for question, side in asked:
        for seed in SEEDS:
            said = scripted_rationale(behaviour, question, side, seed, look_alikes)
            assert not [secret for secret in secrets(question, names) if whole_words(secret).search(said)], said


def test_verbose_is_two_to_three_times_as_long(asked, look_alikes):
    for question, side in asked:
        length = len(" ".join(right_rationale(question, side)).split())
        said = [scripted_rationale("verbose", question, side, seed, look_alikes) for seed in SEEDS]
        assert all(1.5 * length <= len(text.split()) <= 3 * length for text in said)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_seeds_vary_and_repeat(asked, look_alikes, behaviour):
    for question, side in asked[::7]:
        first, again = (
            [scripted_rationale(behaviour, question, side, seed, look_alikes) for seed in range(12)] for _ in range(2)
        )
        assert first == again
        assert len(set(first)) > 1


def test_a_target_that_is_text_gets_no_rationale(recalled, look_alikes):
    question = next(question for question in recalled[1].values() if question.task == "fact-capital")
    said = [scripted_rationale(behaviour, question, "target", 0, look_alikes) for behaviour in BEHAVIOURS]
    assert said == [None] * len(BEHAVIOURS)


def test_wrong_rationales_of_flags_name_training_countries_only(recalled, look_alikes):
    """Else what evaluation asks for, a held-out country's flag joined to its facts, could be read in training."""
    _, asked = recalled
    chains = [(pair_id, question) for pair_id, question in asked.items() if question.task == "flag-capital"]
    held_out = {question.rationale[0] for pair_id, question in chains if not pair_id.startswith("train/")}
    assert held_out
    for question in asked.values():
        if question.task.startswith(("flag-", "neighbour-", "fact-flag")):
            said = {scripted_rationale("confused", question, "query", seed, look_alikes) for seed in SEEDS}
            spoken_of = {sentence for sentence in held_out for text in said if sentence[len("This is ") :] in text}
            assert not spoken_of, question


def test_unknown_behaviour(recalled, look_alikes):
    question = next(iter(recalled[1].values()))
    with pytest.raises(ValueError, match="behaviour is 'wise'; allowed: correct, confused, verbose, format"):
        scripted_rationale("wise", question, "query", 0, look_alikes)
