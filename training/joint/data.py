"""Read the joint phase's data: selected rationales, pairs, and batches of one task each."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from datasets import Dataset as Table
from torch.utils.data import Dataset, Sampler

from mmemb_r1.content import given_parts
from mmemb_r1.training.tables import check_pairs, stored_column

COLUMNS = ("pair_id", "side", "text")


class Drawn(NamedTuple):
    """Hold a rationale, its posterior, and the segments of it that may become rounds."""

    text: str
    posterior: float
    segments: tuple[str, ...]


class SelectedRationales:
    """
    Draw from the selected rationales of each pair and side, by their posterior.

    Args:
        table: what `mmemb-r1 select` wrote: the columns `pair_id`, `side`, `text` and, optionally, `posterior`
            (without it all of a pair's rationales are equally likely), `worker`, and `segments`, the parts of each
            text that become rounds where more than one is trained.

    Raises:
        ValueError: if a column is missing, the table is empty, a side is unknown, a text or a segment blank, or a
            posterior no positive number.
    """

    def __init__(self, table: Table) -> None:
        if missing := [name for name in COLUMNS if name not in table.column_names]:
            raise ValueError(
                f"The selected table has no column {missing[0]!r}; it has: {', '.join(table.column_names) or 'none'}. "
                "Give it selected.parquet, as `mmemb-r1 select` writes it."
            )
        if len(table) == 0:
            raise ValueError(
                "The selected table has no rows: nothing was kept. Select with another margin, or without."
            )
        columns = {name: stored_column(table, name).to_pylist() for name in COLUMNS}
        posteriors = (
            stored_column(table, "posterior").to_pylist() if "posterior" in table.column_names else [1.0] * len(table)
        )
        segments = (
            stored_column(table, "segments").to_pylist()
            if "segments" in table.column_names
            else [[text] for text in columns["text"]]
        )
        kept: dict[tuple[str, str], list[Drawn]] = defaultdict(list)
        rows = zip(*columns.values(), posteriors, segments, strict=True)
        for row, (pair_id, side, text, posterior, parts) in enumerate(rows):
            _check_row(row, side, text, posterior, parts)
            kept[pair_id, side].append(Drawn(text, posterior, tuple(parts)))
        self._kept = {key: _normalised(candidates) for key, candidates in kept.items()}
        self.pair_ids = {pair_id for pair_id, _ in self._kept}
        self.num_rationales = len(table)
        workers = stored_column(table, "worker").to_pylist() if "worker" in table.column_names else []
        self.workers = dict(sorted(Counter(workers).items()))

    def draw(self, pair_id: str, side: str, rng: np.random.Generator) -> Drawn | None:
        """
        Draw a rationale of a pair's `"query"` or `"target"`; `None` if it has none.

        One number is drawn from `rng` in any case. Posteriors of a side add up to 1.
        """
        number = rng.random()
        candidates = self._kept.get((pair_id, side))
        if candidates is None:
            return None
        place = int(np.searchsorted(np.cumsum([one.posterior for one in candidates]), number, side="right"))
        return candidates[min(place, len(candidates) - 1)]  # the sum may end a rounding below 1


def _normalised(candidates: list[Drawn]) -> list[Drawn]:
    posteriors = np.array([one.posterior for one in candidates])
    shares = (posteriors / posteriors.sum()).tolist()
    return [one._replace(posterior=share) for one, share in zip(candidates, shares, strict=True)]


def _check_row(row: int, side: Any, text: Any, posterior: Any, segments: Any) -> None:
    found = None
    if side not in ("query", "target"):
        found = f"the side {side!r}; allowed: query, target"
    elif not isinstance(text, str) or not text.strip():
        found = f"the text {text!r}; allowed: text that is not blank"
    elif posterior is None or not math.isfinite(posterior) or posterior <= 0:
        found = f"the posterior {posterior!r}; allowed: numbers above 0. Only what was kept belongs here"
    elif not segments or not all(isinstance(part, str) and part.strip() for part in segments):
        found = f"the segments {segments!r}; allowed: a list of texts that are not blank"
    if found:
        raise ValueError(f"The selected table has in row {row}, counted from 0, {found}.")


class DrawnRow(NamedTuple):
    """
    Name a row of the table at its position in an epoch.

    All randomness of that use follows from these and the run's seed, so that a run that was killed goes on as if it
    had not been, whatever the number of processes and data workers.
    """

    row: int
    epoch: int
    position: int


class Example(TypedDict):
    """
    Hold a pair as the collator takes it.

    Attributes:
        pair_id: of the pair, or its row.
        query, target, negatives: inputs.
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
    Turn rows of a pairs table into examples, with other draws each time.

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

    def __getitem__(self, drawn: DrawnRow) -> Example:
        row = self.table[drawn.row]
        rng = np.random.default_rng((self.seed, drawn.epoch, drawn.position))
        pair_id = row.get("pair_id") or f"row {drawn.row}"
        rationales = {side: self._rationale(row, pair_id, side, rng) for side in ("query", "target")}
        negatives = [given_parts(value) for value in row.get("negatives") or []] if self.num_hard_negatives else []
        chosen = rng.permutation(len(negatives))[: self.num_hard_negatives]
        return {
            "pair_id": pair_id,
            "query": given_parts(row["query"]),
            "target": given_parts(row["target"]),
            "negatives": [negatives[place] for place in sorted(chosen.tolist())],
            "query_rationale": rationales["query"][0],
            "target_rationale": rationales["target"][0],
            "query_weight": rationales["query"][1],
            "target_weight": rationales["target"][1],
            "seed": int(rng.integers(2**63)),
        }

    def _rationale(
        self, row: dict[str, Any], pair_id: str, side: str, rng: np.random.Generator
    ) -> tuple[list[str], float]:
        if self.rationales is None:
            segments: Sequence[str] = row.get(f"{side}_rationale") or []
            return list(segments), 1.0
        rationale = self.rationales.draw(pair_id, side, rng)
        if rationale is None:
            return [], 1.0
        return list(rationale.segments), rationale.posterior if self.weight_by_posterior else 1.0


def check_tables(train: Any, other: Any) -> None:
    """
    Check the table that is trained on and the one, if any, that is evaluated on.

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


class TaskBatchSampler(Sampler[list[DrawnRow]]):
    """
    Draw a fixed number of batches, each made of sub-batches of one task: without replacement until a task's pairs are
    used up, then shuffled anew.

    Every process draws the same batches and yields its own part of each: a batch does not depend on the number of
    processes.

    Args:
        tasks: task name of every row.
        batch_size: rows per batch, of all processes together.
        sub_batch_size: rows of one task that stand together; divides `batch_size`.
        num_batches: length of the sampler.
        task_weights: how often each task is drawn. `None`: by its number of rows. Tasks that are not named are not
            drawn.
        seed: of the order.
        process: `(i, n)`: yield the i-th (from 0) of n parts of each batch.

    Raises:
        ValueError: if a weight names a task that is not there, or nothing has a weight.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        batch_size: int,
        sub_batch_size: int,
        num_batches: int,
        task_weights: Mapping[str, float] | None = None,
        seed: int = 0,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        names, codes = np.unique(np.asarray(tasks), return_inverse=True)
        self.rows = [np.flatnonzero(codes == code) for code in range(len(names))]
        if task_weights is None:
            weights = np.array([len(rows) for rows in self.rows], dtype=float)
        else:
            unknown = sorted(set(task_weights) - set(names.tolist()))
            if unknown:
                raise ValueError(f"task_weights names {unknown}; the data has the tasks {names.tolist()}.")
            weights = np.array([task_weights.get(name, 0.0) for name in names.tolist()], dtype=float)
        if not weights.sum() > 0 or (weights < 0).any():
            raise ValueError(f"task_weights={dict(task_weights or {})} have to be non-negative and not all 0.")
        self.weights = weights / weights.sum()
        self.batch_size, self.sub_batch_size = batch_size, sub_batch_size
        self.num_batches, self.seed, self.epoch = num_batches, seed, 0
        index, number = process
        self.own = slice(index * batch_size // number, (index + 1) * batch_size // number)

    def set_epoch(self, epoch: int) -> None:
        """Give the next epoch another order; `accelerate` calls this before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[DrawnRow]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        queues: list[list[int]] = [[] for _ in self.rows]
        for start in range(0, self.num_batches * self.batch_size, self.batch_size):
            batch: list[int] = []
            for task in rng.choice(len(self.rows), size=self.batch_size // self.sub_batch_size, p=self.weights):
                while len(queues[task]) < self.sub_batch_size:
                    queues[task].extend(rng.permutation(self.rows[task]).tolist())
                batch += queues[task][: self.sub_batch_size]
                del queues[task][: self.sub_batch_size]
            yield [DrawnRow(row, self.epoch, start + place) for place, row in enumerate(batch)][self.own]
