"""
Be the executor whose model an engine runs: vLLM in this process, or servers.

    read ─► states of prompts ─┬─► direct rows are answered
                               └─► thinkers wait ─► a writer lets them think a round ─► done, or wait again
                                                                                          │
    step ◄─ a moment's wait ◄─────────────────────────────────────────────────────────────┘

An engine makes batches by itself, and so there are no steps of decoding here: rows are handed to it, and come back
when a rationale is written. Writers are threads. An engine that works on one call at a time gets one of them, which
asks for all rows that wait; any other gets one for each call that it takes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmemb_r1.engines import Engine, EngineError, EnginePrompt
from mmemb_r1.engines.prompts import engine_prompts
from mmemb_r1.engines.rows import begin, think
from mmemb_r1.modeling.backbones_mmemb_r1 import image_token_counter
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.states_mmemb_r1 import RationaleState
from mmemb_r1.sentence_transformers import MMEmbR1
from mmemb_r1.serving.base_executor import BaseExecutor, ThinkingRow
from mmemb_r1.serving.executor import Outcome, Prepared, Row, ThinkingLostError

FIXED_COST = 2048  # nothing is padded, and an engine makes batches of its own: the more it is given, the better
STEP_SECONDS = 0.01  # how long a step waits for rows that are done; direct ones are read between steps
END_SECONDS = 5.0  # in which writers have to end; what an engine is still doing then is left to it


@dataclass(eq=False)
class _EngineRow(ThinkingRow):
    """Hold a row that thinks; its state is always at the end of a rationale, or before the first one."""

    prompt: EnginePrompt


class EngineExecutor(BaseExecutor):
    """
    Ask a model's engine for what the scheduler asks for. Ends with [`close`], which does not end the engine.

    Args:
        model, **options: as for [`BaseExecutor`]; the model has an engine.

    Raises:
        ValueError: if the engine can't write rationales.
        EngineError: if it can't start, can't be reached, or runs another model.
    """

    fixed_cost = FIXED_COST

    def __init__(self, model: MMEmbR1, **options: Any) -> None:
        super().__init__(model, **options)
        if model.engine is None:
            raise ValueError("This model has no engine; load it with MMEmbR1(..., engine=...), or use LocalExecutor.")
        self.engine: Engine = model.engine
        self.engine.start(model[0], writes=True)
        self._asks_for_all = self.engine.concurrency == 1
        config = model[0].model.config
        self._tokens_of = image_token_counter(model[0].processor, config.max_image_tokens)
        self._changed = threading.Condition()
        self._waiting: deque[_EngineRow] = deque()
        self._back: dict[Row, Exception | None] = {}  # rows that came back: done, or with what is wrong
        self._lost: Exception | None = None  # what ended the thinking of all
        self._closed = False
        writers = min(self.engine.concurrency, self.decode_batch_size)
        self._writers = [
            threading.Thread(target=self._write, name=f"writer-{number}", daemon=True) for number in range(writers)
        ]
        for writer in self._writers:
            writer.start()

    # Before its turn: any thread

    def prepare(self, rows: Sequence[Row]) -> list[Prepared | ValueError]:
        return [self.preparation.media_error(row) or self._rendered(row) for row in rows]

    def _rendered(self, row: Row) -> Prepared | ValueError:
        module = self.model[0]
        try:
            (prompt,) = engine_prompts(module.processor, module.model.config, [row.value], row.prompt, self.media)
        except InputError as error:
            return ValueError(error.fault)
        tokens = len(prompt.token_ids) + sum(self._tokens_of(*image.size) - 1 for image in prompt.images)
        return self.preparation.length_error(tokens) or Prepared(tokens, prompt)

    # The scheduler's thread

    @torch.inference_mode()
    def read(self, rows: Sequence[Row]) -> list[Outcome]:
        left, done = list(rows), list[Outcome]()
        while left:
            prepared = [row.prepared for row in left if row.prepared is not None]
            prompts = [one.features for one in prepared]
            try:
                read = begin(self.engine, self.model[0].model, prompts, [row.options for row in left])
            except InputError as error:  # none has begun; what the others lose is the time
                done.append((left.pop(error.index), ValueError(error.fault)))
            except EngineError as error:
                if self._asks_for_all:
                    raise  # one of the rows may be what it fails over
                return [*done, *((row, error) for row in left)]  # it was waited for already, and is so for all of them
            else:
                begun, answered = self._sorted_out(left, read, [one.tokens for one in prepared])
                places = zip(begun, read.states, strict=True)
                self._begin([_EngineRow(**vars(one), prompt=prompts[place]) for one, place in places])
                return [*done, *answered]
        return done

    def _begin(self, thinkers: Sequence[_EngineRow]) -> None:
        with self._changed:
            self._thinkers |= {thinker.row: thinker for thinker in thinkers}
            self._waiting.extend(thinkers)
            self._changed.notify_all()

    @torch.inference_mode()
    def step(self) -> list[Outcome]:
        with self._changed:
            self._changed.wait_for(lambda: self._back or self._lost, STEP_SECONDS)
            if self._lost is not None and not self._back:
                error, self._lost = self._lost, None
                raise ThinkingLostError("the engine failed over rows that think") from error
            return self._leave(self._back)

    @torch.inference_mode()
    def stop(self, rows: Sequence[Row]) -> list[Outcome]:
        with self._changed:
            back = [row for row in rows if row in self._back]
            stopped = [self._thinkers[row] for row in rows if row not in self._back]
            self._waiting = deque(thinker for thinker in self._waiting if thinker not in stopped)
            return [*self._leave(back), *self._leaving(stopped, stopped=True)]

    def _leave(self, rows: Iterable[Row]) -> list[Outcome]:
        """Let go of rows that came back."""
        outcomes, done = list[Outcome](), list[ThinkingRow]()
        for row in list(rows):
            error = self._back.pop(row)
            if error is None:
                done.append(self._thinkers[row])
            else:
                del self._thinkers[row]
                outcomes.append((row, error))
        return [*outcomes, *self._leaving(done)]

    def reset(self) -> None:
        with self._changed:
            self._thinkers = {}
            self._waiting.clear()
            self._back, self._lost = {}, None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for writer in self._writers:
            writer.join(END_SECONDS / len(self._writers))

    # Writers

    def _write(self) -> None:
        while thinkers := self._next():
            prompts, states = [one.prompt for one in thinkers], [one.state for one in thinkers]
            try:
                with torch.inference_mode():
                    after = think(self.engine, self.model[0].model, prompts, states)
            except Exception as error:  # noqa: BLE001  # the thread of the scheduler raises or logs it
                self._fail(thinkers, error)
            else:
                self._go_on(thinkers, after)

    def _next(self) -> list[_EngineRow]:
        """Wait for rows that want to think; none come after the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return []
            most = len(self._waiting) if self._asks_for_all else 1
            return [self._waiting.popleft() for _ in range(most)]

    def _go_on(self, thinkers: Sequence[_EngineRow], states: Sequence[RationaleState]) -> None:
        """Give rows back that are done; the others wait for their next round."""
        with self._changed:
            for thinker, state in zip(thinkers, states, strict=True):
                if self._is_at_work(thinker):
                    thinker.state = state
                    if state.done:
                        self._back[thinker.row] = None
                    else:
                        self._waiting.append(thinker)
            self._changed.notify_all()

    def _fail(self, thinkers: Sequence[_EngineRow], error: Exception) -> None:
        """Give the rows back that an error is about; where nobody knows which they are, all at work are lost."""
        with self._changed:
            at_work = [thinker for thinker in thinkers if self._is_at_work(thinker)]
            if isinstance(error, InputError):
                at_fault = thinkers[error.index]
                self._waiting.extend(thinker for thinker in at_work if thinker is not at_fault)
                if at_fault in at_work:
                    self._back[at_fault.row] = ValueError(error.fault)
            elif not self._asks_for_all:
                self._back |= {thinker.row: error for thinker in at_work}
            elif at_work:
                self._lost = error
            self._changed.notify_all()

    def _is_at_work(self, thinker: _EngineRow) -> bool:
        """Tell whether it was neither stopped nor forgotten while the engine was at it."""
        return self._thinkers.get(thinker.row) is thinker
