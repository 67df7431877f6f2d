"""What the evaluator says of every rationale, in shards: each is written whole or not at all, and never twice."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torch import Tensor

from mmemb_r1.runs import check_run, progress_bar, record_run, replaced_file
from mmemb_r1.training.selection.evaluator import PairEvaluator, TrialError
from mmemb_r1.training.selection.trials import Posed, Trials

_LOGIT, _LOGITS = pa.float32(), pa.list_(pa.float32())
SCHEMA = pa.schema(
    {
        "logit_with": _LOGIT,  # match logit of the pair with the rationale
        "logit_without": _LOGIT,  # under the intervention
        "logit_direct": _LOGIT,  # without any rationale
        "negatives_with": _LOGITS,  # the same of the wrong pairs
        "negatives_without": _LOGITS,
        "negatives_direct": _LOGITS,
        "unusable": pa.string(),  # why the rationale was not judged
    }
)
RESULTS = (*SCHEMA.names, "confidence_with", "confidence_without", "gain", "posterior", "kept", "reason")
logger = logging.getLogger(__name__)


def score(
    trials: Trials,
    evaluator: PairEvaluator,
    folder: Path,
    *,
    batch_size: int = 8,
    shard_size: int = 64,
    part: tuple[int, int] = (1, 1),
    progress: bool | None = None,
) -> bool:
    """
    Let the evaluator judge all trials; those of shards that are there already are not judged again.

    Args:
        trials: what to ask.
        evaluator: whom to ask.
        folder: `run.json` says what the scores belong to, `shards/` holds them: per rationale its row of the
            rationales table and the columns of `SCHEMA`.
        batch_size: trials that the evaluator gets at once.
        shard_size: trials per shard.
        part: `(i, n)` leaves all shards but every n-th to other machines on the same folder.
        progress: show a progress bar on standard error. Default: if that is a terminal.

    Returns:
        Whether all shards are there now.

    Raises:
        ValueError: if the folder holds the scores of other tables or settings, an input can't be read, or the
            evaluator answers something that is no logit.
    """
    if batch_size < 1 or shard_size < 1 or not 1 <= part[0] <= part[1]:
        raise ValueError(
            f"batch_size={batch_size}, shard_size={shard_size}, part={part[0]}/{part[1]}; allowed: sizes from 1 and "
            "parts from 1/n to n/n"
        )
    identity = _identity(trials, evaluator, shard_size)
    check_run(folder / "run.json", identity, **_messages(folder))
    paths = shard_paths(folder, len(trials), shard_size)
    mine = range(part[0] - 1, len(paths), part[1])
    missing = {
        number: range(number * shard_size, min((number + 1) * shard_size, len(trials)))
        for number in mine
        if not paths[number].exists()
    }
    if len(missing) < len(mine):
        logger.info("%d of %d shards are scored already", len(mine) - len(missing), len(mine))
    with progress_bar(sys.stderr.isatty() if progress is None else progress) as bar:
        task = bar.add_task("scoring", total=sum(map(len, missing.values())))
        for done, (number, numbers) in enumerate(missing.items(), start=1):
            batches = _scored(trials, evaluator, numbers, batch_size, partial(bar.advance, task))
            table = _with_rationales(trials.candidates.table, *batches)
            # only now: until something came of them, settings may be corrected
            record_run(folder / "run.json", identity, **_messages(folder))
            with replaced_file(paths[number]) as temporary:
                pq.write_table(table, temporary)
            logger.info("scoring: shard %d of %d, %d trials", done, len(missing), len(numbers))
    return all(path.exists() for path in paths)


def shard_paths(folder: Path, num_trials: int, shard_size: int) -> list[Path]:
    """Where the shards are, in the order of the trials."""
    return [folder / "shards" / f"{number:05d}.parquet" for number in range(-(-num_trials // shard_size))]


def _identity(trials: Trials, evaluator: PairEvaluator, shard_size: int) -> dict[str, Any]:
    """What determines the scores."""
    options = trials.options
    return {
        "pairs": trials.index.fingerprint,
        "rationales": trials.candidates.fingerprint,
        "evaluator": evaluator.definition,
        "intervention": options.intervention,
        "num_negatives": options.num_negatives,
        "seed": options.seed,
        "shard_size": shard_size,
    }


def _messages(folder: Path) -> dict[str, str]:
    return {
        "what": f"the folder of scores {folder}",
        "hint": "Scores can be used again with another selection, margin, space, temperature or wrong-pair "
        "correction; for anything else choose another folder, or remove this one.",
    }


def _scored(
    trials: Trials, evaluator: PairEvaluator, numbers: range, batch_size: int, advance: Callable[[int], None]
) -> tuple[list[int], list[dict[str, Any]]]:
    """The rows of the rationales table that these trials are about, and for each the columns of `SCHEMA`."""
    rows: list[int] = []
    scores: list[dict[str, Any]] = []
    for start in range(numbers.start, numbers.stop, batch_size):
        posed = trials.pose(range(start, min(start + batch_size, numbers.stop)))
        answers = iter(judged(evaluator, [one for one in posed if one.is_judged]))
        for one in posed:
            rows += one.group.rows
            scores += _rows(one, next(answers) if one.is_judged else torch.empty(0, 0))
        advance(len(posed))
    return rows, scores


def _with_rationales(rationales: Dataset, rows: list[int], scores: list[dict[str, Any]]) -> pa.Table:
    table = rationales.with_format("arrow")[rows]
    table = table.select([name for name in table.column_names if name not in RESULTS]).replace_schema_metadata(None)
    for field, column in zip(SCHEMA, pa.Table.from_pylist(scores, schema=SCHEMA).columns, strict=True):
        table = table.append_column(field, column)
    return table


def judged(evaluator: PairEvaluator, posed: Sequence[Posed]) -> list[Tensor]:
    """
    Match logits `(others, rationales)` of each trial.

    Raises:
        ValueError: naming the pair that the evaluator can't judge, or of which it says something that is no logit.
    """
    if not posed:
        return []
    try:
        answers = evaluator.match_logits([one.trial for one in posed])
    except TrialError as error:
        raise ValueError(posed[error.index].complaint(error.reason)) from error
    if len(answers) != len(posed):
        raise ValueError(f"the evaluator gave {len(answers)} answers to {len(posed)} trials")
    for one, logits in zip(posed, answers, strict=True):
        expected = (len(one.trial.others), len(one.trial.rationales))
        if tuple(logits.shape) != expected or not bool(logits.isfinite().all()):
            raise ValueError(
                f"the evaluator answered the trial of {one.names[0]} with logits of shape {tuple(logits.shape)}, "
                f"{int((~logits.isfinite()).sum())} of them not finite; it has to give {expected} finite ones"
            )
    return answers


def _rows(one: Posed, logits: Tensor) -> list[dict[str, Any]]:
    """The columns of `SCHEMA` for each rationale of a trial."""
    columns = logits.float().T.tolist()  # rationale -> [pair, negatives ...]
    rows: list[dict[str, Any]] = []
    for given, instead, reason in zip(one.with_columns, one.without_columns, one.unusable, strict=True):
        if reason is not None:
            rows.append({"unusable": reason})
            continue
        asked = {"with": columns[given], "without": columns[instead], "direct": columns[0]}
        rows.append(
            {f"logit_{name}": column[0] for name, column in asked.items()}
            | {f"negatives_{name}": column[1:] for name, column in asked.items()}
        )
    return rows
