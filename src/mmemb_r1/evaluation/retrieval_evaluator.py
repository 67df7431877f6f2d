"""Measure retrieval while a model is trained, in any trainer that takes an evaluator of sentence-transformers."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentence_transformers.base.evaluation import BaseEvaluator

from mmemb_r1.evaluation.encoders import encoder_of
from mmemb_r1.evaluation.pair_tasks import pair_tasks
from mmemb_r1.evaluation.runner import TaskRunner, summarise_tasks
from mmemb_r1.evaluation.settings import MODES, Settings
from mmemb_r1.evaluation.tasks import ALL
from mmemb_r1.progress import progress_bar

if TYPE_CHECKING:
    from datasets import Dataset

METRICS = ("hit@1", "hit@5", "hit@10", "mrr", "invocation_ratio", "mean_reasoning_tokens")
PRIMARY = "hit@1"


class RetrievalEvaluator(BaseEvaluator):
    """
    Let the queries of held-out pairs search for their targets, directly, after a rationale, or as the gate decides at
    the present threshold.

    Candidates are embedded directly, once per call. Called with a model it returns `{mode}_{metric}` -> float, means
    over the tasks of the pairs, each with the same weight: `hit@1`, `hit@5`, `hit@10`, `mrr` (0 to 1, ties against the
    model), `invocation_ratio` (share of queries with a rationale) and `mean_reasoning_tokens`. With `name`, all of it
    begins with `{name}_`. `metric_for_best_model="auto_hit@1"` chooses a checkpoint by it.

    Args:
        pairs: as [`~mmemb_r1.evaluation.pair_tasks.pair_tasks`] takes them; `pair_id` may be missing.
        modes: of `"never"`, `"always"` and `"auto"`; `("never",)` for a model without a gate. Default: all three.
        batch_size: inputs that are read at once; defaults to 64.
        name: of the evaluator, where there are several. Default: none.
        max_reasoning_tokens: budget of a rationale. Default: the model's own.

    Raises:
        ValueError: if there are no pairs, one is empty, or a mode is not known; when called, if the model can't think
            and is asked to.
    """

    def __init__(
        self,
        pairs: Dataset,
        modes: Sequence[str] = MODES,
        *,
        batch_size: int = 64,
        name: str = "",
        max_reasoning_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.settings = Settings(modes=tuple(modes), batch_size=batch_size, max_reasoning_tokens=max_reasoning_tokens)
        if "pair_id" not in pairs.column_names:
            pairs = pairs.add_column("pair_id", [f"row {row}" for row in range(len(pairs))])
        self.tasks = pair_tasks(pairs, {"pairs": name or "held out"})
        self.name = name
        self.primary_metric = f"{self.settings.modes[-1]}_{PRIMARY}"
        if name:
            self.primary_metric = f"{name}_{self.primary_metric}"

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """
        Measure a model.

        Args:
            model: an [`MMEmbR1`], or any sentence-transformers model, in the mode `"never"`.
            output_path: a folder; a line for this call is added to `retrieval.jsonl` there. Default: nothing is
                written.
            epoch, steps: when in training this is, for that line.
        """
        with progress_bar(False) as bar:
            # a training has one line for all tasks
            runner = TaskRunner(encoder_of(model, self.settings), self.settings, None, bar, logging.DEBUG)
            for task in self.tasks:
                runner.measure(task)
        found = summarise_tasks(runner.entries, runner.rows)[ALL]["modes"]
        numbers = {f"{mode}_{metric}": found[mode][metric] for mode in self.settings.modes for metric in METRICS}
        metrics = self.prefix_name_to_metrics(numbers, self.name)
        if hasattr(model, "model_card_data"):
            self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        if output_path is not None:
            line = json.dumps({"epoch": epoch, "steps": steps, **metrics}, ensure_ascii=False)
            with Path(output_path, "retrieval.jsonl").open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        return metrics

    def get_config_dict(self) -> dict[str, Any]:
        """Tell the settings that a model card names."""
        return {"modes": list(self.settings.modes), "queries": sum(len(task.query_ids) for task in self.tasks)}
