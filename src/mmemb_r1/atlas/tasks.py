"""Ask the questions of every task, with their gold rationales, from the facts of countries and objects."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mmemb_r1.atlas.drawings import Drawing
from mmemb_r1.atlas.knowledge import LARGEST, RELATIONS, SMALLEST, Country, flag_sentence
from mmemb_r1.atlas.world import LANGUAGES, PictureObject

SIMPLE, MULTI_HOP, PERCEPTUAL, MIXED = "simple", "multi-hop", "perceptual", "mixed"
AT_SIGHT, WITH_A_STEP = "sight", "step"  # variants of mixed questions: what each takes
FLAG_RELATIONS = ("capital", "region", "currency", "language", "tld")
NEIGHBOUR_RELATIONS = ("capital", "currency")
LOOKUP_RELATIONS = ("capital", "tld")
COMPARISONS = {"area": "Which is larger?", "population": "Which is more populous?"}
MIN_RATIO = 1.25  # two countries are compared only where one is larger by this factor
ORDINALS = ("1st", "2nd", "3rd", "4th")
MAX_DIGITS = len(ORDINALS)
MAX_SUMMED = 3  # digits of mixed-sum
# How mixed-time asks for another time than the one that is shown: half hours from it -> words.
SHIFTS = {
    1: "half an hour later",
    2: "one hour later",
    4: "two hours later",
    -1: "half an hour earlier",
    -2: "one hour earlier",
}
NUM_NEGATIVES = 3


@dataclass(frozen=True)
class AtlasQuestion:
    """A pair of Atlas before its pictures are rendered."""

    task: str
    complexity: str
    entity: str  # country code, object hexcode or digit key; two compared countries are joined by "+"
    candidate_set: str  # the set that the answer is searched in
    answer: str  # candidate id: the answer's text, or the key of the picture that is the answer
    rationale: tuple[str, ...]  # query side, 1 to 3 segments
    text: str | None = None
    pictures: tuple[str, ...] = ()  # keys of the query's pictures
    answer_rationale: tuple[str, ...] = ()  # target side, for answers that are pictures
    variant: str = ""  # distinguishes questions of the same task and entity
    negatives: tuple[str, ...] = ()  # keys of pictures that are nearly the answer


def flag_naming(country: Country) -> Iterator[AtlasQuestion]:
    """Ask picture-name-flag and name-picture of a flag."""
    code, seen = country.code, (flag_sentence(country),)
    yield AtlasQuestion("picture-name-flag", SIMPLE, code, "name", country.name, seen, "What is this?", (code,))
    yield AtlasQuestion(
        "name-picture", SIMPLE, code, "picture", code, seen, f"flag of {country.name}", answer_rationale=seen
    )


def object_naming(thing: PictureObject, languages: Collection[str] = ()) -> Iterator[AtlasQuestion]:
    """Ask picture-name-object, name-picture and, for each of `languages`, picture-name-<language> of an object."""
    code, seen = thing.hexcode, (thing.state(),)
    yield AtlasQuestion("picture-name-object", SIMPLE, code, "name", thing.name, seen, "What is this?", (code,))
    yield AtlasQuestion("name-picture", SIMPLE, code, "picture", code, seen, thing.name, answer_rationale=seen)
    for language in languages:
        answer = thing.translations[language]
        rationale = (*seen, f"The {LANGUAGES[language]} name is {answer}.")
        text = f"What is this in {LANGUAGES[language]}?"
        task, candidates = f"picture-name-{language}", f"name-{language}"
        yield AtlasQuestion(task, SIMPLE, code, candidates, answer, rationale, text, (code,))


def _fact(country: Country, relation: str, told_of: str) -> AtlasQuestion:
    """Ask, as text, a fact of a country that the question calls `told_of`."""
    rule, answer, rationale = RELATIONS[relation], country.facts[relation], (country.state(relation),)
    text = f"{rule.noun} of {told_of}?"
    return AtlasQuestion(f"fact-{relation}", SIMPLE, country.code, rule.candidate_set, answer, rationale, text)


def country_facts(country: Country) -> Iterator[AtlasQuestion]:
    """Ask fact-<relation>: everything known of a country, as text."""
    return (_fact(country, relation, country.name) for relation in country.facts)


def country_lookups(country: Country, unique: Mapping[str, Collection[str]]) -> Iterator[AtlasQuestion]:
    """Ask fact-country: which country a fact belongs to, where only one has it (`unique`: relation -> answers)."""
    for relation in LOOKUP_RELATIONS:
        answer = country.facts[relation]
        if answer in unique[relation]:
            text = f"country with {RELATIONS[relation].noun} {answer}?"
            seen = (country.state(relation),)
            yield AtlasQuestion(
                "fact-country", SIMPLE, country.code, "country", country.name, seen, text, variant=relation
            )


def flag_lookups(country: Country, unique: Mapping[str, Collection[str]]) -> Iterator[AtlasQuestion]:
    """Ask fact-flag: the flag of the country that a fact belongs to."""
    seen = flag_sentence(country)
    for question in country_lookups(country, unique):
        yield replace(
            question,
            task="fact-flag",
            complexity=MULTI_HOP,
            candidate_set="picture",
            answer=country.code,
            rationale=(*question.rationale, seen),
            text=f"flag of the {question.text}",
            answer_rationale=(seen,),
        )


def flag_facts(country: Country, countries: Mapping[str, Country]) -> Iterator[AtlasQuestion]:
    """Ask flag-<relation> and neighbour-<relation> of a flag. `countries`: code -> country, neighbours included."""
    code, seen = country.code, flag_sentence(country)
    for relation in FLAG_RELATIONS:
        fact = _fact(country, relation, "this country")
        rationale = (seen, *fact.rationale)
        yield replace(fact, task=f"flag-{relation}", complexity=MULTI_HOP, rationale=rationale, pictures=(code,))
    for which in (LARGEST, SMALLEST):
        if which not in country.neighbours:
            continue
        neighbour = countries[country.neighbours[which]]
        for relation in NEIGHBOUR_RELATIONS:
            fact = _fact(neighbour, relation, f"its {RELATIONS[which].noun}")
            yield replace(
                fact,
                task=f"neighbour-{relation}",
                complexity=MULTI_HOP,
                entity=code,
                rationale=(seen, country.state(which), *fact.rationale),
                pictures=(code,),
                variant=which,
            )


def comparison(relation: str, first: Country, second: Country) -> AtlasQuestion | None:
    """Ask compare-<relation> of two flags in this order, or None where the two countries are too similar."""
    sizes = {"area": (first.area, second.area), "population": (first.population, second.population)}[relation]
    if max(sizes) < MIN_RATIO * min(sizes) or first.facts[relation] == second.facts[relation]:
        return None
    winner = first if sizes[0] > sizes[1] else second
    verdict = "larger" if relation == "area" else "more populous"
    return AtlasQuestion(
        f"compare-{relation}",
        MULTI_HOP,
        f"{first.code}+{second.code}",
        "country",
        winner.name,
        (
            f"First {first.name}, second {second.name}.",
            f"{first.state(relation)[:-1]}, {second.state(relation)}",
            f"{winner.name} is {verdict}.",
        ),
        COMPARISONS[relation],
        (first.code, second.code),
    )


def digit_question(task: str, key: str, digits: Sequence[int], place: int = 0) -> AtlasQuestion:
    """Ask digits-sum, digits-largest or digits-nth (of the digit at `place`, from 0) of a picture of digits."""
    text, conclusion, answer = {
        "digits-sum": ("sum of the digits?", "The sum", sum(digits)),
        "digits-largest": ("largest digit?", "The largest", max(digits)),
        "digits-nth": (f"{ORDINALS[place]} digit?", f"The {ORDINALS[place]}", digits[place]),
    }[task]
    listed = f"The digits are {', '.join(map(str, digits))}."
    candidates = "sum" if task == "digits-sum" else "digit"
    rationale = (listed, f"{conclusion} is {answer}.")
    return AtlasQuestion(task, MULTI_HOP, key, candidates, str(answer), rationale, text, (key,))


def same_drawing(drawing: Drawing, shown: Collection[str], rendering: int = 1) -> AtlasQuestion:
    """
    Ask same-<what> of a drawing, with the nearest near-duplicates among `shown` as its negatives.

    The `rendering`, counted from 1, distinguishes questions that show the same drawing.
    """
    parts = [drawing.key if drawing.key != drawing.entity else "", str(rendering) if rendering > 1 else ""]
    return AtlasQuestion(
        drawing.task,
        PERCEPTUAL,
        drawing.entity,
        drawing.task,
        drawing.key,
        (drawing.sentence,),
        "the same drawing?",
        (drawing.key,),
        answer_rationale=(drawing.sentence,),
        variant="/".join(filter(None, parts)),
        negatives=tuple(rival for rival in drawing.rivals if rival in shown)[:NUM_NEGATIVES],
    )


def mixed_sum(key: str, digits: Sequence[int]) -> AtlasQuestion:
    """Ask mixed-sum: the sum of one, two or three digits. Of a single one it is told at sight."""
    listed = f"The digits are {', '.join(map(str, digits))}." if len(digits) > 1 else f"The digit is {digits[0]}."
    rationale, answer = (listed, f"The sum is {sum(digits)}."), str(sum(digits))
    variant = WITH_A_STEP if len(digits) > 1 else AT_SIGHT
    return AtlasQuestion(
        "mixed-sum", MIXED, key, "sum", answer, rationale, "sum of the digits?", (key,), variant=variant
    )


def mixed_time(clocks: Mapping[str, str], key: str, shift: int = 0) -> AtlasQuestion:
    """
    Ask mixed-time of a clock face: the time, which is told at sight, or the time `shift` half hours later.

    Args:
        clocks: key of each face -> the time, half an hour later than the one before.
        key: of the face that is shown.
        shift: 0 or one of `SHIFTS`.
    """
    keys = list(clocks)
    answer = clocks[keys[(keys.index(key) + shift) % len(keys)]]
    seen, text, variant = f"This is {clocks[key]}.", "the time?", AT_SIGHT
    rationale: tuple[str, ...] = (seen,)
    if shift:
        words = SHIFTS[shift]
        rationale = (seen, f"It is {answer} {words}.")
        text, variant = f"the time {words}?", f"{WITH_A_STEP}/{words.replace(' ', '-')}"
    return AtlasQuestion("mixed-time", MIXED, key, "time", answer, rationale, text, (key,), variant=variant)
