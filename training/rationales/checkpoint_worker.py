"""A worker that is an mmemb-r1 checkpoint: it proposes the rationales that it would generate itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, BatchFeature

from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.modeling.decoding_mmemb_r1 import without_suppressed
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.rationale_tokens import append_tokens
from mmemb_r1.training.rationales.sampling import Continuation
from mmemb_r1.training.rationales.transformers_worker import TransformersWorker
from mmemb_r1.training.rationales.worker import Failure, Rationale, RationaleRequest, WorkerError
from mmemb_r1.training.vlm import load_vlm


@dataclass(kw_only=True)
class CheckpointWorker(TransformersWorker):
    """
    Draws rationales from an mmemb-r1 checkpoint the way `encode` generates them: after `<|embed|> <think>` of its own
    prompt, up to `</think>`. With temperature 0 they are those of `encode`.

    `mmemb-r1 train rounds` adds the model of the last round to the pool in this way.

    Args:
        name, model, num_samples, temperature, top_p, batch_size, device, dtype: as for [`TransformersWorker`]; the
            model is a checkpoint.
        max_tokens: budget of a rationale. Default: 128, as in the config of a new checkpoint.

    Raises:
        ValueError: naming the key that can't be used.
    """

    max_tokens: int = 128
    max_image_tokens: int | None = field(default=None, init=False)  # the checkpoint's config says it
    style: str = field(default="thinking", init=False)  # not used: the checkpoint is prompted as it was trained

    @property
    def definition(self) -> dict[str, Any]:
        """All that determines the rationales: model and sampling."""
        return {
            "kind": "checkpoint",
            "model": self.model,
            "dtype": self.dtype or "auto",
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }

    @cached_property
    def _config(self) -> Any:
        config = AutoConfig.from_pretrained(
            self.model, local_files_only=Path(self.model).is_dir(), trust_remote_code=False
        )
        if not isinstance(config, MMEmbR1Config):
            raise ValueError(f"It is a {config.model_type} model, no mmemb-r1 checkpoint; use the kind transformers.")
        return config

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        try:
            config = self._config
            vlm, processor = load_vlm(self.model, self.device, self.dtype or "auto")
        except (ValueError, OSError) as error:
            raise WorkerError(f"Worker {self.name!r}: `model` can't be used. {error}") from error
        if config.end_think_token_id is None:
            raise WorkerError(f"Worker {self.name!r}: the config of `model` lacks end_think_token_id.")
        return vlm, processor

    def _conversation(self, request: RationaleRequest) -> list[dict[str, Any]]:
        (conversation,) = to_conversations([request.input], media=MediaOptions.of(self._config))
        return conversation

    def _prompts(self, conversations: Sequence[list[dict[str, Any]]]) -> BatchFeature:
        batch = render(
            self._processor,
            list(conversations),
            self._config.max_text_tokens,
            max_image_tokens=self._config.max_image_tokens,
        )
        opening = [self._config.opening_ids] * len(conversations)
        return BatchFeature(append_tokens(batch, opening, self._processor.tokenizer.pad_token_id, "left"))

    @property
    def _end_ids(self) -> set[int]:
        return {self._config.end_think_token_id}

    @property
    def _narrow(self) -> Callable[[Tensor], Tensor]:
        return lambda logits: without_suppressed(logits.clone(), self._config)

    def _rationale(self, continuation: Continuation, prompt_end: str) -> Rationale | Failure:
        finish_reason = "stop" if continuation.ended else "length"
        text = self._processor.tokenizer.decode(continuation.token_ids, clean_up_tokenization_spaces=False).strip()
        if not text:
            return Failure(f"the rationale is empty (finish_reason {finish_reason!r}).")
        return Rationale(text, len(continuation.token_ids), finish_reason)
