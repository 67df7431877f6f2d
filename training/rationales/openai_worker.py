"""A worker behind any OpenAI-compatible chat endpoint: vLLM, `transformers serve`, a vendor."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from mmemb_r1.servers import is_address, is_loopback, is_usable_key, is_variable, without_secrets
from mmemb_r1.training.rationales.openai_messages import IMAGE_FORMATS
from mmemb_r1.training.rationales.openai_session import CONNECT_TIMEOUT, Session
from mmemb_r1.training.rationales.prompting import Style, style_of
from mmemb_r1.training.rationales.worker import (
    Failure,
    Rationale,
    RationaleRequest,
    WorkerError,
    is_number,
    require,
)

if TYPE_CHECKING:
    import openai
    from anyio.from_thread import BlockingPortal


_PLACEHOLDER_KEY = "EMPTY"  # servers without keys take any, the client needs one
_RESERVED = ("model", "messages", "stream", "n")
_READY = 32  # inputs whose messages are made before there is a slot for them
_Answers = list[Rationale | Failure]


@dataclass(kw_only=True)
class OpenAIWorker:
    """
    Draws rationales from an OpenAI-compatible server: one request per rationale, each with its own seed, or one
    request (`n`) for all rationales of an input with pictures.

    The server may be away for a while: failed connections, rate limits and server errors are retried with backoff and
    jitter, and `Retry-After` is honoured. What one input causes (a refusal, a timeout) is a `Failure` of that input;
    what would stop every input (a wrong key, address or model, a server that stays away) is a `WorkerError`.

    All requests of a run share one client and one queue. No more than `concurrency` + 32 inputs are held at a time:
    the next one is read when another is done.

    Proxies are taken from the environment as usual, except for a server on this machine.

    With `transformers serve`, `model` is the name that the server was started with, samples differ only if its
    generation config (or `extra_body: {generation_config: '{"do_sample": true}'}`) says so, and seeds work for one
    request at a time (`concurrency: 1`).

    Args:
        name: unique in a pool.
        model: the model's name as the server knows it.
        base_url: the server's address; it usually ends in `/v1`.
        num_samples: rationales per input.
        style: how to ask: `"instruct"`, `"thinking"` or the path of a `.txt` file, see `load_style`.
        max_tokens: budget of a rationale, including the answer after it for a thinking model.
        temperature: `None` leaves it to the server; so does `top_p`.
        top_p: see `temperature`.
        api_key_env: name of the environment variable that holds the key. Default: the server wants none.
        concurrency: rationales that are drawn at once.
        timeout: seconds to wait for an answer.
        max_retries: tries after the first.
        patience: seconds for which the server may be away (no connection, 502, 503, 504), beyond the retries.
        start_patience: seconds to wait for a server that can't be reached at the beginning.
        upload_once: whether pictures are sent once for all rationales of an input, in a request for `num_samples` of
            them (`n`) with the seed of the first. Where the server does not take that, each rationale has its own
            request, as it has for inputs without pictures.
        extra_body: further fields of each request, such as `top_k`; `null` removes a field. `seed` may only be
            removed: each rationale has its own.
        num_video_frames: frames that are sampled evenly from a video file; they are sent as pictures.
        image_format: `"png"` or `"jpeg"`, for pictures that can't be sent as the files they are.
        batch_size: inputs per call of `draw`.

    Raises:
        ValueError: naming the key that can't be used.
    """

    name: str
    model: str
    base_url: str
    num_samples: int = 4
    style: str = "instruct"
    max_tokens: int = 1024
    temperature: float | None = 0.9
    top_p: float | None = 0.95
    api_key_env: str | None = None
    concurrency: int = 16
    timeout: float = 120.0
    max_retries: int = 8
    patience: float = 120.0
    start_patience: float = 10.0
    upload_once: bool = True
    extra_body: dict[str, Any] | None = None
    num_video_frames: int = 8
    image_format: str = "png"
    batch_size: int = 64
    _style: Style = field(init=False, repr=False, compare=False)
    _done: SimpleQueue[tuple[int, Future[_Answers]] | None] | None = field(
        init=False, repr=False, compare=False, default=None
    )

    def __post_init__(self) -> None:
        require(self, "model", isinstance(self.model, str) and bool(self.model), "the name of a model")
        if not is_address(self.base_url):
            # a user and password in it are not repeated
            shown = without_secrets(self.base_url)
            raise ValueError(
                f"Worker {self.name!r}: `base_url` is {shown!r}; allowed: an address that begins with http:// or "
                "https://, without user, password or query."
            )
        for key in ("num_samples", "max_tokens", "concurrency", "num_video_frames", "batch_size"):
            require(self, key, is_number(getattr(self, key), int, 1), "a whole number from 1 on")
        require(self, "max_retries", is_number(self.max_retries, int, 0), "a whole number from 0 on")
        for key, least in (("timeout", 1e-9), ("patience", 0), ("start_patience", 0)):
            allowed = "seconds, more than 0" if least else "seconds, 0 or more"
            require(self, key, is_number(getattr(self, key), int | float, least), allowed)
        for key, most in (("temperature", 2), ("top_p", 1)):
            value = getattr(self, key)
            require(self, key, value is None or is_number(value, int | float, 0, most), f"0 to {most}, or null")
        require(self, "upload_once", isinstance(self.upload_once, bool), "true or false")
        require(self, "image_format", self.image_format in IMAGE_FORMATS, " or ".join(IMAGE_FORMATS))
        if self.api_key_env is not None and not is_variable(self.api_key_env):
            # its value may be the key itself, so it is not repeated
            raise ValueError(
                f"Worker {self.name!r}: `api_key_env` is no name of an environment variable; allowed: a name of "
                "capitals, digits and underscores, such as OPENAI_API_KEY. The key itself is never in the file."
            )
        plain = self.extra_body is None or (
            isinstance(self.extra_body, Mapping)
            and not set(self.extra_body) & set(_RESERVED)
            and self.extra_body.get("seed") is None  # one seed for all would make all samples of an input the same
        )
        require(
            self, "extra_body", plain, f"fields of a request, but not {', '.join(_RESERVED)}, and no seed but null"
        )
        self._style = style_of(self)

    @property
    def definition(self) -> dict[str, Any]:
        """All that determines the rationales. The address is not part of it: servers move."""
        return {
            "kind": "openai",
            "model": self.model,
            "style": self._style.definition,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "extra_body": self.extra_body,
            "num_video_frames": self.num_video_frames,
            "image_format": self.image_format,
            "upload_once": self.upload_once,
        }

    def draw(self, requests: Sequence[RationaleRequest]) -> list[list[Rationale | Failure]]:
        """
        Draw the rationales of each request, in the order of its seeds.

        Raises:
            WorkerError, ImportError: as `draw_each`.
        """
        drawn = dict(self.draw_each(requests))
        return [drawn[number] for number in range(len(requests))]

    def draw_each(
        self, requests: Iterable[RationaleRequest]
    ) -> Generator[tuple[int, list[Rationale | Failure]], None, None]:
        """
        Draw the rationales of requests as they come, and yield them as they are done: the number of a request, and its
        rationales in the order of its seeds.

        Raises:
            WorkerError: if the server can't be reached, refuses the key, does not know the path or the model, answers
                with something other than a chat completion, or is away for longer than `patience`; or if the key's
                variable is not set.
            ImportError: if the client is not installed.
        """
        key = self._key()
        client = _client(self, key)
        session = Session(self, client, key)
        done: SimpleQueue[tuple[int, Future[_Answers]] | None] = SimpleQueue()
        running: dict[int, Future[_Answers]] = {}
        self._done = done
        left = enumerate(requests)
        with _portal(client, running) as portal:
            while True:
                for number, request in islice(left, self.concurrency + _READY - len(running)):
                    if number == 0:
                        portal.call(session.reach)
                    running[number] = portal.start_task_soon(session.draw_one, request)
                    running[number].add_done_callback(partial(_hand_over, done, number))
                if not running or (item := done.get()) is None:
                    return
                yield item[0], running.pop(item[0]).result()

    def close(self) -> None:
        """End a `draw_each` that runs in another thread; what is not done yet is given up."""
        if self._done is not None:
            self._done.put(None)

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not is_usable_key(key):
            raise WorkerError(
                f"Worker {self.name!r}: the environment variable {self.api_key_env} of `api_key_env` "
                f"{'holds no usable key' if key else 'is not set'}. Set it to a key for {self.base_url}, or leave "
                "`api_key_env` out if the server needs none."
            )
        return key


def _client(worker: OpenAIWorker, key: str | None) -> openai.AsyncOpenAI:
    try:
        import openai
    except ImportError as error:
        raise ImportError("OpenAIWorker needs the openai client: pip install 'mmemb-r1[openai]'") from error

    timeout = openai.Timeout(worker.timeout, connect=min(CONNECT_TIMEOUT, worker.timeout))
    return openai.AsyncOpenAI(
        api_key=key or _PLACEHOLDER_KEY,
        base_url=worker.base_url,
        timeout=timeout,
        max_retries=worker.max_retries,
        # for a proxy, localhost is the proxy's own machine
        http_client=openai.DefaultAsyncHttpxClient(timeout=timeout, trust_env=not is_loopback(worker.base_url)),
    )


@contextmanager
def _portal(client: openai.AsyncOpenAI, running: Mapping[int, Future[_Answers]]) -> Iterator[BlockingPortal]:
    """Run an event loop in a thread; at the end, what is running is given up and the connections are closed."""
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal() as portal:
        try:
            yield portal
        finally:
            for future in running.values():
                future.cancel()
            portal.call(client.close)


def _hand_over(done: SimpleQueue[tuple[int, Future[_Answers]] | None], number: int, future: Future[_Answers]) -> None:
    done.put((number, future))
