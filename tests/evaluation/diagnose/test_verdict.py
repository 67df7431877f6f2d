"""The shortcut test's verdict, from figures that are given."""

from __future__ import annotations

import re

import pytest

from mmemb_r1.evaluation.diagnose.verdict import LEAST_CLUSTERS, judge
from mmemb_r1.evaluation.statistics import Interval

NOTHING = Interval(0.0, -0.01, 0.01)


@pytest.mark.parametrize(
    ("cost", "cosine", "between", "name"),
    [
        (Interval(0.30, 0.25, 0.35), 0.55, 0.2, "reads"),
        (Interval(0.30, 0.25, 0.35), 0.97, 0.96, "reads"),  # all vectors lie together, yet it finds other things
        (Interval(0.04, 0.01, 0.07), 0.55, 0.2, "reads"),  # few queries need a thought
        (Interval(0.10, 0.01, 0.19), 0.90, 0.2, "reads"),
        (Interval(0.09, 0.01, 0.17), 0.90, 0.2, "undecided"),
        (Interval(0.30, -0.01, 0.60), 0.55, 0.2, "undecided"),
        (NOTHING, 0.97, 0.2, "ignores"),
        (NOTHING, 0.95, 0.88, "ignores"),
        (NOTHING, 0.94, 0.2, "undecided"),
        (Interval(0.01, 0.005, 0.02), 0.97, 0.2, "ignores"),  # an effect that is there, and next to nothing
        (Interval(0.02, -0.02, 0.06), 0.97, 0.2, "undecided"),
        (NOTHING, 0.30, 0.2, "undecided"),
        (Interval(-0.20, -0.30, -0.10), 0.30, 0.2, "undecided"),
        (Interval(-0.20, -0.30, -0.10), 0.96, 0.2, "undecided"),  # a score that moves is not one of thoughts passed by
        (Interval(-0.02, -0.06, 0.02), 0.97, 0.2, "undecided"),
        (Interval(-0.02, -0.04, 0.00), 0.97, 0.2, "ignores"),
        (Interval(0.001, 0.0005, 0.002), 0.79, 0.2, "undecided"),  # a tenth of a point, however sure
        (Interval(0.019, 0.001, 0.04), 0.30, 0.2, "undecided"),
        (Interval(0.02, 0.001, 0.04), 0.30, 0.2, "reads"),
        (NOTHING, 0.99, 0.99, "undecided"),  # as far as another query: that rationale may be all that is read
        (NOTHING, 0.96, 0.93, "undecided"),
        (NOTHING, 1.00, 1.00, "undecided"),  # a collapsed encoder
    ],
)
def test_verdict(cost, cosine, between, name):
    assert judge(cost, cosine, between, clusters=100).name == name


@pytest.mark.parametrize(
    ("cost", "cosine", "between", "clusters", "reason"),
    [
        (
            Interval(0.3, 0.25, 0.35),
            0.5,
            0.2,
            100,
            r"costs 30.0 points \[25.0, 35.0\], and the vectors' cosine is 0.50\.$",
        ),
        (Interval(0.3, 0.25, 0.35), 0.5, 0.2, LEAST_CLUSTERS - 1, "of 19 clusters of queries, too few to tell"),
        (NOTHING, 0.3, 0.2, 100, "the vectors move, but what is found hardly changes"),
        (Interval(-0.2, -0.3, -0.1), 0.3, 0.2, 100, "the rationales of other queries serve it better"),
        (Interval(0.03, 0.01, 0.05), 0.9, 0.2, 100, "there is an effect, but a small one"),
        (Interval(0.001, 0.0005, 0.002), 0.79, 0.2, 100, "there is an effect, but a small one"),
        (Interval(-0.2, -0.3, -0.1), 0.96, 0.2, 100, "the rationales of other queries serve it better"),
        (Interval(0.05, -0.05, 0.15), 0.9, 0.2, 100, "the interval is wide, take more queries"),
        (Interval(0.02, -0.02, 0.06), 0.97, 0.2, 100, "hardly move, but the interval is wide"),
        (NOTHING, 0.99, 0.99, 100, r"different queries lie as close together \(0.99\), so that this says little"),
        (None, None, None, 0, "they are all the same"),
    ],
)
def test_reason(cost, cosine, between, clusters, reason):
    assert re.search(reason, judge(cost, cosine, between, clusters).reason)


def test_few_clusters_tell_nothing_however_clear_they_are():
    """The draws of a single cluster have no spread at all."""
    assert judge(Interval(1.0, 1.0, 1.0), 0.1, 0.1, LEAST_CLUSTERS - 1).name == "undecided"
    assert judge(Interval(0.0, 0.0, 0.0), 1.0, 0.1, LEAST_CLUSTERS - 1).name == "undecided"
    assert judge(Interval(1.0, 1.0, 1.0), 0.1, 0.1, LEAST_CLUSTERS).name == "reads"
