from __future__ import annotations

import pytest

from experiments.measurements.outcome_summary import by_task, curve, gate_quality, interior, joined, summarise


def test_what_a_choice_gains():
    """Two seeds of two queries of one task each: thinking finds the second one, and loses the first one of a seed."""
    one = {
        "task": ["flag", "sum"], "entity": ["pe", "7"], "complexity": ["multi-hop", "simple"],
        "never": [1, 0], "always": [1, 1], "aligned_never": [0.9, 0.1], "aligned_always": [0.85, 0.8],
        "gate_prob": [0.2, 0.9], "tokens": [10, 6],
    }  # fmt: skip
    rows = joined([one, one | {"always": [0, 1], "aligned_always": [0.2, 0.8]}])
    found = summarise(rows, 0.5)
    assert list(found) == ["all", "simple", "multi-hop"]
    means = {name: value[0] for name, value in found["all"].items() if isinstance(value, list)}
    assert means == pytest.approx(
        {"never": 0.5, "always": 0.75, "auto": 1, "oracle": 1, "invocation": 0.5, "tokens": 3, "tokens_always": 8}
        | {"gain": 0.25}
    )
    assert (found["all"]["better_fixed"], found["all"]["queries"]) == ("always", 4)
    assert (found["all"]["headroom"], found["all"]["captured"]) == pytest.approx((0.25, 1))
    assert found["simple"]["captured"] is None  # always is right: there is nothing left to gain
    assert gate_quality(rows) == {"auc": 1.0, "share": 0.75}
    assert by_task(rows, 0.5)["flag"] == pytest.approx(
        {"queries": 2, "never": 1, "always": 0.5, "auto": 1, "oracle": 1, "invocation": 0, "tokens": 0}
    )
    points = curve(rows, points=3)
    assert [(point["threshold"], point["invocation"], point["r1"]) for point in points] == [
        (1.1, 0, 0.5), (0.9, 0.5, 1), (0.2, 1, 0.75),
    ]  # fmt: skip
    assert interior(rows, points)["against"]["always"][0] == pytest.approx(0.25)
