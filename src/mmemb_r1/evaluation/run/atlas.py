"""A run over Atlas's tables, with the baselines that say what a score on them is worth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmemb_r1.evaluation.encoders.adaptive import Explains
from mmemb_r1.evaluation.run.results import Results
from mmemb_r1.evaluation.run.runner import run_evaluation
from mmemb_r1.evaluation.settings import Settings
from mmemb_r1.evaluation.tasks.atlas import atlas_tasks, majority, set_sizes

if TYPE_CHECKING:
    from datasets import Dataset


def evaluate(
    model: Explains,
    pairs: Dataset,
    candidates: Dataset,
    *,
    modes: Sequence[str] = ("never", "always"),
    batch_size: int = 64,
    train_pairs: Dataset | None = None,
    progress: bool = True,
    config: Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] | None = None,
    checkpoint: str | None = None,
    rationales: bool = False,
) -> Results:
    """
    Rank the candidates for each query, task by task and reasoning mode by reasoning mode.

    Candidates are embedded once and directly (`reasoning="never"`); `modes` say how the queries think.

    Args:
        model: an [`MMEmbR1`], anything with its `explain`, or any sentence-transformers model.
        pairs: queries with the columns of [`atlas_tasks`].
        candidates: answers with the columns of [`atlas_tasks`].
        modes: reasoning modes of the queries; defaults to never and always.
        batch_size: defaults to 64.
        train_pairs: pairs whose most frequent answer per task gives the majority baseline; left out when `None`.
        progress: whether to show bars; defaults to `True`.
        config: what else to note about this run, say the model's name and the seed.
        output: the folder of a run that goes on after a kill, see [`run_evaluation`]. Default: nothing is written.
        checkpoint: what names the weights of a model with an `explain` of its own, see [`run_evaluation`].
        rationales: whether the rows there hold what was thought; defaults to `False`.

    Returns:
        As [`run_evaluation`]; `config` also says how many `candidates` each set has, tasks also have a `complexity`,
        and where they apply `majority` (hit@1) and `no_image` (hit@1 per mode).

    Raises:
        ValueError: if there are no pairs or modes, or a table is not what it has to be.
    """
    if len(pairs) == 0 or not modes:
        raise ValueError(
            f"there is nothing to evaluate: {len(pairs)} pairs, modes {list(modes)}; give at least one of each"
        )
    settings = Settings(modes=tuple(modes), batch_size=batch_size, no_image=True, rationales=rationales)
    tasks = atlas_tasks(pairs, candidates)
    noted = {"candidates": set_sizes(candidates, pairs["candidate_set"]), **(config or {})}
    extras = majority(train_pairs, pairs)
    return run_evaluation(
        model,
        tasks,
        settings,
        output=output,
        checkpoint=checkpoint,
        extras=extras,
        config=noted,
        progress=progress,
    )
