"""Measure retrieval with a model that is being trained, on all processes of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from sentence_transformers.util.distributed import distributed_evaluation
from transformers import ProcessorMixin

from mmemb_r1.sentence_transformers import MMEmbR1

Evaluator = Callable[[MMEmbR1], dict[str, float]]


def measure_retrieval(
    evaluator: Evaluator, model: Any, processor: ProcessorMixin, encoding_file: Path | None = None
) -> dict[str, float]:
    """
    Call an evaluator with a model as it is. Each process embeds its part of the inputs; all of them have to call it.

    Args:
        evaluator: say a [`~mmemb_r1.evaluation.RetrievalEvaluator`].
        model: an [`~mmemb_r1.MMEmbR1Model`], also with adapters, whose weights every process has whole.
        processor: saved beside it.
        encoding_file: names the prompts of queries and documents. Default: those of a new model.
    """
    prompts = {}
    if encoding_file is not None:
        prompts = {"prompts": json.loads(encoding_file.read_text(encoding="utf-8")).get("prompts") or {}}
    wrapped = MMEmbR1.from_model(model, processor, **prompts)
    with distributed_evaluation(wrapped) as is_main:
        measured = evaluator(wrapped) if is_main else {}
    return broadcast_object_list([measured])[0]
