"""A worker behind any OpenAI-compatible chat endpoint: vLLM, `transformers serve`, a vendor."""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import logging
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.training.rationales.openai_messages import IMAGE_FORMATS, chat_messages, error_message, read_completion
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


logger = logging.getLogger(__name__)

_PLACEHOLDER_KEY = "EMPTY"  # servers without keys take any, the client needs one
_RESERVED = ("model", "messages", "stream", "n")
_AWAY = (502, 503, 504)
_CONNECT_TIMEOUT = 10.0
_CLIENT_MAX_WAIT = 120.0  # longer waits that a server asks for are given up by the client


@dataclass(kw_only=True)
class OpenAIWorker:
    """
    Draws rationales from an OpenAI-compatible server, one request per rationale, each with its own seed.

    The server may be away for a while: failed connections, rate limits and server errors are retried with backoff and
    jitter, and `Retry-After` is honoured. What one input causes (a refusal, a timeout) is a `Failure` of that input;
    what would stop every input (a wrong key, address or model, a server that stays away) is a `WorkerError`.

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
        concurrency: requests at once.
        timeout: seconds to wait for an answer.
        max_retries: tries after the first.
        patience: seconds for which the server may be away (no connection, 502, 503, 504), beyond the retries.
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
    extra_body: dict[str, Any] | None = None
    num_video_frames: int = 8
    image_format: str = "png"
    batch_size: int = 64
    _style: Style = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(self, "model", isinstance(self.model, str) and bool(self.model), "the name of a model")
        if not _is_address(self.base_url):
            # a user and password in it are not repeated
            shown = re.sub(r"(?<=//)[^/]*@", "***@", str(self.base_url).partition("?")[0])
            raise ValueError(
                f"Worker {self.name!r}: `base_url` is {shown!r}; allowed: an address that begins with http:// or "
                "https://, without user, password or query."
            )
        for key in ("num_samples", "max_tokens", "concurrency", "num_video_frames", "batch_size"):
            require(self, key, is_number(getattr(self, key), int, 1), "a whole number from 1 on")
        require(self, "max_retries", is_number(self.max_retries, int, 0), "a whole number from 0 on")
        for key, least in (("timeout", 1e-9), ("patience", 0)):
            allowed = "seconds, more than 0" if least else "seconds, 0 or more"
            require(self, key, is_number(getattr(self, key), int | float, least), allowed)
        for key, most in (("temperature", 2), ("top_p", 1)):
            value = getattr(self, key)
            require(self, key, value is None or is_number(value, int | float, 0, most), f"0 to {most}, or null")
        require(self, "image_format", self.image_format in IMAGE_FORMATS, " or ".join(IMAGE_FORMATS))
        if self.api_key_env is not None and not _is_variable(self.api_key_env):
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
        }

    def draw(self, requests: Sequence[RationaleRequest]) -> list[list[Rationale | Failure]]:
        """
        Draw the rationales of each request, in the order of its seeds.

        Raises:
            WorkerError: if the server refuses the key, does not know the path or the model, answers with something
                other than a chat completion, or is away for longer than `patience`; or if the key's variable is not
                set.
            ImportError: if the client is not installed.
        """
        key = self._key()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._draw(requests, key))
        with ThreadPoolExecutor(1) as pool:  # in a notebook, where a loop is running already
            return pool.submit(asyncio.run, self._draw(requests, key)).result()

    async def _draw(self, requests: Sequence[RationaleRequest], key: str | None) -> list[list[Rationale | Failure]]:
        async with _client(self, key) as client:
            session = _Session(self, client, key)
            return list(await asyncio.gather(*map(session.draw_one, requests)))

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key or not (key.isascii() and key.isprintable()):
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

    timeout = openai.Timeout(worker.timeout, connect=min(_CONNECT_TIMEOUT, worker.timeout))
    return openai.AsyncOpenAI(
        api_key=key or _PLACEHOLDER_KEY,
        base_url=worker.base_url,
        timeout=timeout,
        max_retries=worker.max_retries,
        # for a proxy, localhost is the proxy's own machine
        http_client=openai.DefaultAsyncHttpxClient(timeout=timeout, trust_env=not _is_loopback(worker.base_url)),
    )


class _Session:
    """Sends the requests of one call of `draw`."""

    def __init__(self, worker: OpenAIWorker, client: openai.AsyncOpenAI, key: str | None) -> None:
        self.worker = worker
        self.client = client
        self.key = key
        self.slots = asyncio.Semaphore(worker.concurrency)
        self.last_answer = 0.0  # when the server last said anything

    async def draw_one(self, request: RationaleRequest) -> list[Rationale | Failure]:
        worker = self.worker
        try:
            messages = await asyncio.to_thread(
                chat_messages, worker._style, request, worker.num_video_frames, worker.image_format
            )
        except InputError as error:
            return [Failure(error.fault)] * len(request.seeds)
        return list(await asyncio.gather(*(self.sample(messages, seed) for seed in request.seeds)))

    async def sample(self, messages: list[dict[str, Any]], seed: int) -> Rationale | Failure:
        import openai

        async with self.slots:
            try:
                response = await self.ask(messages, seed)
            except openai.APITimeoutError:
                tries = self.worker.max_retries + 1
                return Failure(f"no answer within timeout={self.worker.timeout:g} seconds, in {tries} tries.")
            except openai.APIConnectionError as error:
                return Failure(self.without_key(f"the connection broke each time ({_cause(error)})."))
            except openai.APIStatusError as error:
                return self.refusal(error)
        try:
            answer = read_completion(response.json(), self.worker._style)
        except ValueError:
            kind = response.headers.get("content-type", "no content type")
            raise self.fatal(
                f"{self.worker.base_url} answered with {kind} that begins with {response.text[:80]!r}: that is no "
                "chat completion. Correct `base_url`; allowed: the address of an OpenAI-compatible server, which "
                "usually ends in /v1."
            ) from None
        return Failure(self.without_key(answer.reason)) if isinstance(answer, Failure) else answer

    async def ask(self, messages: list[dict[str, Any]], seed: int) -> Any:
        """Send a request, with as many tries as are allowed, and return the server's answer, whatever it is."""
        import openai

        worker = self.worker
        body = {
            "max_tokens": worker.max_tokens,
            "temperature": worker.temperature,
            "top_p": worker.top_p,
            "seed": seed,
            **(worker.extra_body or {}),
        }
        away_since, num_absences, num_waits = None, 0, 0
        while True:
            try:
                raw = await self.client.chat.completions.with_raw_response.create(
                    model=worker.model,
                    messages=messages,  # type: ignore[arg-type]
                    extra_body={name: value for name, value in body.items() if value is not None},
                )
            except openai.APIError as error:
                wait = _asked_wait(error)
                if wait is not None and num_waits < worker.max_retries:
                    num_waits += 1
                    logger.warning("Worker %r: the server asks to wait for %.0f seconds.", worker.name, wait)
                    await asyncio.sleep(wait)
                    continue
                now = time.monotonic()
                if not _is_away(error):
                    self.last_answer = now
                    raise
                cause = self.without_key(_cause(error))
                if away_since is None:
                    away_since = now
                    logger.warning("Worker %r: %s is away (%s).", worker.name, worker.base_url, cause)
                if now - away_since >= worker.patience:
                    if self.last_answer > away_since:  # it answers other requests: this input is the cause
                        raise
                    raise self.fatal(
                        f"{worker.base_url} can't be reached ({cause}), not for {worker.patience:g} seconds "
                        "beyond the retries. Start the server or correct `base_url`; `patience` says how long to wait."
                    ) from None
                num_absences += 1
                await asyncio.sleep(random.uniform(0.75, 1.0) * min(8.0, 0.25 * 2**num_absences))
            else:
                self.last_answer = time.monotonic()
                return raw.http_response

    def refusal(self, error: openai.APIStatusError) -> Failure:
        """Make a `Failure` of an error status; a `WorkerError` is raised if it would be the same for every input."""
        worker, status = self.worker, error.status_code
        told = f"{status}: {error_message(error.body or error.response.text or 'nothing more')}"
        if status in (401, 403):
            variable = f"is {worker.api_key_env!r}" if worker.api_key_env else "is not set"
            raise self.fatal(
                f"{worker.base_url} refuses the key ({told}). `api_key_env` {variable}; allowed: the name of an "
                "environment variable that holds a key of this server."
            ) from None
        if status == 402 or (status == 429 and error.code == "insufficient_quota"):
            raise self.fatal(
                f"the account of `api_key_env` has no credit left at {worker.base_url} ({told})."
            ) from None
        if status in (404, 405):
            raise self.fatal(
                f"{worker.base_url} knows no such path or model ({told}). Correct `base_url`, which usually ends in "
                f"/v1, or `model`, which is {worker.model!r}."
            ) from None
        return Failure(self.without_key(f"the server answered {told}"))

    def fatal(self, message: str) -> WorkerError:
        return WorkerError(self.without_key(f"Worker {self.worker.name!r}: {message}"))

    def without_key(self, text: str) -> str:
        """Hide the key in a text: servers repeat what they were sent."""
        return text.replace(self.key, "***") if self.key else text


def _is_away(error: openai.APIError) -> bool:
    """Whether the server can't be reached, rather than failing."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return type(error.__cause__).__name__ == "ConnectTimeout"
    return isinstance(error, openai.APIConnectionError) or getattr(error, "status_code", None) in _AWAY


def _asked_wait(error: openai.APIError) -> float | None:
    """Return how many seconds the server asks to wait, if the client would not wait that long by itself."""
    response = getattr(error, "response", None)
    if response is None or response.status_code not in (429, 503):
        return None
    seconds = retry_after(response.headers)
    return seconds if seconds is not None and seconds > _CLIENT_MAX_WAIT else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """
    Read how many seconds to wait before the next try: from `retry-after-ms` or `retry-after` (seconds or a date).

    >>> retry_after({"retry-after": "150"}), retry_after({"retry-after-ms": "2500"}), retry_after({})
    (150.0, 2.5, None)
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        if re.fullmatch(r"\d+(\.\d+)?", headers.get(name, "")):
            return float(headers[name]) / unit
    try:
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()


def _cause(error: openai.APIError) -> str:
    return (str(error.__cause__ or error) or type(error.__cause__).__name__)[:200]


def _is_variable(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Z_][A-Z0-9_]*", value) is not None


def _is_address(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        url = urlsplit(value)
        plain = url.username is None and not url.query and not url.fragment and (url.port or 1) > 0
    except ValueError:  # no port number, half an IPv6 address
        return False
    return url.scheme in ("http", "https") and bool(url.hostname) and plain


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
