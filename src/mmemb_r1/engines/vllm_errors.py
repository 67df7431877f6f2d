"""Name the errors of vLLM, without importing it before it is used."""

from __future__ import annotations


def refusals() -> tuple[type[Exception], ...]:
    """List the errors that one prompt causes, and no other."""
    from vllm.exceptions import VLLMClientError  # no ValueError

    return ValueError, VLLMClientError


def dead_engine() -> type[Exception]:
    """Return the error of an instance whose process has ended."""
    from vllm.v1.engine.exceptions import EngineDeadError

    return EngineDeadError
