"""Candidates that several tasks share are embedded once."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from mmemb_r1.evaluation.scoring import CandidateVectors
from mmemb_r1.evaluation.tasks import RetrievalTask

CITIES, COLORS = [{"text": "Lima"}, {"text": "Paris"}], [{"text": "red"}, {"text": "blue"}]


def task(name, candidates, prompt=None):
    relevance = [{"a": 1.0}]
    return RetrievalTask(name, "hit@1", {}, ["q"], ["?"], ["a", "b"], candidates, relevance, candidate_prompt=prompt)


@pytest.fixture
def asked():
    return []


@pytest.fixture
def embed(asked):
    def embed(task):
        asked.append(task.name)
        return SimpleNamespace(embeddings=np.full((2, 4), len(asked), dtype=np.float32))

    return embed


def test_the_same_candidates_are_embedded_once(embed, asked):
    vectors = CandidateVectors()
    first = vectors.of(task("a", CITIES), embed)
    vectors.of(task("b", COLORS), embed)
    assert vectors.of(task("c", CITIES), embed) is first
    assert asked == ["a", "b"]


def test_equal_candidates_are_not_the_same_and_neither_are_those_of_another_prompt(embed, asked):
    vectors = CandidateVectors()
    for given in (task("a", CITIES), task("b", list(CITIES)), task("c", CITIES, "Name the city."), task("d", CITIES)):
        vectors.of(given, embed)
    assert asked == ["a", "b", "c", "d"]


def test_those_used_last_are_kept_up_to_a_size(embed, asked):
    vectors, others = CandidateVectors(most_bytes=64), [{"text": "x"}, {"text": "y"}]  # two times 2 x 4 floats
    for given in (task("a", CITIES), task("b", COLORS), task("c", CITIES), task("d", others), task("e", CITIES)):
        vectors.of(given, embed)
    assert asked == ["a", "b", "d"]
    vectors.of(task("f", COLORS), embed)
    assert asked == ["a", "b", "d", "f"]


def test_the_last_ones_are_kept_whatever_their_size(embed, asked):
    vectors = CandidateVectors(most_bytes=1)
    vectors.of(task("a", CITIES), embed)
    vectors.of(task("b", CITIES), embed)
    assert asked == ["a"]
