"""A vision-language model as the evaluator: does this target match this query, yes or no?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import cached_file

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.training.posterior.answers import answer_ids, match_logit
from mmemb_r1.training.posterior.evaluator import Trial, TrialError
from mmemb_r1.training.posterior.evaluator_prompt import PROMPT_FILE, EvaluatorPrompt, PromptRenderer
from mmemb_r1.training.shared_prefix import read_prefix, suffix_logits
from mmemb_r1.training.vlm import load_vlm, weights_fingerprint


@dataclass
class VLMEvaluator:
    """
    Judges pairs by the log-odds of "yes" against "no". Each (query, target) is read once for all its rationales.

    Args:
        model: a vision-language model: a folder or a Hub id.
        prompt: `"evaluator"`, `"evaluator-short"` or a text file. Default: the one that the model was trained with (a
            file beside it), else `"evaluator"`.
        batch_size: (query, target) pairs that are read at once.
        max_branches: prompts that are finished at once, each with its own copy of the key-value cache.
        max_text_tokens: the text of an input is cut to so many tokens. Default: never.
        device: where the model runs. Default: the accelerator if there is one.
        dtype: of the weights: `"auto"` (as saved), `"float32"`, `"bfloat16"` or `"float16"`.

    Raises:
        ValueError: if the prompt lacks a place, or the tokenizer can't tell yes from no.
    """

    model: str
    prompt: str | None = None
    batch_size: int = 16
    max_branches: int = 128
    max_text_tokens: int | None = None
    device: str | None = None
    dtype: str = "auto"
    _vlm: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._vlm, processor = load_vlm(self.model, device=self.device, dtype=self.dtype)
        self._words = EvaluatorPrompt.load(self.prompt or _saved_prompt(self.model))
        self._renderer = PromptRenderer(processor, self._words, self.max_text_tokens)
        self._answers = answer_ids(processor.tokenizer)
        self._weights = weights_fingerprint(self._vlm)

    @property
    def definition(self) -> dict[str, Any]:
        """What determines the answers."""
        return {
            "kind": "vlm",
            "model": Path(self.model).name,  # for whoever reads it; the same model may lie elsewhere
            "weights": self._weights,
            "prompt": self._words.text,
            "max_text_tokens": self.max_text_tokens,
            "dtype": self.dtype,
        }

    @torch.inference_mode()
    def match_logits(self, trials: Sequence[Trial]) -> list[Tensor]:
        """See [`PairEvaluator.match_logits`]."""
        results = [torch.empty(len(trial.others), len(trial.rationales)) for trial in trials]
        suffixes_of = [
            [self._renderer.suffix(rationale, trial.side) for rationale in trial.rationales] for trial in trials
        ]
        pairs = [(number, other) for number, trial in enumerate(trials) for other in range(len(trial.others))]
        for start in range(0, len(pairs), self.batch_size):
            part = pairs[start : start + self.batch_size]
            prefix = read_prefix(self._vlm, self._heads(trials, part))
            suffixes = [suffixes_of[number] for number, _ in part]
            rows = [row for row, some in enumerate(suffixes) for _ in some]
            logits = suffix_logits(self._vlm, prefix, rows, sum(suffixes, []), self.max_branches)  # (N, V)
            judged = match_logit(logits, *self._answers).cpu().split([len(some) for some in suffixes])
            for (number, other), row in zip(part, judged, strict=True):
                results[number][other] = row
        return results

    def _heads(self, trials: Sequence[Trial], rows: Sequence[tuple[int, int]]) -> Any:
        pairs = []
        for number, other in rows:
            trial = trials[number]
            pair = (trial.anchor, trial.others[other])
            pairs.append(pair if trial.side == "query" else pair[::-1])
        try:
            return self._renderer.heads(pairs)
        except InputError as error:
            raise TrialError(rows[error.index][0], error.reason) from error


def _saved_prompt(model: str) -> str:
    """The words that were saved beside a model, in its folder or on the Hub; the usual ones if there are none."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        saved = folder / PROMPT_FILE
        return str(saved) if saved.is_file() else "evaluator"
    optional = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(model, PROMPT_FILE, **optional) or "evaluator"
