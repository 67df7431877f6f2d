"""Evaluate pairs with a vision-language model that vLLM runs in this process: yes or no?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.options_mmemb_r1 import context_length
from mmemb_r1.training.selection.evaluator import Trial, TrialError
from mmemb_r1.training.selection.vlm_evaluator import (
    EvaluatorPrompt,
    PromptRenderer,
    answer_ids,
    pair_of,
    saved_prompt,
)
from mmemb_r1.training.settling.reading import Reading
from mmemb_r1.training.vllm_chat import ChatPrompt, VllmChat, lasting_options
from mmemb_r1.training.vlm import files_fingerprint

_MOST_IDS = 128  # tokens whose probabilities vLLM gives with one answer


@dataclass
class VllmEvaluator:
    """
    Scores pairs by the log-odds of "yes" against "no", as [`VLMEvaluator`] does, with the same prompt and tokens.

    Every (query, target) with every rationale is a request of its own. Those about one pair follow one another: vLLM
    keeps what it computed for their common beginning, in blocks of some tokens. It starts processes of its own, so
    that a script that uses this begins with `if __name__ == "__main__":`.

    Args:
        model: a vision-language model: a folder or a Hub id. Of an mmemb-r1 checkpoint, what `mmemb-r1 export vllm`
            made of it.
        prompt, max_text_tokens, max_image_tokens: as for [`VLMEvaluator`].
        batch_size: (query, target) pairs whose requests vLLM gets at once; it decides itself how many it reads
            together.
        dtype: of the weights: `"auto"` (as saved), `"float32"`, `"bfloat16"` or `"float16"`.
        engine: further options of vLLM's `LLM`: `tensor_parallel_size`, `gpu_memory_utilization`, `max_model_len` ...

    Raises:
        ImportError: if vLLM is not installed.
        ValueError: if the prompt lacks a placeholder, the tokenizer can't tell yes from no, or vLLM can't start.
    """

    model: str
    prompt: str | None = None
    batch_size: int = 256
    max_text_tokens: int | None = None
    max_image_tokens: int | None = None
    dtype: str = "auto"
    engine: dict[str, Any] | None = None
    _chat: VllmChat = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._prompt = EvaluatorPrompt.load(self.prompt or saved_prompt(self.model))
        self._chat = VllmChat(self.model, dtype=self.dtype, engine=self.engine, max_image_tokens=self.max_image_tokens)
        processor = self._chat.processor
        self._renderer = PromptRenderer(processor, self._prompt, self.max_text_tokens, self.max_image_tokens)
        self._answers = answer_ids(processor.tokenizer)
        if sum(map(len, self._answers)) > _MOST_IDS:
            raise ValueError(f"{self.model!r} has more than {_MOST_IDS} spellings of yes and no; use the kind 'vlm'.")
        self._weights = files_fingerprint(self._chat.source)
        self.context_length = min(context_length(self._chat.config), self._chat.max_tokens)
        self.reading = Reading(
            processor,
            max_text_tokens=self.max_text_tokens,
            chat_template=self._chat.template,
            max_image_tokens=self.max_image_tokens,
        )

    @property
    def definition(self) -> dict[str, Any]:
        """All that determines the answers."""
        return {
            "kind": "vllm",
            "model": Path(self.model).name,  # for readers; the weights identify the model, wherever its folder is
            "weights": self._weights,
            "prompt": self._prompt.text,
            "max_text_tokens": self.max_text_tokens,
            "max_image_tokens": self.max_image_tokens,
            "dtype": self.dtype,
            "engine": lasting_options(self.engine or {}),
        }

    def match_logits(self, trials: Sequence[Trial]) -> list[Tensor]:
        """See [`PairEvaluator.match_logits`]."""
        results = [torch.empty(len(trial.others), len(trial.rationales)) for trial in trials]
        suffixes = [
            [self._renderer.suffix(rationale, trial.side) for rationale in trial.rationales] for trial in trials
        ]
        pairs = [(number, other) for number, trial in enumerate(trials) for other in range(len(trial.others))]
        for start in range(0, len(pairs), self.batch_size):
            part = pairs[start : start + self.batch_size]
            asked = [
                (number, other, column, head.then(suffix))
                for (number, other), head in zip(part, self._heads(trials, part), strict=True)
                for column, suffix in enumerate(suffixes[number])
            ]
            for (number, other, column, _), logit in zip(asked, self._logits(asked), strict=True):
                results[number][other, column] = logit
        return results

    def close(self) -> None:
        """End vLLM; the evaluator can't be asked after that."""
        self._chat.close()

    def _heads(self, trials: Sequence[Trial], rows: Sequence[tuple[int, int]]) -> list[ChatPrompt]:
        try:
            conversations = self._renderer.conversations([pair_of(trials[number], other) for number, other in rows])
        except InputError as error:
            raise TrialError(rows[error.index][0], error.reason) from error
        heads = []
        for (number, _), conversation in zip(rows, conversations, strict=True):
            try:
                heads.append(self._chat.prompt(conversation, self._renderer.head_template))
            except InputError as error:
                raise TrialError(number, error.reason) from error
        return heads

    def _logits(self, asked: Sequence[tuple[int, int, int, ChatPrompt]]) -> list[float]:
        """Ask for the match logit after each prompt."""
        from vllm import SamplingParams

        yes, no = self._answers
        params = [
            SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=[*yes, *no], detokenize=False)
            for _ in asked
        ]
        logits = []
        answers = self._chat.generate([prompt for *_, prompt in asked], params)
        for (number, *_), answer in zip(asked, answers, strict=True):
            if isinstance(answer, str):
                raise TrialError(number, answer)
            logprobs = answer.outputs[0].logprobs[0]
            both = [torch.tensor([logprobs[id_].logprob for id_ in ids], dtype=torch.float64) for ids in (yes, no)]
            logits.append(float(both[0].logsumexp(dim=0) - both[1].logsumexp(dim=0)))
        return logits
