"""A night's run, smaller still: killed, begun again, and at its end what it would have been."""

from __future__ import annotations

import pytest
from PIL import Image

from experiments.recipes import night
from experiments.recipes.night_table import BROKEN, SOURCES, TOO_LONG, write_night_table


def test_the_table_has_the_faults_that_it_says(tmp_path):
    import pyarrow.parquet as pq

    table = write_night_table(tmp_path, 400)
    rows = {row["pair_id"]: row for row in pq.read_table(table.pairs).to_pylist()}
    assert len(rows) == 400 and len(table.broken) == 400 * BROKEN and len(table.too_long) == 400 * TOO_LONG
    assert {row["task"] for row in rows.values()} == set(SOURCES)
    broken = set()
    for pair_id, row in rows.items():
        if row["query"]["image"] is not None:
            try:
                Image.open(row["query"]["image"]).load()
            except OSError:
                broken.add(pair_id)
    assert broken == table.broken
    assert table.too_long == {pair_id for pair_id, row in rows.items() if len(row["query"]["text"]) > 500}
    assert write_night_table(tmp_path, 400) == table  # it is not made anew


@pytest.mark.slow
def test_a_disturbed_run_ends_as_the_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    report = night.run_night(tmp_path / "night", num_pairs=200, steps=8, kills=2, save_steps=2)
    assert report.is_right, "\n".join(report.lines)
    assert sum("killed" in line for line in report.lines) == 2
    assert "broken 1, too long 4" in report.lines[-1]
