"""An engine that asks the whole backbone by plain transformers calls, prompt by prompt, to compare others with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmemb_r1 import MMEmbR1
from mmemb_r1.engines.checks import check_runs
from mmemb_r1.engines.protocol import EnginePrompt, Words
from mmemb_r1.modeling.backbones_mmemb_r1 import rotary_positions
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.rationale_tokens import append_tokens

REFUSED = "refuse this"


class TorchEngine:
    """Run the backbone of a model that is in memory; no cache, nothing beside a prompt."""

    name = "torch"
    concurrency = 1

    def __init__(self, model: MMEmbR1, max_length: int | None = None) -> None:
        self.model, self.module, self.max_length = model, None, max_length
        self.read: list[int] = []  # tokens of each prompt, expanded
        self.asked: list[tuple[str, int]] = []

    def check(self, module: Any) -> None:
        check_runs(module, None)

    def start(self, module: Any, writes: bool) -> None:
        self.module = module

    @torch.inference_mode()
    def states(self, prompts: Sequence[EnginePrompt]) -> Tensor:
        self.asked.append(("states", len(prompts)))
        return torch.stack([self._hidden(place, prompt)[-1].float() for place, prompt in enumerate(prompts)])

    @torch.inference_mode()
    def rationales(self, prompts: Sequence[EnginePrompt], max_tokens: Sequence[int]) -> list[list[int]]:
        self.asked.append(("rationales", len(prompts)))
        written = (self._written(place, *asked) for place, asked in enumerate(zip(prompts, max_tokens, strict=True)))
        return [ids for ids, _ in written]

    def close(self) -> None:
        self.module = None

    def _written(self, place: int, prompt: EnginePrompt, max_tokens: int) -> tuple[list[int], list[float]]:
        words, vlm = Words.of(self.module.model.config), self.model[0].model.vlm
        ids: list[int] = []
        logps: list[float] = []
        while len(ids) < max_tokens and words.end_id not in ids[-1:]:
            hidden = self._hidden(place, prompt.then([*prompt.followed, *ids]))
            if self.max_length is not None and len(hidden) >= self.max_length:
                break
            logits = vlm.get_output_embeddings()(hidden[-1:])[0]
            all_logps = logits.log_softmax(dim=-1)
            logits[list(words.suppressed_ids)] = -torch.inf
            ids.append(int(logits[: len(self.model.tokenizer)].argmax()))
            logps.append(float(all_logps[ids[-1]]))
        return ids, logps

    def _hidden(self, place: int, prompt: EnginePrompt) -> Tensor:
        if REFUSED in str(prompt.messages):
            raise InputError(place, "it is refused.")
        vlm, batch = self.model[0].model.vlm, self._batch(prompt)
        ids, mask = batch.pop("input_ids"), batch.pop("attention_mask")
        positions, _ = rotary_positions(vlm, ids, mask, batch)
        output = vlm.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, **batch)
        return output.last_hidden_state[0]

    def _batch(self, prompt: EnginePrompt) -> dict[str, Tensor]:
        """Make the tensors of a prompt; those with pictures are rendered again, as the local model does."""
        config, processor = self.model[0].model.config, self.model.processor
        if prompt.messages:
            batch = dict(render(processor, [list(prompt.messages)], max_image_tokens=config.max_image_tokens))
            rendered = tuple(batch["input_ids"][0].tolist())
        if not prompt.images:
            if prompt.messages:
                assert prompt.token_ids[: prompt.num_rendered] in (rendered, rendered[:-1])
            ids = torch.tensor([prompt.token_ids])
            extra = (
                {"token_type_ids": torch.zeros_like(ids)}
                if "token_type_ids" in (batch if prompt.messages else {})
                else {}
            )
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **extra}
        without_marker = not prompt.followed and prompt.token_ids[-1] != config.embed_token_id
        shape = batch["input_ids"].shape
        if without_marker:
            batch = {name: value[:, :-1] if value.shape == shape else value for name, value in batch.items()}
        return append_tokens(batch, [prompt.followed], processor.tokenizer.pad_token_id)


class LikelyTorchEngine(TorchEngine):
    """Also tell how likely what it writes is."""

    @torch.inference_mode()
    def likely_rationales(
        self, prompts: Sequence[EnginePrompt], max_tokens: Sequence[int]
    ) -> list[tuple[list[int], list[float]]]:
        self.asked.append(("likely", len(prompts)))
        return [self._written(place, *asked) for place, asked in enumerate(zip(prompts, max_tokens, strict=True))]
