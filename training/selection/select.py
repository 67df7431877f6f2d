"""Select the rationales that help their pair (the posterior)."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from datasets import Dataset

from mmemb_r1.runs import replaced_file
from mmemb_r1.training.selection.config import SelectionOptions
from mmemb_r1.training.selection.early_stop import check_early_stop
from mmemb_r1.training.selection.evaluator import PairEvaluator
from mmemb_r1.training.selection.pairs import index_pairs
from mmemb_r1.training.selection.report import Report, build_report, report_text
from mmemb_r1.training.selection.report_figure import draw_report
from mmemb_r1.training.selection.scores import score_shards, score_trials
from mmemb_r1.training.selection.settled import settle_selection
from mmemb_r1.training.selection.table import write_tables
from mmemb_r1.training.selection.trials import TrialBuilder, check_candidates, index_candidates
from mmemb_r1.training.settling.faults import SettleOptions
from mmemb_r1.training.settling.settle import Settlement, write_skipped
from mmemb_r1.training.tables import PAIR_COLUMNS, check_pairs

logger = logging.getLogger(__name__)


def select_rationales(
    pairs: Dataset,
    rationales: Dataset,
    evaluator: PairEvaluator,
    output: Path,
    options: SelectionOptions | None = None,
    *,
    batch_size: int = 8,
    shard_size: int = 64,
    part: tuple[int, int] = (1, 1),
    progress: bool | None = None,
    settling: SettleOptions | None = None,
) -> Report | None:
    """
    Score rationales with an evaluator, and keep those that help their pair.

    Scoring is expensive: the scores are kept in shards below `output`, and the same call goes on where a killed one
    stopped. Each score belongs to what it depends on (the inputs, the rationale, the evaluator): where rows of the
    tables leave, come or change their order, only what is new is asked, and what has a wrong pair that left. Selecting
    is cheap and is done again from the scores each time: `selection`, `wrong_pair_correction`, `space`, `margin` and
    `temperature` can be changed without asking the evaluator again.

    Args:
        pairs: the pairs table: `pair_id`, `query`, `target` and, optionally, `task` and `negatives`.
        rationales: the rationales table (see `read_rationales`), of any of these pairs.
        evaluator: see `load_evaluator`.
        output: the folder. Gets `selected.parquet` (the kept rationales, with `confidence_with`,
            `confidence_without`, `gain` and `posterior`), `candidates.parquet` (all of them, with `kept` and the
            `reason` why others are not), `report.txt`, `report.json` and, where matplotlib is installed,
            `report.png`.
        options: how to select. Default: counterfactual, with the wrong-pair correction.
        batch_size: trials (an input with all its rationales) that the evaluator gets at once.
        shard_size: trials per shard; a killed run loses no more than that.
        part: `(i, n)`: score the i-th of n parts of the shards, for n machines on one shared folder. Default: all.
        progress: show a bar on standard error, if that is a terminal; without one, progress is logged every 30 seconds
            (`mmemb_r1.progress`, level INFO). Default: `True`.
        settling: what becomes of pairs and rationales that are broken or too long; all are read before the first is
            scored, and those that are left out are listed in `skipped.jsonl`. Default: they are refused.

    Returns:
        The report (see `build_report`); `None`, and nothing is selected, while shards of other parts are missing.

    Raises:
        ValueError: if a table can't be used, an input can't be read, `output` holds the scores of another evaluator,
            intervention, seed or number of negatives, or an evaluator stops early that these options could need.
    """
    options, output = options or SelectionOptions(), Path(output)
    check_early_stop(evaluator, options)
    settled = checked_tables(pairs, rationales, evaluator, settling or SettleOptions(), progress)
    (pairs,), rationales = settled.tables, settled.rationales
    index = index_pairs(pairs)
    trials = TrialBuilder(pairs, index, index_candidates(rationales, index), options)
    if not score_trials(
        trials, evaluator, output, batch_size=batch_size, shard_size=shard_size, part=part, progress=progress
    ):
        logger.info("other parts are still missing; when they are there, the same call selects")
        return None
    write_skipped(output, settled.skipped)
    shards = score_shards(output, trials, shard_size)
    write_tables(shards, output, options, evaluator.definition)
    report = build_report(output, shards, pairs, index, options, evaluator.definition)
    write_report(report, output)
    return report


def checked_tables(
    pairs: Dataset,
    rationales: Dataset,
    evaluator: PairEvaluator,
    settling: SettleOptions,
    progress: bool | None = None,
) -> Settlement:
    """Check both tables, and read all of their rows; the arguments are as for `select_rationales`."""
    check_pairs(pairs, PAIR_COLUMNS)
    check_candidates(rationales)
    return settle_selection(pairs, rationales, evaluator, settling, progress)


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json`, `report.txt` and, if matplotlib is there, `report.png`."""
    texts = {
        "report.json": json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "report.txt": report_text(report),
    }
    for name, text in texts.items():
        with replaced_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    try:
        draw_report(report, folder, folder / "report.png")
    except ImportError as error:
        logger.warning("there is no report.png: %s", error)
