"""Score every rationale with the evaluator, in shards: each is written whole or not at all, and never twice."""

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
from mmemb_r1.training.selection.trials import BuiltTrial, TrialBuilder

_LOGIT, _LOGITS = pa.float32(), pa.list_(pa.float32())
SCHEMA = pa.schema(
    {
        "logit_with": _LOGIT,  # match logit of the pair with the rationale
        "logit_without": _LOGIT,  # under the intervention
        "logit_direct": _LOGIT,  # without any rationale
        "negatives_with": _LOGITS,  # the same of the wrong pairs
        "negatives_without": _LOGITS,
        "negatives_direct": _LOGITS,
        "unusable": pa.string(),  # why the rationale was not scored
    }
)
RESULTS = (*SCHEMA.names, "confidence_with", "confidence_without", "gain", "posterior", "kept", "reason")
logger = logging.getLogger(__name__)


def score_trials(
    trials: TrialBuilder,
    evaluator: PairEvaluator,
    folder: Path,
    *,
    batch_size: int = 8,
    shard_size: int = 64,
    part: tuple[int, int] = (1, 1),
    progress: bool | None = None,
) -> bool:
    """
    Ask the evaluator all trials but those of shards that are there already; the arguments are as for
    `select_rationales`.

    In `folder`, `run.json` says what the scores belong to, and `shards/` holds them: per rationale its row of the
    rationales table and the columns of `SCHEMA`. Returns whether all shards are there now.

    Raises:
        ValueError: if the folder holds the scores of other tables or settings, an input can't be read, or the
            evaluator's answer is not made of finite logits.
    """
    if batch_size < 1 or shard_size < 1 or not 1 <= part[0] <= part[1]:
        raise ValueError(
            f"batch_size={batch_size}, shard_size={shard_size}, part={part[0]}/{part[1]}; allowed: sizes from 1 and "
            "parts from 1/n to n/n"
        )
    identity = _identity(trials, evaluator, shard_size)
    check_run(folder / "run.json", identity, **_messages(folder))
    paths = score_shards(folder, len(trials), shard_size)
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
            record_run(folder / "run.json", identity, **_messages(folder))  # not before: settings may be corrected
            with replaced_file(paths[number]) as temporary:
                pq.write_table(table, temporary)
            logger.info("scoring: shard %d of %d, %d trials", done, len(missing), len(numbers))
    return all(path.exists() for path in paths)


def score_shards(folder: Path, num_trials: int, shard_size: int) -> list[Path]:
    """List the paths of the shards, in the order of the trials."""
    return [folder / "shards" / f"{number:05d}.parquet" for number in range(-(-num_trials // shard_size))]


def _identity(trials: TrialBuilder, evaluator: PairEvaluator, shard_size: int) -> dict[str, Any]:
    """Collect all that determines the scores."""
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
    trials: TrialBuilder, evaluator: PairEvaluator, numbers: range, batch_size: int, advance: Callable[[int], None]
) -> tuple[list[int], list[dict[str, Any]]]:
    """Score some trials: rows of the rationales table, and for each of them the columns of `SCHEMA`."""
    rows: list[int] = []
    scores: list[dict[str, Any]] = []
    for start in range(numbers.start, numbers.stop, batch_size):
        built = trials.build(range(start, min(start + batch_size, numbers.stop)))
        answers = iter(_answers(evaluator, [one for one in built if one.is_scored]))
        for one in built:
            rows += one.group.rows
            scores += _rows(one, next(answers) if one.is_scored else torch.empty(0, 0))
        advance(len(built))
    return rows, scores


def _with_rationales(rationales: Dataset, rows: list[int], scores: list[dict[str, Any]]) -> pa.Table:
    table = rationales.with_format("arrow")[rows]
    table = table.select([name for name in table.column_names if name not in RESULTS]).replace_schema_metadata(None)
    for field, column in zip(SCHEMA, pa.Table.from_pylist(scores, schema=SCHEMA).columns, strict=True):
        table = table.append_column(field, column)
    return table


def _answers(evaluator: PairEvaluator, built: Sequence[BuiltTrial]) -> list[Tensor]:
    """Ask the evaluator: match logits `(others, rationales)` of each trial. An error names the pair."""
    if not built:
        return []
    try:
        answers = evaluator.match_logits([one.trial for one in built])
    except TrialError as error:
        raise ValueError(built[error.index].complaint(error.reason)) from error
    if len(answers) != len(built):
        raise ValueError(f"the evaluator gave {len(answers)} answers to {len(built)} trials")
    for one, logits in zip(built, answers, strict=True):
        expected = (len(one.trial.others), len(one.trial.rationales))
        if tuple(logits.shape) != expected or not bool(logits.isfinite().all()):
            raise ValueError(
                f"the evaluator answered the trial of {one.names[0]} with logits of shape {tuple(logits.shape)}, "
                f"{int((~logits.isfinite()).sum())} of them not finite; it has to give {expected} finite ones"
            )
    return answers


def _rows(one: BuiltTrial, logits: Tensor) -> list[dict[str, Any]]:
    """Make the columns of `SCHEMA` for each rationale of a trial."""
    columns = logits.float().T.tolist()  # rationale -> [pair, negatives ...]
    rows: list[dict[str, Any]] = []
    for with_, without, reason in zip(one.with_columns, one.without_columns, one.unusable, strict=True):
        if reason is not None:
            rows.append({"unusable": reason})
            continue
        logits_of = {"with": columns[with_], "without": columns[without], "direct": columns[0]}
        rows.append(
            {f"logit_{name}": column[0] for name, column in logits_of.items()}
            | {f"negatives_{name}": column[1:] for name, column in logits_of.items()}
        )
    return rows
