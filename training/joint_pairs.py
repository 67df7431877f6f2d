"""What a pair shows at one visit: its rationales, its hard negatives and the seed of its augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from datasets import Dataset as Table
from torch.utils.data import Dataset

from mmemb_r1._inputs import given_parts
from mmemb_r1.training.selected import SelectedRationales
from mmemb_r1.training.tables import check_pairs


class Visit(NamedTuple):
    """
    One use of a row: which row, in which epoch, as the how-manieth of that epoch.

    Everything random about it follows from these and the run's seed, so that a run that was killed goes on as if it
    had not been, whatever the number of processes and data workers.
    """

    row: int
    epoch: int
    position: int


class Example(TypedDict):
    """
    A pair as the collator takes it.

    Attributes:
        pair_id: of the pair, or its row.
        query, target: inputs.
        negatives: inputs.
        query_rationale, target_rationale: segments; empty for the direct path alone.
        query_weight, target_weight: of the rationale's tokens in the loss.
        seed: of the augmentation.
    """

    pair_id: str
    query: dict[str, Any]
    target: dict[str, Any]
    negatives: list[dict[str, Any]]
    query_rationale: list[str]
    target_rationale: list[str]
    query_weight: float
    target_weight: float
    seed: int


class JointPairs(Dataset[Example]):
    """
    A pairs table of which each visit shows something else.

    Args:
        table: the pairs, with `query`, `target` and, optionally, `pair_id`, `negatives`, `query_rationale` and
            `target_rationale` (lists of segments).
        seed: of the draws.
        rationales: drawn from instead of the table's own rationales.
        weight_by_posterior: whether a drawn rationale weighs as much as its posterior. Default: each weighs 1.
        num_hard_negatives: drawn from `negatives`, without replacement; fewer where a pair has fewer.

    Raises:
        ValueError: if hard negatives are wanted and there is no such column, or rationales and no `pair_id`, or none
            of the rationales is of these pairs.
    """

    def __init__(
        self,
        table: Any,
        seed: int,
        rationales: SelectedRationales | None = None,
        weight_by_posterior: bool = False,
        num_hard_negatives: int = 0,
    ) -> None:
        columns = table.column_names
        if num_hard_negatives and "negatives" not in columns:
            raise ValueError(
                f"num_hard_negatives={num_hard_negatives}, but the pairs table has no column 'negatives'; it has: "
                f"{', '.join(columns)}."
            )
        if rationales is not None:
            if "pair_id" not in columns:
                raise ValueError(
                    "Selected rationales are found by pair_id, which the pairs table lacks; it has: "
                    f"{', '.join(columns)}."
                )
            if not rationales.pair_ids.intersection(table["pair_id"]):
                raise ValueError(
                    f"None of the {len(rationales.pair_ids)} pairs of the selected table is in the pairs table; give "
                    "both of the same run."
                )
        used = ["pair_id", "query", "target"]
        used += [] if rationales is not None else ["query_rationale", "target_rationale"]
        used += ["negatives"] if num_hard_negatives else []
        if isinstance(table, Table):  # pictures of other columns would be decoded for nothing
            table = table.select_columns([name for name in used if name in columns])
        self.table, self.seed, self.rationales = table, seed, rationales
        self.weight_by_posterior, self.num_hard_negatives = weight_by_posterior, num_hard_negatives

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, visit: Visit) -> Example:
        row = self.table[visit.row]
        rng = np.random.default_rng((self.seed, visit.epoch, visit.position))
        pair_id = row.get("pair_id") or f"row {visit.row}"
        said = {side: self._rationale(row, pair_id, side, rng) for side in ("query", "target")}
        negatives = [given_parts(value) for value in row.get("negatives") or []] if self.num_hard_negatives else []
        chosen = rng.permutation(len(negatives))[: self.num_hard_negatives]
        return {
            "pair_id": pair_id,
            "query": given_parts(row["query"]),
            "target": given_parts(row["target"]),
            "negatives": [negatives[place] for place in sorted(chosen.tolist())],
            "query_rationale": said["query"][0],
            "target_rationale": said["target"][0],
            "query_weight": said["query"][1],
            "target_weight": said["target"][1],
            "seed": int(rng.integers(2**63)),
        }

    def _rationale(
        self, row: dict[str, Any], pair_id: str, side: str, rng: np.random.Generator
    ) -> tuple[list[str], float]:
        if self.rationales is None:
            segments: Sequence[str] = row.get(f"{side}_rationale") or []
            return list(segments), 1.0
        drawn = self.rationales.draw(pair_id, side, rng)
        if drawn is None:
            return [], 1.0
        return list(drawn.segments), drawn.posterior if self.weight_by_posterior else 1.0


def check_tables(train: Any, other: Any) -> None:
    """
    Check the tables of a training.

    Args:
        train: the pairs table.
        other: the table that is evaluated on, if any.

    Raises:
        ValueError: if one is no table, lacks columns, has no rows, an empty input or a `pair_id` twice; or if they
            have a `pair_id` in common.
    """
    for name, table in (("the pairs table", train), ("the evaluation table", other)):
        if table is None and name != "the pairs table":
            continue
        if not isinstance(table, Table):
            raise ValueError(
                f"{name} is a {type(table).__name__}; allowed: datasets.Dataset. Read a Parquet file with "
                "mmemb_r1.training.tables.read_pairs."
            )
        ids = [column for column in ("pair_id",) if column in table.column_names]
        check_pairs(table, [*ids, "query", "target"], name)
    if other is not None and "pair_id" in train.column_names and "pair_id" in other.column_names:
        shared = set(train["pair_id"]) & set(other["pair_id"])
        if shared:
            raise ValueError(
                f"{len(shared)} pairs, {min(shared)!r} for one, are in the pairs table and in the evaluation table: "
                "what was trained on can't be evaluated on. Take them out of one."
            )
