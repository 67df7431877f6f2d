"""Answer requests for embeddings: from the protocol to the scheduler and back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers.util import truncate_embeddings
from torch.nn.functional import normalize

from mmemb_r1.engines.protocol import likelihood_engine
from mmemb_r1.modeling.decoding_mmemb_r1 import Sampling
from mmemb_r1.modeling.options_mmemb_r1 import REASONING_OPTIONS, require_one_space, resolve_reasoning
from mmemb_r1.modeling.scheduling_mmemb_r1 import ReasoningOptions
from mmemb_r1.sentence_transformers import MMEmbR1
from mmemb_r1.serving.errors import ApiError
from mmemb_r1.serving.executor import Answer, Executor, Row
from mmemb_r1.serving.inputs import read_inputs
from mmemb_r1.serving.protocol import EmbeddingRequest, parse_request, response_body
from mmemb_r1.serving.scheduler import Job
from mmemb_r1.serving.settings import ServerSettings


class EmbeddingService:
    """
    Make jobs of requests, and responses of answers. Any thread may call it.

    Args:
        model: whose config, prompts and dimensions count.
        executor: writes rationales as text.
        name: of the model, as requests have to give it.
        settings: the limits.
    """

    def __init__(self, model: MMEmbR1, executor: Executor, name: str, settings: ServerSettings) -> None:
        self.model, self.executor, self.name, self.settings = model, executor, name, settings
        self.created = int(time.time())
        self.dim = model.get_embedding_dimension() or 0

    def read(self, body: bytes, arrived: float) -> tuple[EmbeddingRequest, Job]:
        """
        Read a request that arrived at a time of `time.monotonic`.

        Raises:
            ApiError: saying what is wrong with it.
        """
        request = parse_request(body)
        self.check_model(request.model)
        self._check_limits(request)
        inputs = read_inputs(request, self.settings)
        prompt, options = self._options(request)
        rows = [
            Row(one.value, options, prompt, has_media=one.has_media, index=index) for index, one in enumerate(inputs)
        ]
        job = Job(rows, priority=request.priority, arrived=arrived)
        if request.max_latency_ms is not None:
            job.deadline = arrived + request.max_latency_ms / 1000
        return request, job

    def write(self, request: EmbeddingRequest, answers: Sequence[Answer]) -> bytes:
        """Write the response to a request."""
        vectors = torch.from_numpy(np.stack([answer.embedding for answer in answers]))  # (N, D)
        dim = self.model.truncate_dim if request.dimensions is None else request.dimensions
        if dim is not None:
            vectors = truncate_embeddings(vectors, dim)
            if self.model[0].model.config.normalize:
                vectors = normalize(vectors, dim=1)
        rationales = [self.executor.rationale(answer) for answer in answers] if request.explain else None
        return response_body(request, answers, vectors.numpy(), self.name, rationales)

    def models(self) -> list[dict[str, Any]]:
        """List the one model, as OpenAI's API does."""
        return [{"id": self.name, "object": "model", "created": self.created, "owned_by": "mmemb-r1"}]

    def check_model(self, name: str) -> None:
        """Raise an `ApiError` for the name of another model."""
        if name != self.name:
            raise ApiError(
                404,
                f"There is no model {name!r:.80} here; this server has {self.name!r}.",
                param="model",
                code="model_not_found",
            )

    def _check_limits(self, request: EmbeddingRequest) -> None:
        if request.dimensions is not None and request.dimensions > self.dim:
            told = f"{request.dimensions} is more than the {self.dim} that the model has; give {self.dim} at most"
            raise _invalid("dimensions", told)
        for name in ("max_reasoning_tokens", "max_reasoning_rounds"):
            asked, most = getattr(request, name), getattr(self.settings, name)
            if asked is not None and asked > most:
                raise _invalid(name, f"{asked} is more than this server allows; give {most} at most")

    def _options(self, request: EmbeddingRequest) -> tuple[str | None, ReasoningOptions]:
        """Resolve the system turn and how to think, as `encode_query`, `encode_document` and `encode` do."""
        config, task, prompt = self.model[0].model.config, request.input_type, request.instruction
        given = {name: getattr(request, name) for name in REASONING_OPTIONS}
        try:
            thinking = resolve_reasoning(config, given, task)
            if not request.explain:  # which says of each vector of which space it is
                require_one_space(config, thinking["reasoning"])
            options = ReasoningOptions(**thinking, sampling=Sampling())
            if options.looks and self.model.engine is not None:
                likelihood_engine(self.model.engine)
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_value") from error
        if prompt is None and task is not None:
            prompt = self.model.prompts.get(task)
        return self.model._resolve_prompt(prompt, None), options


def _invalid(name: str, told: str) -> ApiError:
    return ApiError(400, f"{name}={told}.", param=name, code="invalid_value")
