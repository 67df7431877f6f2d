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
from mmemb_r1.training.rationales.prompting import Style, load_style
from mmemb_r1.training.rationales.worker import Failure, Rationale, RationaleRequest, WorkerError

if TYPE_CHECKING:
    import openai


logger = logging.getLogger(__name__)

_PLACEHOLDER_KEY = "EMPTY"  # servers without keys take any, the client needs one
_RESERVED = ("model", "messages", "stream", "n")
_AWAY = (502, 503, 504)
_CONNECT_TIMEOUT = 10.0
_CLIENT_MAX_WAIT = 120.0  # longer waits that a server asks for are given up by the client
_HTTP_ADDRESS = "an address that begins with http:// or https://, without user, password or query"


@dataclass(kw_only=True)
class OpenAIWorker:
    """
    Draws rationales from an OpenAI-compatible server, one request per rationale, each with its own seed.

    The server may be away for a while: failed connections, rate limits and server errors are retried with backoff and
    jitter, and `Retry-After` is honoured. What an input causes (a refusal, a timeout) is a `Failure` of that input;
    what no input could survive (a wrong key, address or model, a server that stays away) is a `WorkerError`.

    Proxies are taken from the environment as usual, except for a server on this very machine.

    Of `transformers serve`: the model is named as it was when the server was started, samples are drawn only if its
    generation config (or `extra_body: {generation_config: '{"do_sample": true}'}`) says so, and seeds hold for one
    request at a time (`concurrency: 1`).

    Args:
        name: unique in a pool.
        model: the model's name as the server knows it.
        base_url: the server's address; it usually ends in `/v1`.
        num_samples: rationales per input.
        style: how to ask: `"instruct"`, `"thinking"` or the path of a `.txt` file, see `load_style`.
        max_tokens: budget of a rationale, for a thinking model with the answer after it.
        temperature: `None` leaves it to the server; so does `top_p`.
        top_p: see `temperature`.
        api_key_env: name of the environment variable that holds the key. Default: the server wants none.
        concurrency: requests at once.
        timeout: seconds to wait for an answer.
        max_retries: tries after the first.
        patience: seconds for which the server may be away (no connection, 502, 503, 504), beyond the retries.
        extra_body: further fields of each request, such as `top_k`; `null` takes a field out. A `seed` may only be
            taken out: each rationale has its own.
        num_video_frames: frames that are sampled evenly from a video file; they are sent as pictures.
        image_format: `"png"` or `"jpeg"`, for pictures that can't be sent as the files they are.
        batch_size: inputs it likes to get at once.

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
        self._require("model", isinstance(self.model, str) and bool(self.model), "the name of a model")
        self._require("base_url", _is_address(self.base_url), _HTTP_ADDRESS)
        for key in ("num_samples", "max_tokens", "concurrency", "num_video_frames", "batch_size"):
            self._require(key, _is_int(getattr(self, key), 1), "a whole number from 1 on")
        self._require("max_retries", _is_int(self.max_retries, 0), "a whole number from 0 on")
        self._require("timeout", _is_number(self.timeout) and self.timeout > 0, "seconds, more than 0")
        self._require("patience", _is_number(self.patience) and self.patience >= 0, "seconds, 0 or more")
        self._require("temperature", self.temperature is None or _is_number(self.temperature, 0, 2), "0 to 2, or null")
        self._require("top_p", self.top_p is None or _is_number(self.top_p, 0, 1), "0 to 1, or null")
        self._require("image_format", self.image_format in IMAGE_FORMATS, " or ".join(IMAGE_FORMATS))
        if self.api_key_env is not None and not _is_variable(self.api_key_env):
            # what stands there may be the key itself: it is not repeated
            raise ValueError(
                f"Worker {self.name!r}: `api_key_env` is no name of an environment variable; allowed: a name of "
                "capitals, digits and underscores, such as OPENAI_API_KEY. The key itself is never in the file."
            )
        allowed = (
            isinstance(self.extra_body, Mapping)
            and not set(self.extra_body) & set(_RESERVED)
            and self.extra_body.get("seed") is None  # one for all would make all samples of an input the same
        )
        self._require(
            "extra_body",
            self.extra_body is None or allowed,
            f"fields of a request, but not {', '.join(_RESERVED)}, and no seed but null",
        )
        try:
            self._style = load_style(self.style)
        except ValueError as error:
            raise ValueError(f"Worker {self.name!r}: `style` can't be used. {error}") from error

    def _require(self, key: str, holds: bool, allowed: str) -> None:
        if not holds:
            value = getattr(self, key)
            if key == "base_url" and isinstance(value, str):
                value = re.sub(r"(?<=//)[^/]*@", "***@", value.partition("?")[0])  # what was hidden there stays hidden
            raise ValueError(f"Worker {self.name!r}: `{key}` is {value!r}; allowed: {allowed}.")

    @property
    def definition(self) -> dict[str, Any]:
        """What determines the rationales. The address is not part of it: servers move."""
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
            WorkerError: if the server refuses the key, knows neither path nor model, answers with something that is no
                chat completion, or stays away for longer than `patience`; or if the key's variable is not set.
            ImportError: if the client is not installed.
        """
        key = self._key()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._draw(requests, key))
        with ThreadPoolExecutor(1) as pool:  # in a notebook, whose loop runs already
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
                f"{'holds no usable key' if key else 'is not set'}. Set it to a key of {self.base_url}, or leave "
                "`api_key_env` out if the server wants none."
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
        # a proxy knows another machine by the name of localhost
        http_client=openai.DefaultAsyncHttpxClient(timeout=timeout, trust_env=not _is_loopback(worker.base_url)),
    )


class _Session:
    """The requests of one draw."""

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
                "chat completion. Mend `base_url`; allowed: the address of an OpenAI-compatible server, which usually "
                "ends in /v1."
            ) from None
        return Failure(self.without_key(answer.reason)) if isinstance(answer, Failure) else answer

    async def ask(self, messages: list[dict[str, Any]], seed: int) -> Any:
        """The server's answer, whatever it is, after as many tries as are allowed."""
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
                    if self.last_answer > away_since:  # to others it talks: this input is the cause
                        raise
                    raise self.fatal(
                        f"{worker.base_url} can't be reached ({cause}), not for {worker.patience:g} seconds "
                        "beyond the retries. Start the server or mend `base_url`; `patience` says how long to wait."
                    ) from None
                num_absences += 1
                await asyncio.sleep(random.uniform(0.75, 1.0) * min(8.0, 0.25 * 2**num_absences))
            else:
                self.last_answer = time.monotonic()
                return raw.http_response

    def refusal(self, error: openai.APIStatusError) -> Failure:
        """What a status means for the one input; a `WorkerError` if it means the same for all."""
        worker, status = self.worker, error.status_code
        said = f"{status}: {error_message(error.body or error.response.text or 'nothing more')}"
        if status in (401, 403):
            variable = f"is {worker.api_key_env!r}" if worker.api_key_env else "is not set"
            raise self.fatal(
                f"{worker.base_url} refuses the key ({said}). `api_key_env` {variable}; allowed: the name of an "
                "environment variable that holds a key of this server."
            ) from None
        if status == 402 or (status == 429 and error.code == "insufficient_quota"):
            raise self.fatal(
                f"the account of `api_key_env` has no credit left at {worker.base_url} ({said})."
            ) from None
        if status in (404, 405):
            raise self.fatal(
                f"{worker.base_url} knows no such path or model ({said}). Mend `base_url`, which usually ends in /v1, "
                f"or `model`, which is {worker.model!r}."
            ) from None
        return Failure(self.without_key(f"the server answered {said}"))

    def fatal(self, message: str) -> WorkerError:
        return WorkerError(self.without_key(f"Worker {self.worker.name!r}: {message}"))

    def without_key(self, text: str) -> str:
        """Servers repeat what they were sent."""
        return text.replace(self.key, "***") if self.key else text


def _is_away(error: openai.APIError) -> bool:
    """Whether there is no server, rather than one that fails."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return type(error.__cause__).__name__ == "ConnectTimeout"
    return isinstance(error, openai.APIConnectionError) or getattr(error, "status_code", None) in _AWAY


def _asked_wait(error: openai.APIError) -> float | None:
    """Seconds that the server asks to wait for, if they are more than the client waits by itself."""
    response = getattr(error, "response", None)
    if response is None or response.status_code not in (429, 503):
        return None
    seconds = retry_after(response.headers)
    return seconds if seconds is not None and seconds > _CLIENT_MAX_WAIT else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """
    Seconds to wait before the next try, from `retry-after-ms` or `retry-after` (seconds or a date).

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


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any, least: float = float("-inf"), most: float = float("inf")) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


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
