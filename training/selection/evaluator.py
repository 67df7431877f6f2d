"""The protocol of an evaluator: what it is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mmemb_r1._lazy import import_object

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Trial:
    """
    One input with the rationales proposed for it, and the inputs of the other side that it is compared with.

    Args:
        side: the side of the anchor, `"query"` or `"target"`.
        anchor: the input that the rationales are about.
        others: inputs of the other side; the first one matches the anchor, the others are negatives.
        rationales: `None` stands for no rationale.
    """

    side: str
    anchor: Mapping[str, Any]
    others: Sequence[Mapping[str, Any]]
    rationales: Sequence[str | None]


class PairEvaluator(Protocol):
    """
    Says how likely a query and a target match, with and without a rationale.

    It may have, too, `reading`, a [`~mmemb_r1.training.settling.reading.Reading`] with which inputs are measured
    before they are scored, and `context_length`, the most tokens that it can read.
    """

    @property
    def definition(self) -> dict[str, Any]:
        """All that determines the answers, and nothing that only affects speed: JSON."""

    def match_logits(self, trials: Sequence[Trial]) -> list[Tensor]:
        """
        Return the log-odds that the pairs match: for each trial `(len(others), len(rationales))`, float32, on the CPU.

        Raises:
            TrialError: naming the trial with an input that can't be read.
        """


class TrialError(ValueError):
    """
    A trial can't be answered.

    Attributes:
        index: position of the trial among those passed.
        reason: what came, what is allowed and what to do.
    """

    def __init__(self, index: int, reason: str) -> None:
        self.index, self.reason = index, reason
        super().__init__(f"Trial {index} can't be answered: {reason}")


# Imported when they are used: they need torch, and import this file.
KINDS = {
    "vlm": "mmemb_r1.training.selection.vlm_evaluator:VLMEvaluator",
    "embedding": "mmemb_r1.training.selection.embedding_evaluator:EmbeddingEvaluator",
    "vllm": "mmemb_r1.training.selection.vllm_evaluator:VllmEvaluator",
}
_EARLY_STOP = "mmemb_r1.training.selection.early_stop:EarlyStop"


def load_evaluator(model: str, kind: str | None = None, *, early_stop: bool = False, **options: Any) -> PairEvaluator:
    """
    Load an evaluator.

    Args:
        model: a vision-language model, which answers yes or no, or an mmemb-r1 checkpoint, which compares vectors: a
            folder or a Hub id.
        kind: `"vlm"`, `"embedding"` or `"vllm"`: a vision-language model that vLLM runs. Default: see
            `evaluator_kind`.
        early_stop: whether wrong pairs are asked only about rationales that help their own pair, see [`EarlyStop`].
        options: further arguments of [`VLMEvaluator`], [`EmbeddingEvaluator`] or [`VllmEvaluator`].

    Raises:
        ValueError: if there is no such kind, or the model can't be loaded.
    """
    kind = kind or evaluator_kind(model)
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is no kind of evaluator; allowed: {', '.join(map(repr, KINDS))}.")
    evaluator = import_object(KINDS[kind])(model, **options)
    return import_object(_EARLY_STOP)(evaluator) if early_stop else evaluator


def evaluator_kind(model: str) -> str:
    """Return `"embedding"` for an mmemb-r1 checkpoint, `"vlm"` for another model; errors are `check_model`'s."""
    from transformers import AutoConfig

    from mmemb_r1.hub.source import check_model
    from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Config  # this module registers it with AutoConfig

    check_model(model)
    try:
        config = AutoConfig.from_pretrained(model, local_files_only=Path(model).is_dir(), trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the evaluator {model!r} can't be loaded: there is no model ({reason}).") from error
    return "embedding" if isinstance(config, MMEmbR1Config) else "vlm"
