"""The benchmark of large indexes measures what it says."""

from __future__ import annotations

from argparse import Namespace

import pytest

from benchmarks.search_index import measure


def test_a_small_index_is_measured(tmp_path):
    rows = measure(tmp_path, Namespace(rows=3000, dim=16, spread=0.5, queries=10))
    assert [row["what"] for row in rows] == ["write", "128 more", "exact", "float32", "int8", "binary"]
    assert all(row["p95_ms"] >= row["p50_ms"] > 0 and row["peak_bytes"] > 0 for row in rows[2:])
    assert rows[3]["recall"] == pytest.approx(1, abs=0.1)
