"""Prepare inputs for the model of this process: here, or in processes that leave the interpreter to the model."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch

from mmemb_r1.encoding import input_sizes
from mmemb_r1.modeling.backbones_mmemb_r1 import is_per_token, model_inputs
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.rendering_mmemb_r1 import batch_features
from mmemb_r1.processes import end_with
from mmemb_r1.serving.executor import Prepared, Row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """
    Turn inputs into what the model reads.

    Attributes:
        processor: the model's.
        config: the [`MMEmbR1Config`].
        max_input_tokens: of one input; more is an error of that input.
        allow_remote_media: whether pictures and videos may be web addresses.
    """

    processor: Any
    config: Any
    max_input_tokens: int
    allow_remote_media: bool = False

    @property
    def media(self) -> MediaOptions:
        """Say how pictures and videos are opened."""
        return MediaOptions.of(self.config, self.allow_remote_media)

    def prepare(self, rows: Sequence[Row]) -> list[Prepared | ValueError]:
        """Prepare rows one by one, but texts together: what one holds changes nothing for others."""
        prepared: dict[Row, Prepared | ValueError] = {}
        texts: dict[str | None, list[Row]] = {}
        for row in rows:
            if row.has_media:
                prepared[row] = self.media_error(row) or self._alone(row)
            else:
                texts.setdefault(row.prompt, []).append(row)
        for prompt, group in texts.items():
            try:
                made = self._rendered(group, prompt)
            except InputError:
                made = [self._alone(row) for row in group]
            prepared |= zip(group, made, strict=True)
        return [prepared[row] for row in rows]

    def media_error(self, row: Row) -> ValueError | None:
        """Refuse pictures by their size, before they are decoded."""
        if not row.has_media:
            return None
        (size,) = input_sizes([row.value], self.processor, self.config, self.media)
        return self.length_error(int(size.tokens))

    def length_error(self, tokens: int) -> ValueError | None:
        """Refuse what is longer than one input may be."""
        if tokens <= self.max_input_tokens:
            return None
        return ValueError(
            f"it has about {tokens} tokens, and this server reads {self.max_input_tokens} of one input at most. Send "
            "shorter text, or fewer or smaller pictures."
        )

    def _alone(self, row: Row) -> Prepared | ValueError:
        try:
            return self._rendered([row], row.prompt)[0]
        except InputError as error:
            return ValueError(error.fault)

    def _rendered(self, rows: Sequence[Row], prompt: str | None) -> list[Prepared | ValueError]:
        """Prepare rows, one or texts, in one call of the processor."""
        values = [row.value for row in rows]
        features = batch_features(self.processor, values, self.config, prompt, self.allow_remote_media)
        made: list[Prepared | ValueError] = []
        for one in _split(model_inputs(features)):
            tokens = one["input_ids"].shape[1]
            made.append(self.length_error(tokens) or Prepared(tokens, one, _kind(one)))
        return made


class PreparingProcesses:
    """
    Prepare inputs in other processes. Ends with [`close`].

    A process that dies is replaced, and what it had is tried once more, while nothing else is that was tried before:
    an input that ends it again hurts no other.

    Args:
        preparation: what they do.
        count: of processes.
    """

    def __init__(self, preparation: Preparation, count: int) -> None:
        self._preparation, self._count = preparation, count
        self._lock, self._again = threading.Lock(), threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    def prepare(self, rows: Sequence[Row]) -> list[Prepared | ValueError]:
        """
        Prepare rows, see [`Preparation.prepare`]; any thread may call it.

        Raises:
            BrokenProcessPool: if a process died of it twice.
        """
        sent = [replace(row, prepared=None) for row in rows]
        try:
            return self._asked(sent)
        except BrokenProcessPool:
            logger.warning("a process that prepares inputs died; another is started")
            with self._again:
                return self._asked(sent)

    def _asked(self, sent: list[Row]) -> list[Prepared | ValueError]:
        pool = self._started()
        try:
            made = pool.submit(_prepared_there, sent).result()
        except BrokenProcessPool:
            with self._lock:
                if self._pool is pool:
                    self._pool = None
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [one if isinstance(one, ValueError) else replace(one, features=_as_tensors(one)) for one in made]

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)
                self._pool = None

    def _started(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    self._count,
                    get_context("spawn"),
                    initializer=_begin_there,
                    initargs=(os.getpid(), self._preparation),
                )
            return self._pool


_there: Preparation | None = None  # of such a process


def _begin_there(parent: int, preparation: Preparation) -> None:
    global _there
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which finishes what it has
    end_with(parent)
    torch.set_num_threads(1)
    _there = preparation


def _prepared_there(rows: Sequence[Row]) -> list[Prepared | ValueError]:
    """Prepare rows, with arrays in the place of tensors: these would travel by file descriptors."""
    if _there is None:
        raise RuntimeError("this process was not begun as one that prepares inputs")
    return [
        one if isinstance(one, ValueError) else replace(one, features=_as_arrays(one)) for one in _there.prepare(rows)
    ]


def _as_arrays(prepared: Prepared) -> dict[str, Any]:
    return {name: value.numpy() for name, value in prepared.features.items()}


def _as_tensors(prepared: Prepared) -> dict[str, Any]:
    return {name: torch.from_numpy(value) for name, value in prepared.features.items()}


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
