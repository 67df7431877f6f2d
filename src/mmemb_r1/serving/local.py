"""Be the executor that runs the model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.util import batch_to_device

from mmemb_r1.modeling.backbones_mmemb_r1 import can_join, is_per_token, join_batches, model_inputs
from mmemb_r1.modeling.decoding_mmemb_r1 import Decoder
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.scheduling_mmemb_r1 import read_prompts, start_thinking
from mmemb_r1.sentence_transformers import MMEmbR1
from mmemb_r1.serving.base_executor import BaseExecutor
from mmemb_r1.serving.executor import Answer, Prepared, Row, ThinkingLostError

# What a batch costs whatever is in it, in tokens. A CPU is at work with every token (measured: 40 to 130 with a model
# of 24 layers of 256); an accelerator is not before there are thousands (estimated).
FIXED_COST = {"cpu": 96}
FIXED_COST_OF_ACCELERATORS = 2048


class LocalExecutor(BaseExecutor):
    """
    Run a model that is in memory.

    Args:
        model, **options: as for [`BaseExecutor`].
    """

    def __init__(self, model: MMEmbR1, **options: Any) -> None:
        super().__init__(model, **options)
        self.fixed_cost = FIXED_COST.get(model.device.type, FIXED_COST_OF_ACCELERATORS)
        self._joins = True  # whether rows can begin while others are at work
        self.reset()

    @property
    def room(self) -> int:
        return 0 if self.thinking and not self._joins else super().room

    def reset(self) -> None:
        self._thinkers = {}
        self._decoder = Decoder(self.model[0].model, across_batches=True)

    # Before its turn: any thread

    def prepare(self, rows: Sequence[Row]) -> list[Prepared | ValueError]:
        prepared: dict[Row, Prepared | ValueError] = {}
        texts: dict[str | None, list[Row]] = {}
        for row in rows:
            if row.has_media:
                prepared[row] = self._media_error(row) or self._alone(row)
            else:
                texts.setdefault(row.prompt, []).append(row)
        for prompt, group in texts.items():
            try:
                made = self._rendered(group, prompt)
            except InputError:
                made = [self._alone(row) for row in group]
            prepared |= zip(group, made, strict=True)
        return [prepared[row] for row in rows]

    def _alone(self, row: Row) -> Prepared | ValueError:
        try:
            return self._rendered([row], row.prompt)[0]
        except InputError as error:
            return ValueError(error.fault)

    def _rendered(self, rows: Sequence[Row], prompt: str | None) -> list[Prepared | ValueError]:
        """Prepare rows, one or texts, in one call of the processor."""
        allow = self.media.allow_remote
        features = self.model.preprocess([row.value for row in rows], prompt=prompt, allow_remote_media=allow)
        made: list[Prepared | ValueError] = []
        for one in _split(model_inputs(features)):
            tokens = one["input_ids"].shape[1]
            made.append(self._length_error(tokens) or Prepared(tokens, one, _kind(one)))
        return made

    # The scheduler's thread

    @torch.inference_mode()
    def read(self, rows: Sequence[Row]) -> list[tuple[Row, Answer]]:
        model = self.model[0].model
        features = [row.prepared.features for row in rows if row.prepared is not None]
        batch = features[0] if len(rows) == 1 else join_batches(features, self.model.tokenizer.pad_token_id)
        read, context = read_prompts(model, batch_to_device(batch, model.device), [row.options for row in rows])
        begun, answered = self._sorted_out(rows, read, [one["input_ids"].shape[1] for one in features])
        if begun:
            self._joins = can_join(context.cache)
            try:
                start_thinking(self._decoder, read.states, context)
            except Exception as error:
                raise ThinkingLostError("rows could not join those that think") from error
            self._thinkers |= {thinker.row: thinker for thinker in begun}
        return answered

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, Answer]]:
        self._decoder.step()
        return self._leaving([one for one in self._thinkers.values() if one.state.done])

    @torch.inference_mode()
    def stop(self, rows: Sequence[Row]) -> list[tuple[Row, Answer]]:
        leaving = [self._thinkers[row] for row in rows]
        self._decoder.stop([thinker.state for thinker in leaving])
        return self._leaving(leaving, stopped=True)


def _split(features: dict[str, Any]) -> list[dict[str, Any]]:
    """Split a batch, of one row or of texts, into its rows without their padding."""
    ids, mask = features["input_ids"], features["attention_mask"]
    if len(ids) == 1:
        return [features]
    starts = (mask.shape[1] - mask.sum(dim=1)).tolist()
    per_token = {name: value for name, value in features.items() if is_per_token(value, ids)}
    return [
        {name: value[row : row + 1, start:].clone() for name, value in per_token.items()}
        for row, start in enumerate(starts)
    ]


def _kind(features: dict[str, Any]) -> tuple[Any, ...]:
    """
    Say with which rows one can be joined: those that have the same features per token and pictures of the same size.
    Where pictures are stored flat, patch by patch, any go together, and with texts, too.
    """
    ids = features["input_ids"]
    per_token = tuple(sorted(name for name, value in features.items() if is_per_token(value, ids)))
    sizes = {name: tuple(value.shape[2:]) for name, value in features.items() if value.ndim > 2}
    return per_token, *sorted(sizes.items())
