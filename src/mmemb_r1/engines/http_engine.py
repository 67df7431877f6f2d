"""Run a backbone on servers of vLLM: one reads states, another writes rationales."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmemb_r1.engines.boundaries import BOUNDARY, text_of, with_boundaries
from mmemb_r1.engines.checks import check_probe, check_probed_rationale, check_runs
from mmemb_r1.engines.connection import Connection, RefusedRequest
from mmemb_r1.engines.protocol import EngineError, EnginePrompt, Words
from mmemb_r1.engines.served import ServedModule, probe_of
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module
from mmemb_r1.servers import encoded_url

logger = logging.getLogger(__name__)

THEN, CUT = "mmemb_r1_then", "mmemb_r1_cut"  # of the exported chat template: what follows the marker, and no marker
_TEXTS_PER_REQUEST = 16  # whose states are asked for at once
_STATE = {"task": "embed", "use_activation": False, "encoding_format": "base64", "embed_dtype": "float32"}
_T = TypeVar("_T")


class HttpEngine:
    """
    Run an exported checkpoint on servers that `vllm serve` started, by the two lines of the exported README.

    Prompts of text are sent as token ids. Those with pictures are sent as chat messages, which the server renders by
    the exported chat template; what follows the marker is sent as text then, which the exported tokenizer cuts into
    the same ids. Where that can't be, because a rationale ends within a character, the vector is that of the nearest
    text, which is logged.

    Args:
        states: the address of the server that reads, `http://HOST:PORT`.
        rationales: that of the server that writes. Default: none, and nothing can think.
        key_env: name of the environment variable that holds the key of both. Default: they want none.
        verify: whether to compare what the servers give for a built-in text with what the model gives.
        **options: of each connection: `concurrency`, `timeout`, `patience` and `max_retries`, see [`Connection`].

    Raises:
        ValueError: for an address that can't be used.
    """

    name = "vllm"

    def __init__(
        self,
        states: str,
        rationales: str | None = None,
        *,
        key_env: str | None = None,
        verify: bool = True,
        **options: Any,
    ) -> None:
        self.verify = verify
        self._reads = Connection(states, key_env, **options)
        self.concurrency = self._reads.concurrency
        self._writes = None if rationales is None else Connection(rationales, key_env, **options)
        self._module: MMEmbR1Module | None = None
        self._tokenizer: Any = None
        self._verified: set[str] = set()
        self._models: dict[str, str] = {}
        self._told = False

    def check(self, module: MMEmbR1Module) -> None:
        check_runs(module, module.facts if isinstance(module, ServedModule) else None)

    def start(self, module: MMEmbR1Module, writes: bool) -> None:
        if writes and self._writes is None:
            raise ValueError(
                "This engine has no server that writes rationales, and some inputs may think; give it the addresses "
                'of two servers, or embed with reasoning="never".'
            )
        if module is not self._module:
            self._module, self._verified = module, set()
            self._tokenizer = with_boundaries(module.tokenizer)
        if not self.verify:
            return
        wanted = ["states", "rationales"] if writes else ["states"]
        if missing := [name for name in wanted if name not in self._verified]:
            probe = module.facts["probe"] if isinstance(module, ServedModule) else probe_of(module)
            for name in missing:
                check = check_probe if name == "states" else check_probed_rationale
                check(self, module, probe, self._connection(name).address)
                self._verified.add(name)

    def states(self, prompts: Sequence[EnginePrompt]) -> Tensor:
        texts = [place for place, prompt in enumerate(prompts) if not prompt.images]
        asked = [texts[start : start + _TEXTS_PER_REQUEST] for start in range(0, len(texts), _TEXTS_PER_REQUEST)]
        asked += [[place] for place, prompt in enumerate(prompts) if prompt.images]
        asks = [partial(self._states_of, prompts, places) for places in asked]
        states: list[Any] = [None] * len(prompts)
        for places, found in zip(asked, self._reads.ask_each(asks), strict=True):
            for place, state in zip(places, found, strict=True):
                states[place] = state
        return torch.from_numpy(np.stack(states))

    def rationales(self, prompts: Sequence[EnginePrompt], max_tokens: Sequence[int]) -> list[list[int]]:
        return [ids for ids, _ in self._asked_for_rationales(prompts, max_tokens, likely=False)]

    def likely_rationales(
        self, prompts: Sequence[EnginePrompt], max_tokens: Sequence[int]
    ) -> list[tuple[list[int], list[float]]]:
        return self._asked_for_rationales(prompts, max_tokens, likely=True)

    def _asked_for_rationales(
        self, prompts: Sequence[EnginePrompt], max_tokens: Sequence[int], likely: bool
    ) -> list[tuple[list[int], list[float]]]:
        asks = [
            partial(self._refused_at, place, partial(self._written, prompt, limit, likely))
            for place, (prompt, limit) in enumerate(zip(prompts, max_tokens, strict=True))
        ]
        return self._connection("rationales").ask_each(asks)

    def close(self) -> None:
        for connection in (self._reads, self._writes):
            if connection is not None:
                connection.close()

    def _connection(self, name: str) -> Connection:
        connection = self._reads if name == "states" else self._writes
        if connection is None:
            raise EngineError("This engine has no server that writes rationales.")
        return connection

    @property
    def _started(self) -> MMEmbR1Module:
        if self._module is None:
            raise EngineError("The engine was not started with a model: set model.engine, or call start(model[0]).")
        return self._module

    def _states_of(
        self, prompts: Sequence[EnginePrompt], places: Sequence[int], connection: Connection
    ) -> list[np.ndarray]:
        """Read some prompts in one request; if it is refused, each of them alone."""
        some = [prompts[place] for place in places]
        try:
            body = self._chat(some[0]) if some[0].images else {"input": [list(prompt.token_ids) for prompt in some]}
            answer = connection.post("/pooling", {**body, **_STATE, **self._model_of(connection)})
        except RefusedRequest as error:
            if len(places) == 1:
                raise InputError(places[0], f"the server refuses it: {error}") from error
            return [self._states_of(prompts, [place], connection)[0] for place in places]
        data = sorted(_field(answer, "data", connection), key=lambda item: item["index"])
        return [np.frombuffer(base64.b64decode(item["data"]), "<f4") for item in data]

    def _written(
        self, prompt: EnginePrompt, max_tokens: int, likely: bool, connection: Connection
    ) -> tuple[list[int], list[float]]:
        """Get the ids of a rationale and, where it is asked how likely they are, their log-probabilities."""
        words = Words.of(self._started.model.config)
        body = {
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stop_token_ids": [words.end_id],
            "ignore_eos": True,
            "logit_bias": {str(token): -100 for token in words.suppressed_ids},
            "return_token_ids": True,
            **self._model_of(connection),
        }
        if prompt.images:
            body |= {"logprobs": True, "top_logprobs": 0} if likely else {}
            answer = connection.post("/v1/chat/completions", {**self._chat(prompt), **body})
        else:
            body |= {"logprobs": 0} if likely else {}
            answer = connection.post("/v1/completions", {"prompt": list(prompt.token_ids), **body})
        choice = _field(answer, "choices", connection)[0]
        ids = list(_field(choice, "token_ids", connection))
        if not likely:
            return ids, []
        told = _field(choice, "logprobs", connection)
        if prompt.images:
            logps = [one["logprob"] for one in _field(told, "content", connection)]
        else:
            logps = list(_field(told, "token_logprobs", connection))
        if len(logps) != len(ids):
            raise EngineError(
                f"{connection.address} answers with {len(ids)} tokens and {len(logps)} log-probabilities; as many of "
                "each are needed. Use a version of vLLM that mmemb-r1 is tested with, or pass second_look=False."
            )
        return ids, logps

    @staticmethod
    def _refused_at(place: int, ask: Callable[[Connection], _T], connection: Connection) -> _T:
        try:
            return ask(connection)
        except RefusedRequest as error:
            raise InputError(place, f"the server refuses it: {error}") from error

    def _model_of(self, connection: Connection) -> dict[str, str]:
        """Name the one model of a server, as it does."""
        if connection.address not in self._models:
            models = [item["id"] for item in _field(connection.get("/v1/models"), "data", connection)]
            if len(models) != 1:
                raise EngineError(
                    f"{connection.address} serves {len(models)} models ({', '.join(models)[:200]}); allowed: one, the "
                    "exported checkpoint."
                )
            self._models[connection.address] = models[0]
        return {"model": self._models[connection.address]}

    def _chat(self, prompt: EnginePrompt) -> dict[str, Any]:
        """Write a prompt with pictures as messages, and what follows the marker as text."""
        if any(BOUNDARY in part.get("text", "") for turn in prompt.messages for part in turn["content"]):
            raise RefusedRequest("it holds the character U+FDD0, which stands for nothing; take it out of the text.")
        then, is_exact = text_of(self._tokenizer, prompt.followed)
        if not is_exact and not self._told:
            self._told = True
            logger.warning(
                "A rationale ends within a character, or its tokens are no text of their own. Prompts with pictures "
                "are sent as text, so that its vector is that of the nearest text; further ones are not told of."
            )
        messages = [
            {"role": turn["role"], "content": [_part(part) for part in turn["content"]]} for turn in prompt.messages
        ]
        cut = not prompt.followed and prompt.token_ids[-1] != self._started.model.config.embed_token_id
        return {
            "messages": messages,
            "add_generation_prompt": True,
            "chat_template_kwargs": {THEN: then, CUT: cut},
        }


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    return {"type": "image_url", "image_url": {"url": encoded_url(part["image"])}}


def _field(answer: Any, name: str, connection: Connection) -> Any:
    value = answer.get(name) if isinstance(answer, dict) else None
    if not value:
        raise EngineError(
            f"{connection.address} answers without {name!r}: it is no server of `vllm serve`, or of a version that "
            "mmemb-r1 does not know."
        )
    return value
