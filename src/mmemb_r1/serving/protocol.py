"""Say what a request for embeddings may hold, and what the response holds: OpenAI's fields, and ours."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from mmemb_r1.modeling.options_mmemb_r1 import nearest_name
from mmemb_r1.serving.errors import ApiError
from mmemb_r1.serving.executor import Answer


class EmbeddingRequest(BaseModel):
    """
    Ask for embeddings.

    Attributes:
        model: name of the model that is served.
        input: a string, an input object (`text`, `image`, `video`, `instruction`), chat messages, or a list of these.
        messages: one chat, in place of `input`.
        dimensions: how many dimensions of the vectors are kept.
        encoding_format: numbers, or base64 of little-endian float32.
        user: not used.
        input_type: which side the inputs are.
        instruction: the system turn of inputs that bring none. Default: the checkpoint's for the `input_type`.
        reasoning, gate_threshold, max_reasoning_tokens, max_reasoning_rounds: when and how long to think. Default:
            what the checkpoint says.
        second_look: whether the vector of an input that thought is mixed with its direct one. Default: if the
            checkpoint has weights for it.
        max_latency_ms: after which thinking stops, and the vector that is there is returned.
        priority: lower ones are served first.
        explain: whether the response says what was decided, and the rationales.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    input: Any = None
    messages: list[Any] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None
    input_type: Literal["query", "document"] | None = None
    instruction: str | None = None
    reasoning: Literal["auto", "always", "never"] | None = None
    gate_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    max_reasoning_tokens: Annotated[int, Field(ge=1)] | None = None
    max_reasoning_rounds: Annotated[int, Field(ge=1)] | None = None
    second_look: bool | None = None
    max_latency_ms: Annotated[float, Field(gt=0, lt=1e9)] | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    explain: bool = False


def parse_request(body: bytes) -> EmbeddingRequest:
    """
    Read a request.

    Raises:
        ApiError: 400, saying what is wrong with it.
    """
    try:
        return EmbeddingRequest.model_validate_json(body)
    except ValidationError as error:
        raise _as_api_error(error) from error


def _as_api_error(error: ValidationError) -> ApiError:
    """Say the first thing that is wrong in a sentence."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is no valid JSON ({first['ctx']['error']}). Send a JSON object.")
    if not first["loc"]:
        return ApiError(400, "The body has to be a JSON object with the fields model and input.")
    name, fields = str(first["loc"][0]), list(EmbeddingRequest.model_fields)
    if first["type"] == "extra_forbidden":
        told = f"The field {name!r:.80} is not known{nearest_name(name, fields) or '.'} Allowed: {', '.join(fields)}."
        return ApiError(400, told, param=name[:80], code="unknown_field")
    if first["type"] == "missing":
        return ApiError(400, f"The field {name!r} is missing.", param=name, code="missing_field")
    came = f"{name}={first['input']!r:.80}" if not isinstance(first["input"], dict | list) else name
    return ApiError(400, f"{came} is not allowed: {first['msg']}.", param=name, code="invalid_value")


def response_body(
    request: EmbeddingRequest,
    answers: Sequence[Answer],
    vectors: np.ndarray,
    model: str,
    rationales: Sequence[str] | None = None,
) -> bytes:
    """
    Write the response.

    Args:
        request: that is answered.
        answers: one for each input.
        vectors: `(N, D)` float32, as they are returned.
        model: its name.
        rationales: texts, where they were asked for.
    """
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    reasoning_tokens = sum(answer.reasoning_tokens for answer in answers)
    data = []
    for index, (answer, vector) in enumerate(zip(answers, vectors, strict=True)):
        item: dict[str, Any] = {"object": "embedding", "index": index}
        is_float = request.encoding_format == "float"
        item["embedding"] = vector.tolist() if is_float else base64.b64encode(vector.astype("<f4").tobytes()).decode()
        if answer.stopped:
            item["stopped"] = "max_latency_ms"
        if rationales is not None:
            item["explanation"] = {
                "reasoned": answer.rounds > 0,
                "gate_prob": answer.gate_prob,
                "num_reasoning_tokens": answer.reasoning_tokens,
                "num_reasoning_rounds": answer.rounds,
                "rationale": rationales[index],
            }
            if answer.second_look_weight is not None:
                item["explanation"]["second_look_weight"] = answer.second_look_weight
        data.append(item)
    usage = {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + reasoning_tokens,
        "reasoning_tokens": reasoning_tokens,
    }
    return to_json({"object": "list", "data": data, "model": model, "usage": usage})
