"""Say what a server allows, and how it works."""

from __future__ import annotations

import os
from dataclasses import dataclass

KEYS = "MMEMB_R1_API_KEY"  # the environment variable
MIB = 2**20


@dataclass(frozen=True)
class ServerSettings:
    """
    Set the limits of a server. What is beyond one is refused by an error that names it; nothing is cut or left out.

    Attributes:
        batch_size: inputs that are read at once.
        max_batch_tokens: tokens that are read at once, padding included; also the most that one input may have.
        decode_batch_size: inputs that think at once. Default: 4 times `batch_size`.
        max_waiting: inputs of all requests that wait to be read.
        max_inputs: of one request.
        max_media: pictures, videos and frames of one input.
        max_characters: of the text of one input.
        max_reasoning_tokens: the largest budget of a rationale that a request may ask for.
        max_reasoning_rounds: the most rounds that a request may ask for.
        max_body_bytes: of one request.
        max_pending_bytes: of all requests that are being answered.
        max_connections: open at once.
        header_seconds: in which a request's headers have to come.
        body_seconds: in which its body has to come.
        write_seconds: in which a client has to take some of an answer.
        idle_seconds: that a connection stays open between requests.
        shutdown_seconds: in which requests are finished after SIGTERM.
        allow_remote_media: whether pictures and videos may be web addresses: of public servers only.
        workers: threads that prepare inputs.
        prepare_processes: processes in which they do, so that the model has this one for itself; not with an engine.
            Default: none.
    """

    batch_size: int = 32
    max_batch_tokens: int = 16_384
    decode_batch_size: int | None = None
    max_waiting: int = 4096
    max_inputs: int = 2048
    max_media: int = 64
    max_characters: int = 2**18
    max_reasoning_tokens: int = 1024
    max_reasoning_rounds: int = 4
    max_body_bytes: int = 32 * MIB
    max_pending_bytes: int = 256 * MIB
    max_connections: int = 1024
    header_seconds: float = 10
    body_seconds: float = 60
    write_seconds: float = 30
    idle_seconds: float = 30
    shutdown_seconds: int = 60
    allow_remote_media: bool = False
    workers: int = 2
    prepare_processes: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not isinstance(value, bool) and value <= 0:
                raise ValueError(f"{name}={value} has to be more than 0.")
        if self.max_body_bytes > self.max_pending_bytes:
            raise ValueError(
                f"max_body_bytes={self.max_body_bytes} is more than max_pending_bytes={self.max_pending_bytes}, so "
                "that such a request could never be taken; raise the latter, or lower the former."
            )


def api_keys() -> list[str]:
    """Read the keys of the API from the environment: several are separated by commas, so that they can be changed."""
    return [key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip()]
