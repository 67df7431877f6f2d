"""A worker that runs a vision-language model with vLLM, in this process."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import GenerationConfig

from mmemb_r1.engines.protocol import EngineError
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.training.rationales.outputs import LONGEST_OPENING, OutputReader, end_ids, require_keys
from mmemb_r1.training.rationales.prompting import Style, request_conversation, style_of
from mmemb_r1.training.rationales.sampling import Continuation
from mmemb_r1.training.rationales.worker import (
    Failure,
    Rationale,
    RationaleRequest,
    WorkerError,
    is_number,
    require,
)
from mmemb_r1.training.vllm_chat import ChatPrompt, VllmChat, check_engine, lasting_options

_LOWEST_TEMPERATURE = 0.01  # vLLM takes this in place of a lower one


@dataclass(kw_only=True)
class VllmWorker:
    """
    Draws rationales from a vision-language model that vLLM runs in this process.

    All rationales of an input are one request (`n` of vLLM), whose prompt and pictures are read once. vLLM draws
    sample i with the seed of the first one plus i. What it draws does not depend on which other inputs are there,
    except for rounding. vLLM starts when the first rationale is drawn; it starts processes of its own, so that a
    script that uses this begins with `if __name__ == "__main__":`.

    Args:
        name: unique in a pool.
        model: a folder or Hub id. Of an mmemb-r1 checkpoint, what `mmemb-r1 export vllm` made of it.
        num_samples: rationales per input.
        style: how to ask: `"instruct"`, `"thinking"` or the path of a `.txt` file, see `load_style`.
        max_tokens: budget of the model's whole output, as for [`TransformersWorker`].
        temperature: divides the logits, 0.01 to 2; 0 always takes the likeliest token.
        top_p: draw from the likeliest tokens that together have this probability.
        batch_size: inputs that are handed to vLLM at once; it decides itself how many of them it reads together.
        dtype: one of `DTYPES`. Default: `"auto"`, the one the model was saved in.
        max_image_tokens: larger pictures are made smaller, to so many tokens each. Default: never.
        engine: further options of vLLM's `LLM`: `tensor_parallel_size`, `gpu_memory_utilization`, `max_model_len` ...

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
    batch_size: int = 64
    dtype: str | None = None
    max_image_tokens: int | None = None
    engine: dict[str, Any] | None = None
    _style: Style = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require_keys(self)
        warm = self.temperature == 0 or is_number(self.temperature, int | float, _LOWEST_TEMPERATURE, 2)
        require(self, "temperature", is_number(self.temperature, int | float) and warm, "0 (greedy), or 0.01 to 2")
        require(self, "engine", self.engine is None or isinstance(self.engine, dict), "options of vLLM's LLM by name")
        try:
            check_engine(self.engine)
        except ValueError as error:
            raise ValueError(f"Worker {self.name!r}: {error}") from error
        self._style = style_of(self)

    @property
    def definition(self) -> dict[str, Any]:
        """All that determines the rationales: model, prompt and sampling."""
        return {
            "kind": "vllm",
            "model": self.model,
            "dtype": self.dtype or "auto",
            "style": self._style.definition,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_image_tokens": self.max_image_tokens,
            "engine": lasting_options(self.engine or {}),
        }

    def draw(self, requests: Sequence[RationaleRequest]) -> list[list[Rationale | Failure]]:
        """
        Draw the rationales of each request, in the order of its seeds. An input that can't be read gives failures.

        Raises:
            WorkerError: if vLLM or the model can't be loaded, or vLLM dies.
        """
        starts = range(0, len(requests), self.batch_size)
        return [drawn for start in starts for drawn in self._draw_batch(requests[start : start + self.batch_size])]

    def close(self) -> None:
        """End vLLM, and free its memory; the next `draw` starts it again."""
        if (chat := vars(self).pop("_chat", None)) is not None:
            chat.close()
            gc.collect()

    def _draw_batch(self, requests: Sequence[RationaleRequest]) -> list[list[Rationale | Failure]]:
        chat = self._chat  # a model that can't be loaded stops the run: it is no failure of an input
        drawn: list[list[Rationale | Failure]] = [[] for _ in requests]
        prompts: dict[int, ChatPrompt] = {}
        for row, request in enumerate(requests):
            try:
                prompts[row] = chat.prompt(request_conversation(self._style, request))
            except InputError as error:
                drawn[row] = [Failure(error.fault)] * len(request.seeds)
        params = [self._params(requests[row].seeds) for row in prompts]
        try:
            answers = chat.generate(list(prompts.values()), params)
        except EngineError as error:
            self.close()
            raise WorkerError(f"Worker {self.name!r}: {error}") from error
        for (row, prompt), answer in zip(prompts.items(), answers, strict=True):
            count = len(requests[row].seeds)
            if isinstance(answer, str):
                drawn[row] = [Failure(answer)] * count
                continue
            end = chat.processor.tokenizer.decode(prompt.token_ids[-LONGEST_OPENING:])
            rationales = [self._rationale(output, end) for output in answer.outputs]
            drawn[row] = rationales if len(rationales) == count else rationales * count  # of greedy ones there is one
        return drawn

    def _params(self, seeds: Sequence[int]) -> Any:
        from vllm import SamplingParams

        greedy = self.temperature == 0
        return SamplingParams(
            n=1 if greedy else len(seeds),
            seed=seeds[0],
            temperature=self.temperature,
            top_p=1.0 if greedy else self.top_p,
            max_tokens=self.max_tokens,
            stop_token_ids=sorted(self._end_ids),
            detokenize=False,
        )

    def _rationale(self, output: Any, prompt_end: str) -> Rationale | Failure:
        """Read one of vLLM's outputs."""
        ids, ended = list(output.token_ids), output.finish_reason == "stop"
        if ended and ids and ids[-1] in self._end_ids:
            ids.pop()
        return self._reader.read(Continuation(ids, ended), prompt_end)

    @cached_property
    def _chat(self) -> VllmChat:
        try:
            return VllmChat(self.model, dtype=self.dtype, engine=self.engine, max_image_tokens=self.max_image_tokens)
        except (ValueError, OSError, ImportError) as error:
            raise WorkerError(f"Worker {self.name!r}: `model` can't be used with vLLM. {error}") from error

    @cached_property
    def _end_ids(self) -> set[int]:
        try:
            config = GenerationConfig.from_pretrained(self._chat.source)
        except OSError:  # it has none of its own
            config = GenerationConfig.from_model_config(self._chat.config)
        return end_ids(config, self._chat.processor)

    @cached_property
    def _reader(self) -> OutputReader:
        return OutputReader(self._chat.processor, self._style)
