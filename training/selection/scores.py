"""Score every rationale with the evaluator, in shards: each is written whole or not at all, and never twice."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from torch import Tensor

from mmemb_r1.progress import progress_bar
from mmemb_r1.runs import as_json, check_run, record_run, replaced_file
from mmemb_r1.training.selection.early_stop import EarlyStop
from mmemb_r1.training.selection.evaluator import PairEvaluator, TrialError
from mmemb_r1.training.selection.kept_scores import KeptScores
from mmemb_r1.training.selection.trials import KEY_SIZE, BuiltTrial, PlannedTrial, TrialBuilder

_LOGIT, _LOGITS = pa.float32(), pa.list_(pa.float32())
SCHEMA = pa.schema(
    {
        "logit_with": _LOGIT,  # match logit of the pair with the rationale
        "logit_without": _LOGIT,  # under the intervention
        "logit_direct": _LOGIT,  # without any rationale
        "negatives_with": _LOGITS,  # the same of the wrong pairs; NaN of a rationale that was given up early
        "negatives_without": _LOGITS,
        "negatives_direct": _LOGITS,
        "unusable": pa.string(),  # why the rationale was not scored
        "score_key": pa.binary(KEY_SIZE),  # digest of all that the score depends on, null where there is none
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
    Ask the evaluator about all rationales but those that it was asked about before; the arguments are as for
    `select_rationales`.

    In `folder`, `run.json` says how the evaluator is asked, and `shards/` holds what it answered: a folder for each
    state of the tables, with shards of their rows and the columns of `SCHEMA`. A score belongs to what it depends on
    (`score_key`) and not to a place in the tables: where these change, it is taken from the shards of earlier ones.
    Returns whether all shards are there now.

    Raises:
        ValueError: if the folder holds the scores of other settings, an input can't be read, or the evaluator's answer
            is not made of finite logits.
    """
    if batch_size < 1 or shard_size < 1 or not 1 <= part[0] <= part[1]:
        raise ValueError(
            f"batch_size={batch_size}, shard_size={shard_size}, part={part[0]}/{part[1]}; allowed: sizes from 1 and "
            "parts from 1/n to n/n"
        )
    identity = _identity(trials, evaluator)
    check_run(folder / "run.json", identity, **_messages(folder))
    paths = score_shards(folder, trials, shard_size)
    mine = range(part[0] - 1, len(paths), part[1])
    missing = {
        number: range(number * shard_size, min((number + 1) * shard_size, len(trials)))
        for number in mine
        if not paths[number].exists()
    }
    if len(missing) < len(mine):
        logger.info("%d of %d shards are scored already", len(mine) - len(missing), len(mine))
    scorer = _Scorer(
        trials, evaluator, batch_size, _earlier_scores(paths) if missing else KeptScores([], SCHEMA.names)
    )
    with progress_bar(progress) as bar:
        task = bar.add_task("scoring", total=sum(map(len, missing.values())))
        for number, numbers in missing.items():
            table = _with_rationales(trials.candidates.table, *scorer.score(numbers, partial(bar.advance, task)))
            record_run(folder / "run.json", identity, **_messages(folder))  # not before: settings may be corrected
            with replaced_file(paths[number]) as temporary:
                pq.write_table(table, temporary)
    if scorer.num_reused:
        logger.info("%d scores of rationales were there from earlier tables", scorer.num_reused)
    return all(path.exists() for path in paths)


def score_shards(folder: Path, trials: TrialBuilder, shard_size: int) -> list[Path]:
    """List the paths of the shards of these tables, in the order of the trials."""
    state = json.dumps([trials.index.fingerprint, trials.candidates.fingerprint, shard_size])
    own = folder / "shards" / blake2b(state.encode(), digest_size=8).hexdigest()
    return [own / f"{number:05d}.parquet" for number in range(-(-len(trials) // shard_size))]


def _earlier_scores(paths: Sequence[Path]) -> KeptScores:
    """Find the scores of earlier tables, which lie beside those of the present ones."""
    own = paths[0].parent
    return KeptScores(sorted(path for path in own.parent.glob("*/*.parquet") if path.parent != own), SCHEMA.names)


def _identity(trials: TrialBuilder, evaluator: PairEvaluator) -> dict[str, Any]:
    """Collect what is asked of each rationale."""
    options = trials.options
    return {
        "evaluator": evaluator.definition,
        "intervention": options.intervention,
        "num_negatives": options.num_negatives,
        "seed": options.seed,
    }


def _messages(folder: Path) -> dict[str, str]:
    return {
        "what": f"the folder of scores {folder}",
        "hint": "Scores can be used again with other rows of the tables and with another selection, margin, space, "
        "temperature or wrong-pair correction; for anything else choose another folder, or remove this one.",
    }


class _Scorer:
    """Scores trials: looks up what was answered before, and asks the evaluator the rest."""

    def __init__(self, trials: TrialBuilder, evaluator: PairEvaluator, batch_size: int, kept: KeptScores) -> None:
        self.trials, self.evaluator, self.batch_size, self.kept = trials, evaluator, batch_size, kept
        self.num_reused = 0
        self._definition = as_json(evaluator.definition)

    def score(self, numbers: range, advance: Callable[[int], None]) -> tuple[list[int], list[dict[str, Any]]]:
        """Score some trials: rows of the rationales table, and for each of them the columns of `SCHEMA`."""
        rows: list[int] = []
        scores: list[dict[str, Any]] = []
        for start in range(numbers.start, numbers.stop, self.batch_size):
            plans = [self.trials.plan(number) for number in numbers[start - numbers.start :][: self.batch_size]]
            for plan, columns in zip(plans, self._score(plans), strict=True):
                rows += plan.group.rows
                scores += columns
            advance(len(plans))
        return rows, scores

    def _score(self, plans: Sequence[PlannedTrial]) -> list[list[dict[str, Any]]]:
        keys = [plan.keys(self._definition) for plan in plans]
        known = self.kept.find([key for some in keys for key in some if key is not None])
        self.num_reused += len(known)
        asked = [[key is not None and key not in known for key in some] for some in keys]
        built = [
            self.trials.build(plan, wanted) if any(wanted) else None for plan, wanted in zip(plans, asked, strict=True)
        ]
        answers = iter(_answers(self.evaluator, [one for one in built if one is not None]))
        scores = []
        for plan, one, some in zip(plans, built, keys, strict=True):
            answered = _columns(one, next(answers)) if one is not None else [None] * len(some)
            scores.append(
                [
                    {"unusable": reason} if key is None else known.get(key) or {"score_key": key, **(answer or {})}
                    for reason, key, answer in zip(plan.unusable, some, answered, strict=True)
                ]
            )
        return scores


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
        bad = ~logits.isfinite()
        if isinstance(evaluator, EarlyStop):
            bad[1:, 1:] &= ~logits[1:, 1:].isnan().all(dim=0)  # rationales that were given up
        if tuple(logits.shape) != expected or bool(bad.any()):
            raise ValueError(
                f"the evaluator answered the trial of {one.names[0]} with logits of shape {tuple(logits.shape)}, "
                f"{int(bad.sum())} of them not finite; it has to give {expected} finite ones"
            )
    return answers


def _columns(one: BuiltTrial, logits: Tensor) -> list[dict[str, Any] | None]:
    """Make the columns of `SCHEMA` for each rationale of a trial, `None` where it was not asked about."""
    columns = logits.float().T.tolist()  # rationale -> [pair, negatives ...]
    rows: list[dict[str, Any] | None] = []
    for with_, without in zip(one.with_columns, one.without_columns, strict=True):
        if with_ is None or without is None:
            rows.append(None)
            continue
        logits_of = {"with": columns[with_], "without": columns[without], "direct": columns[0]}
        rows.append(
            {f"logit_{name}": column[0] for name, column in logits_of.items()}
            | {f"negatives_{name}": column[1:] for name, column in logits_of.items()}
        )
    return rows
