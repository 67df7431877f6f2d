"""A worker that runs a vision-language model on this machine."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from mmemb_r1.modeling.backbones_mmemb_r1 import checked_limit
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.training.rationales.outputs import LONGEST_OPENING, OutputReader, end_ids, require_keys
from mmemb_r1.training.rationales.prompting import Style, request_conversation, style_of
from mmemb_r1.training.rationales.sampling import Continuation, draw_continuations
from mmemb_r1.training.rationales.worker import (
    Failure,
    Rationale,
    RationaleRequest,
    WorkerError,
    is_number,
    require,
)
from mmemb_r1.training.shared_prefix import branch, read_prefix
from mmemb_r1.training.vlm import chat_template, load_vlm


@dataclass(kw_only=True)
class TransformersWorker:
    """
    Draws rationales from a local vision-language model, or one from the Hub.

    The prompt of a request, pictures included, is read once for all of its rationales. Token t of a rationale is
    chosen by number t of its own seed (see `choose`), so a rationale does not depend on which others are in its batch,
    except for rounding. The model is loaded when it is first needed.

    Args:
        name: unique in a pool.
        model: a folder or Hub ID, see `load_vlm`.
        num_samples: rationales per input.
        style: how to ask: `"instruct"`, `"thinking"` or the path of a `.txt` file, see `load_style`.
        max_tokens: budget of the model's whole output: the rationale, tags, and the answer after it. All of these
            count as the rationale's length, but not the token that ends the output.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_p: draw from the likeliest tokens that together have this probability.
        max_image_tokens: larger pictures are made smaller, to so many tokens each. Default: never.
        batch_size: prompts read at once; `num_samples` times as many rows are then decoded.
        device: where the model runs. Default: a GPU if there is one.
        dtype: one of `DTYPES`. Default: `"auto"`, the one the model was saved in.

    Raises:
        ValueError: naming the key that can't be used.
    """

    name: str
    model: str
    num_samples: int = 4
    style: str = "instruct"
    max_tokens: int = 256
    temperature: float = 0.9
    top_p: float = 0.95
    batch_size: int = 8
    device: str | None = None
    dtype: str | None = None
    max_image_tokens: int | None = None
    _style: Style = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_keys(self)
        require(self, "temperature", is_number(self.temperature, int | float, 0), "a number from 0 (greedy) on")
        require(self, "device", self.device is None or _is_device(self.device), "a device of torch, such as cuda:0")
        self._style = style_of(self)

    @property
    def definition(self) -> dict[str, Any]:
        """All that determines the rationales: model, prompt and sampling."""
        return {
            "kind": "transformers",
            "model": self.model,
            "dtype": self.dtype or "auto",
            "style": self._style.definition,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            **({} if self.max_image_tokens is None else {"max_image_tokens": self.max_image_tokens}),
        }

    def draw(self, requests: Sequence[RationaleRequest]) -> list[list[Rationale | Failure]]:
        """
        Draw the rationales of each request, in the order of its seeds. An input that can't be read gives failures.

        Raises:
            WorkerError: if the model can't be loaded.
        """
        starts = range(0, len(requests), self.batch_size)
        return [drawn for start in starts for drawn in self._draw_batch(requests[start : start + self.batch_size])]

    def close(self) -> None:
        """Free the model's memory; the next `draw` loads it again."""
        if vars(self).pop("_loaded", None) is not None:
            gc.collect()
            torch.cuda.empty_cache()

    def _draw_batch(self, requests: Sequence[RationaleRequest]) -> list[list[Rationale | Failure]]:
        _ = self._loaded  # a model that can't be loaded stops the run: it is no failure of an input
        drawn: list[list[Rationale | Failure]] = [[] for _ in requests]
        conversations = {}
        for row, request in enumerate(requests):
            try:
                conversations[row] = self._conversation(request)
            except InputError as error:
                drawn[row] = [Failure(error.fault)] * len(request.seeds)
        for row, rationales in self._draw_conversations(conversations, [request.seeds for request in requests]):
            drawn[row] = rationales
        return drawn

    def _draw_conversations(
        self, conversations: dict[int, list[dict[str, Any]]], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, list[Rationale | Failure]]]:
        """Yield row and rationales of each conversation; those that don't fit into memory together are drawn alone."""
        for rows, batch in self._rendered(conversations):
            groups = [seeds[row] for row in rows]
            if isinstance(batch, Failure):
                yield from zip(rows, [[batch] * len(group) for group in groups], strict=True)
                continue
            try:
                yield from zip(rows, self._draw_rendered(batch, groups), strict=True)
                continue
            except torch.OutOfMemoryError:
                pass  # go on outside of this block: the error keeps tensors alive
            if len(rows) > 1:
                for row in rows:
                    yield from self._draw_conversations({row: conversations[row]}, seeds)
            else:
                failure = Failure("it does not fit into the GPU's memory; lower max_tokens or samples, or shrink it.")
                yield rows[0], [failure] * len(groups[0])

    def _rendered(
        self, conversations: dict[int, list[dict[str, Any]]]
    ) -> Iterator[tuple[list[int], BatchFeature | Failure]]:
        """Render conversations as one batch, or one by one if the processor refuses them together."""
        if not conversations:
            return
        try:
            yield list(conversations), self._prompts(list(conversations.values()))
        except ValueError as error:
            if len(conversations) == 1:
                yield list(conversations), Failure(getattr(error, "fault", str(error)))
                return
            for row, chat in conversations.items():
                yield from self._rendered({row: chat})

    def _conversation(self, request: RationaleRequest) -> list[dict[str, Any]]:
        return request_conversation(self._style, request)

    def _prompts(self, conversations: Sequence[list[dict[str, Any]]]) -> BatchFeature:
        template, limit = chat_template(self._processor), self.max_image_tokens
        return render(self._processor, list(conversations), chat_template=template, max_image_tokens=limit)

    @property
    def _narrow(self) -> Callable[[Tensor], Tensor] | None:
        """A function that restricts the logits tokens are drawn from; `None` draws from the model's own."""
        return None

    def _draw_rendered(self, batch: BatchFeature, groups: Sequence[Sequence[int]]) -> list[list[Rationale | Failure]]:
        """Draw the rationales of each prompt of a batch, one for each seed of its group."""
        vlm, processor = self._loaded
        ends = processor.tokenizer.batch_decode(batch["input_ids"][:, -LONGEST_OPENING:])
        counts = torch.tensor([len(seeds) for seeds in groups])
        continuations = iter(
            draw_continuations(
                vlm,
                branch(read_prefix(vlm, batch), torch.arange(len(groups)).repeat_interleave(counts)),
                [seed for seeds in groups for seed in seeds],
                end_ids=self._end_ids,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                narrow=self._narrow,
            )
        )
        return [
            [self._rationale(next(continuations), end) for _ in seeds] for seeds, end in zip(groups, ends, strict=True)
        ]

    def _rationale(self, continuation: Continuation, prompt_end: str) -> Rationale | Failure:
        return self._reader.read(continuation, prompt_end)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        try:
            vlm, processor = load_vlm(self.model, self.device, self.dtype or "auto")
            checked_limit(processor, self.max_image_tokens)
            return vlm, processor
        except (ValueError, OSError) as error:
            raise WorkerError(f"Worker {self.name!r}: `model` can't be used. {error}") from error

    @property
    def _processor(self) -> Any:
        return self._loaded[1]

    @cached_property
    def _end_ids(self) -> set[int]:
        vlm, processor = self._loaded
        return end_ids(vlm.generation_config, processor)

    @cached_property
    def _reader(self) -> OutputReader:
        return OutputReader(self._processor, self._style)


def _is_device(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(torch.device(value))
    except RuntimeError:
        return False
