"""Write rationales by whole passes of the model itself, without a cache: what an engine elsewhere should give."""

from __future__ import annotations

from typing import Any

import torch

from mmemb_r1.modeling.decoding_mmemb_r1 import without_suppressed
from mmemb_r1.rationale_tokens import append_tokens
from mmemb_r1.training.adaptive.written import Written


class NaiveWriter:
    """
    Write rationales of the prompts of a batch, each by itself.

    Args:
        model: the policy.
        batch: its prompts, rendered.
        pad_id: of the tokenizer.
        temperature: 0 takes the likeliest token.
        stop_after: a limit of the engine's own.
    """

    def __init__(self, model, batch, pad_id, temperature=1.0, stop_after=None):
        self.model, self.batch, self.pad_id = model, batch, pad_id
        self.temperature, self.stop_after = temperature, stop_after
        self.seeds: list[int] = []

    def write(self, begun, max_tokens, seeds):
        self.seeds += seeds
        return [self._one(place, after, max_tokens, seed) for (place, after), seed in zip(begun, seeds, strict=True)]

    @torch.no_grad()
    def _one(self, place: int, after: list[int], max_tokens: int, seed: int) -> Written:
        config, generator = self.model.config, torch.Generator().manual_seed(seed)
        ids: list[int] = []
        logps: list[float] = []
        for _ in range(min(max_tokens, self.stop_after or max_tokens)):
            logits = without_suppressed(self._logits(place, [*after, *ids])[None], config)[0]
            probabilities = (logits / (self.temperature or 1)).softmax(dim=-1)
            token = torch.multinomial(probabilities, 1, generator=generator) if self.temperature else logits.argmax()
            ids.append(int(token))
            logps.append(float(probabilities[ids[-1]].log()))
            if ids[-1] == config.end_think_token_id:
                break
        return Written(ids, logps)

    def _logits(self, place: int, after: list[int]) -> Any:
        tails = [after if row == place else [] for row in range(len(self.batch["input_ids"]))]
        whole = append_tokens(dict(self.batch), tails, self.pad_id)
        hidden = self.model.vlm.base_model(**whole, return_dict=True).last_hidden_state[place]
        last = int(whole["attention_mask"][place].nonzero()[-1])
        return self.model.vlm.get_output_embeddings()(hidden[last])
