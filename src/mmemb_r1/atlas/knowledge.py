"""Load countries and their facts: places and figures from countryinfo, names, currencies, languages from Babel."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from mmemb_r1.atlas.card import package_folder

# CLDR lists the currencies of a country with dates of validity; a fixed day keeps the answers independent of today.
CURRENCY_DATE = date(2025, 1, 1)
MIN_POPULATION = 500
LARGEST, SMALLEST = "largest-neighbour", "smallest-neighbour"

# Short forms where CLDR's name is longer than its everyday use.
NAMES = {
    "CC": "Cocos Islands", "CD": "DR Congo", "CG": "Congo", "HK": "Hong Kong", "MM": "Myanmar", "PS": "Palestine",
}  # fmt: skip
# Entries of countryinfo 1.0.1 that are out of date, misspelt, of another country, or fill a class of two.
CORRECTIONS: dict[str, dict[str, Any]] = {
    "GG": {"intermediateregion": ""},
    "HK": {"capital": "Hong Kong"},
    "JE": {"intermediateregion": ""},
    "KZ": {"capital": "Astana"},
    "PF": {"capital": "Papeete"},
    "RS": {"area": 77474},
    "SZ": {"capital": "Mbabane"},
    "US": {"capital": "Washington"},
}


@dataclass(frozen=True)
class Relation:
    """How one kind of fact is asked and stated."""

    noun: str  # in a question
    candidate_set: str  # that holds all answers
    sentence: str = "The {noun} of {name} is {answer}."


RELATIONS = {
    "capital": Relation("capital", "capital"),
    "region": Relation("region", "region"),
    "currency": Relation("currency", "currency"),
    "language": Relation("language", "language"),
    "tld": Relation("domain", "tld"),
    "area": Relation("area", "area", "{name} has {answer}."),
    "population": Relation("population", "population", "{name} has {answer}."),
    LARGEST: Relation("largest neighbour", "country"),
    SMALLEST: Relation("smallest neighbour", "country"),
}


@dataclass(frozen=True)
class Country:
    """One country or territory."""

    code: str  # ISO 3166 alpha-2
    name: str  # English short name
    area: float  # km2
    population: int
    facts: dict[str, str]  # relation -> answer; a relation that the country lacks (no land border) is absent
    neighbours: dict[str, str] = field(default_factory=dict)  # largest / smallest neighbour (by area) -> its code

    def state(self, relation: str) -> str:
        """State a fact, in the sentence used everywhere."""
        rule = RELATIONS[relation]
        return rule.sentence.format(noun=rule.noun, name=self.name, answer=self.facts[relation])


def flag_sentence(country: Country) -> str:
    """Say whose flag a picture shows, in the sentence used everywhere."""
    return f"This is the flag of {country.name}."


def load_countries() -> list[Country]:
    """Load all countries with a capital, a language, an area and at least 500 people, most populous first."""
    records: dict[str, dict[str, Any]] = {}
    for path in sorted((package_folder("countryinfo") / "data").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        code = record["ISO"]["alpha2"]
        record |= CORRECTIONS.get(code, {})
        if _is_complete(record) and code not in records:  # a few codes have two files, one of them nearly empty
            records[code] = record
    by_alpha3 = {record["ISO"]["alpha3"]: code for code, record in records.items()}
    countries = [_build_country(code, records, by_alpha3) for code in records]
    return sorted(countries, key=lambda country: (-country.population, country.code))


def restrict_neighbours(countries: list[Country]) -> list[Country]:
    """Drop neighbour facts whose neighbour is not among `countries` (a small Atlas never taught it)."""
    codes = {country.code for country in countries}
    restricted = []
    for country in countries:
        neighbours = {relation: code for relation, code in country.neighbours.items() if code in codes}
        dropped = country.neighbours.keys() - neighbours.keys()
        facts = {relation: answer for relation, answer in country.facts.items() if relation not in dropped}
        restricted.append(replace(country, facts=facts, neighbours=neighbours))
    return restricted


def round_in_words(number: float) -> str:
    """Write a number with two significant digits and the word for its size.

    >>> round_in_words(1285216), round_in_words(28748), round_in_words(0.49), round_in_words(999_999)
    ('1.3 million', '29 thousand', '0.49', '1 million')
    """
    rounded = float(f"{number:.1e}")
    for unit, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if rounded >= size:
            return f"{rounded / size:g} {unit}"
    return f"{rounded:g}"


def _is_complete(record: dict[str, Any]) -> bool:
    needed = ("capital", "area", "population", "subregion", "tld")
    known = all(record.get(key) for key in needed) and record["population"] >= MIN_POPULATION
    return bool(known and _territory_name(record["ISO"]["alpha2"]) and _language(record))


def _build_country(code: str, records: dict[str, dict[str, Any]], by_alpha3: dict[str, str]) -> Country:
    record = records[code]
    capital = record["capital"]
    facts = {
        "capital": capital[0] if isinstance(capital, list) else capital,
        "region": record.get("intermediateregion") or record["subregion"],
        "currency": _currency(code),
        "language": _language(record),
        "tld": next(domain for domain in record["tld"] if domain.isascii()),
        "area": f"{round_in_words(record['area'])} km2",
        "population": f"{round_in_words(record['population'])} people",
    }
    around = [by_alpha3[alpha3] for alpha3 in record.get("borders", []) if alpha3 in by_alpha3]
    neighbours = {}
    if around:
        around.sort(key=lambda neighbour: (records[neighbour]["area"], neighbour))
        neighbours = {LARGEST: around[-1], SMALLEST: around[0]}
    facts |= {relation: _territory_name(neighbour) for relation, neighbour in neighbours.items()}
    return Country(code, _territory_name(code), float(record["area"]), int(record["population"]), facts, neighbours)


def _territory_name(code: str) -> str:
    from babel import Locale

    return NAMES.get(code) or Locale("en").territories.get(code, "")


def _currency(code: str) -> str:
    from babel import Locale
    from babel.numbers import get_territory_currencies

    tenders = get_territory_currencies(code, start_date=CURRENCY_DATE)
    own = [currency for currency in tenders if currency.startswith(code)]  # Bhutan's own before the Indian rupee
    return Locale("en").currencies[(own or tenders)[0]]


def _language(record: dict[str, Any]) -> str:
    """Choose the first language of countryinfo's list that is official in CLDR, else the most spoken official one."""
    from babel import Locale
    from babel.languages import get_official_languages

    tags = get_official_languages(record["ISO"]["alpha2"], de_facto=True)
    official = [tag.split("_")[0] for tag in tags]  # without the script: sr_Latn -> sr
    names = Locale("en").languages
    listed = [language for language in record.get("languages") or [] if language in official]
    return next((names[language] for language in [*listed, *official] if language in names), "")
