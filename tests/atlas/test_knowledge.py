from __future__ import annotations

import pytest

from mmemb_r1.atlas.knowledge import LARGEST, RELATIONS, SMALLEST, load_countries, restrict_neighbours
from mmemb_r1.atlas.world import LANGUAGES, load_objects


@pytest.fixture(scope="module")
def countries():
    return {country.code: country for country in load_countries()}


def test_known_facts(countries):
    assert countries["PE"].facts == {
        "capital": "Lima",
        "region": "South America",
        "currency": "Peruvian Sol",
        "language": "Spanish",
        "tld": ".pe",
        "area": "1.3 million km2",
        "population": "31 million people",
        LARGEST: "Brazil",
        SMALLEST: "Ecuador",
    }
    assert countries["PE"].state("capital") == "The capital of Peru is Lima."
    assert countries["PE"].state("area") == "Peru has 1.3 million km2."
    assert countries["KZ"].facts["capital"] == "Astana"
    assert countries["VA"].facts["capital"] == "Vatican City"
    assert countries["HR"].facts["currency"] == "Euro"
    assert countries["BT"].facts["currency"] == "Bhutanese Ngultrum"
    assert LARGEST not in countries["JP"].facts


def test_facts_are_complete_and_neighbours_known(countries):
    assert 180 <= len(countries) <= 240
    names = [country.name for country in countries.values()]
    assert len(set(names)) == len(names)
    for country in countries.values():
        assert RELATIONS.keys() - country.facts.keys() in (set(), {LARGEST, SMALLEST})
        assert all(answer and not answer.endswith(".") for answer in country.facts.values())
        for relation, code in country.neighbours.items():
            assert country.facts[relation] == countries[code].name


def test_restricted_neighbours_stay_true(countries):
    few = restrict_neighbours([countries["PE"], countries["EC"], countries["CO"]])
    assert few[0].neighbours == {SMALLEST: "EC"}
    assert LARGEST not in few[0].facts
    assert countries["PE"].facts[LARGEST] == "Brazil"


def test_objects_are_distinct_things_in_a_fixed_order():
    objects = load_objects()
    assert len(objects) >= 500
    assert len({thing.name for thing in objects}) == len({thing.hexcode for thing in objects}) == len(objects)
    assert sum(len(thing.translations) == len(LANGUAGES) for thing in objects) >= 450
    assert load_objects() == objects
    dog = next(thing for thing in objects if thing.name == "dog face")
    assert dog.state() == "This is a dog face."
    assert dog.translations == {"de": "hundegesicht", "es": "cara de perro", "fr": "tête de chien"}
