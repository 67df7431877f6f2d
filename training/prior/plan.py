"""What is asked of the workers: each distinct input of each side once, with seeds that depend on nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Any

from mmemb_r1.training.prior.worker import SIDES
from mmemb_r1.training.tables import StoredInputs, content_key, stored_column

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Subject:
    """One distinct input of one side: its content key, the first row that has it and the ids of all pairs that do."""

    side: str
    key: bytes
    row: int
    pair_ids: tuple[str, ...]


def plan(pairs: Dataset, sides: Sequence[str] = SIDES) -> list[Subject]:
    """What there is to think about: side by side, the distinct inputs in the order in which they come first."""
    ids = stored_column(pairs, "pair_id").to_pylist()
    subjects = []
    for side in sides:
        rows_of: dict[bytes, list[int]] = {}
        for row, value in enumerate(StoredInputs(pairs, side)):
            rows_of.setdefault(content_key(value), []).append(row)
        subjects += [Subject(side, key, rows[0], tuple(ids[row] for row in rows)) for key, rows in rows_of.items()]
    return subjects


def seed_of(seed: int, worker: str, side: str, key: bytes, sample: int) -> int:
    """The seed (31 bits) of one rationale: it depends on nothing else, so neither do the rationales.

    >>> seed_of(0, "oracle", "query", b"...", 1)
    1370487967
    """
    text = json.dumps([seed, worker, side, key.hex(), sample])
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big") >> 1


def digests(subjects: Sequence[Subject]) -> dict[str, str]:
    """What table this is, side by side, whatever file or order of columns holds it."""
    content: dict[str, Any] = {}
    for subject in subjects:
        line = json.dumps([subject.key.hex(), subject.pair_ids])
        content.setdefault(subject.side, blake2b(digest_size=16)).update(line.encode())
    return {side: value.hexdigest() for side, value in content.items()}
