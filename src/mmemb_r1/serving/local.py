"""Be the executor that runs the model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.util import batch_to_device

from mmemb_r1.modeling.backbones_mmemb_r1 import can_join, join_batches, narrow_pixels
from mmemb_r1.modeling.decoding_mmemb_r1 import Decoder
from mmemb_r1.modeling.scheduling_mmemb_r1 import read_prompts, start_thinking
from mmemb_r1.sentence_transformers import MMEmbR1
from mmemb_r1.serving.base_executor import BaseExecutor
from mmemb_r1.serving.executor import Answer, Prepared, Row, ThinkingLostError
from mmemb_r1.serving.preparing import Preparation, PreparingProcesses

# What a batch costs whatever is in it, in tokens. A CPU is at work with every token (measured: 40 to 130 with a model
# of 24 layers of 256); an accelerator is not before there are thousands (estimated).
FIXED_COST = {"cpu": 96}
FIXED_COST_OF_ACCELERATORS = 2048


class LocalExecutor(BaseExecutor):
    """
    Run a model that is in memory.

    Args:
        model, **options: as for [`BaseExecutor`].
        prepare_processes: processes that prepare inputs. Default: none, this one does, in the threads that ask.
    """

    def __init__(self, model: MMEmbR1, *, prepare_processes: int | None = None, **options: Any) -> None:
        super().__init__(model, **options)
        self._preparing: Preparation | PreparingProcesses = self.preparation
        if prepare_processes is not None:
            self._preparing = PreparingProcesses(self.preparation, prepare_processes)
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
        return self._preparing.prepare(rows)

    # The scheduler's thread

    @torch.inference_mode()
    def read(self, rows: Sequence[Row]) -> list[tuple[Row, Answer]]:
        model = self.model[0].model
        features = [row.prepared.features for row in rows if row.prepared is not None]
        batch = features[0] if len(rows) == 1 else join_batches(features, self.model.tokenizer.pad_token_id)
        batch = batch_to_device(narrow_pixels(batch, model.dtype), model.device)
        read, context = read_prompts(model, batch, [row.options for row in rows])
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

    def close(self) -> None:
        if isinstance(self._preparing, PreparingProcesses):
            self._preparing.close()
