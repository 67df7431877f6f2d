"""Evaluate pairs with an mmemb-r1 checkpoint: does the rationale bring their vectors closer?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmemb_r1.content import content_key
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.options_mmemb_r1 import context_length
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module
from mmemb_r1.rationale_tokens import forced_embeddings, rationale_suffix
from mmemb_r1.sentence_transformers import MMEmbR1
from mmemb_r1.training.selection.evaluator import Trial, TrialError
from mmemb_r1.training.selection.pairs import other_side
from mmemb_r1.training.settling.reading import Reading
from mmemb_r1.training.vlm import weights_fingerprint

_Key = tuple[bytes, "str | None"]


@dataclass
class EmbeddingEvaluator:
    """
    Scores pairs by the cosine of their vectors: `logit = (cosine - bias) / temperature`.

    The input that a rationale is about is embedded after it, as if the model had generated it (`prompt <|embed|>
    <think> r </think> <|embed|>`, the last vector); without a rationale, and on the other side, directly. In one call
    no input is embedded twice with the same rationale.

    Args:
        model: an mmemb-r1 checkpoint: a folder or a Hub id.
        temperature: Default: 0.02, that of the joint phase.
        bias: the cosine at which a pair is as likely to match as not. Gains in log-odds do not depend on it. Default:
            0.5.
        batch_size: sequences that are embedded at once.
        device: where the model runs. Default: the accelerator if there is one.

    Raises:
        ValueError: if the temperature is not positive, or the model is no mmemb-r1 checkpoint.
    """

    model: str
    temperature: float = 0.02
    bias: float = 0.5
    batch_size: int = 32
    device: str | None = None
    _encoder: MMEmbR1 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} has to be positive")
        self._encoder = MMEmbR1(self.model, device=self.device).eval()
        if not isinstance(self._encoder[0], MMEmbR1Module):
            raise ValueError(
                f"{self.model!r} is no mmemb-r1 checkpoint; a vision-language model is evaluator kind 'vlm'"
            )
        self._weights = weights_fingerprint(self._encoder[0].model)
        self.context_length = context_length(self._encoder[0].model.config)
        self.reading = Reading.of(self._encoder.processor, self._encoder[0].model.config)

    @property
    def definition(self) -> dict[str, Any]:
        """All that determines the answers."""
        return {
            "kind": "embedding",
            "model": Path(self.model).name,  # for readers; the weights identify the model, wherever its folder is
            "weights": self._weights,
            "temperature": self.temperature,
            "bias": self.bias,
        }

    def match_logits(self, trials: Sequence[Trial]) -> list[Tensor]:
        """See [`PairEvaluator.match_logits`]."""
        if not trials:
            return []
        keys = [[content_key(value) for value in (trial.anchor, *trial.others)] for trial in trials]
        wanted: dict[_Key, _Sequence] = {}
        for number, (trial, (anchor, *others)) in enumerate(zip(trials, keys, strict=True)):
            for rationale in trial.rationales:
                wanted.setdefault((anchor, rationale), _Sequence(trial.anchor, rationale, number, trial.side))
            for key, value in zip(others, trial.others, strict=True):
                wanted.setdefault((key, None), _Sequence(value, None, number, other_side(trial.side)))
        vectors = dict(zip(wanted, self._embed(list(wanted.values())), strict=True))
        logits = []
        for trial, (anchor, *others) in zip(trials, keys, strict=True):
            reasoned = torch.stack([vectors[anchor, rationale] for rationale in trial.rationales])  # (K, D)
            direct = torch.stack([vectors[other, None] for other in others])  # (M + 1, D)
            logits.append((direct @ reasoned.T - self.bias) / self.temperature)
        return logits

    def _embed(self, sequences: Sequence[_Sequence]) -> Tensor:
        """Embed: unit vectors `(N, D)`, float32, on the CPU."""
        values = [sequence.value for sequence in sequences]
        suffixes = [self._suffix(sequence.rationale) for sequence in sequences]
        try:
            return forced_embeddings(self._encoder, values, suffixes, batch_size=self.batch_size).last
        except InputError as error:
            bad = sequences[error.index]
            raise TrialError(bad.trial, f"of its {bad.side}, {error.reason}") from error

    def _suffix(self, rationale: str | None) -> list[int]:
        """Token ids of `<think> r </think> <|embed|>`, or of nothing."""
        if rationale is None:
            return []
        return rationale_suffix(self._encoder.processor, self._encoder[0].model.config, rationale)


@dataclass(frozen=True)
class _Sequence:
    """An input and its rationale, with the first trial that needs it and the side that it has there."""

    value: Mapping[str, Any]
    rationale: str | None
    trial: int
    side: str
