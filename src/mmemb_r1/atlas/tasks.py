"""Ask the questions of every task, with their gold rationales, from the facts of countries and objects."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mmemb_r1.atlas.knowledge import LARGEST, RELATIONS, SMALLEST, Country
from mmemb_r1.atlas.world import LANGUAGES, PictureObject

SIMPLE, MULTI_HOP = "simple", "multi-hop"
FLAG_RELATIONS = ("capital", "region", "currency", "language", "tld")
NEIGHBOUR_RELATIONS = ("capital", "currency")
LOOKUP_RELATIONS = ("capital", "tld")
COMPARISONS = {"area": "Which is larger?", "population": "Which is more populous?"}
MIN_RATIO = 1.25  # two countries are compared only where one is larger by this factor
ORDINALS = ("1st", "2nd", "3rd", "4th")
MAX_DIGITS = len(ORDINALS)


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


def flag_sentence(country: Country) -> str:
    """Say whose flag a picture shows, in the sentence used everywhere."""
    return f"This is the flag of {country.name}."


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
