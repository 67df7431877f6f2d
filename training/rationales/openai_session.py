"""Talk to an OpenAI-compatible server: take turns, try again, wait for one that is away, explain what it refuses."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.servers import AWAY, retry_after
from mmemb_r1.training.rationales.openai_messages import chat_messages, error_message, has_media, read_completions
from mmemb_r1.training.rationales.prompting import Style
from mmemb_r1.training.rationales.worker import Failure, Rationale, RationaleRequest, WorkerError

if TYPE_CHECKING:
    import openai


logger = logging.getLogger(__name__)

_NOT_TOGETHER = (400, 422)  # what servers say that do not know `n`, or not for these settings
_UNREACHABLE = ("ConnectError", "ConnectTimeout", "ProxyError")  # of httpx: nobody has answered
_CLIENT_MAX_WAIT = 120.0  # longer waits that a server asks for are given up by the client
CONNECT_TIMEOUT = 10.0  # seconds
_FIRST_TRIES = 0.5  # seconds between tries to reach a server that has not answered yet


class ServerOptions(Protocol):
    """The options of an `OpenAIWorker` that its session reads."""

    name: str
    model: str
    base_url: str
    max_tokens: int
    temperature: float | None
    top_p: float | None
    api_key_env: str | None
    concurrency: int
    timeout: float
    max_retries: int
    patience: float
    start_patience: float
    upload_once: bool
    extra_body: dict[str, Any] | None
    num_video_frames: int
    image_format: str
    _style: Style


class Slots:
    """
    Let a limited number of rationales be drawn at once, in the order in which they asked.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = asyncio.Semaphore(count)
        self._turn = asyncio.Lock()  # who waits for several slots is not overtaken by those who want one

    @asynccontextmanager
    async def taken(self, count: int) -> AsyncIterator[None]:
        """Wait for `count` free slots (for all, if there are fewer) and hold them."""
        held = 0
        try:
            async with self._turn:
                while held < min(count, self.count):
                    await self._free.acquire()
                    held += 1
            yield
        finally:
            for _ in range(held):
                self._free.release()


class Session:
    """
    Draws rationales over one client, whose connections are used again.

    Args:
        worker: whose options apply.
        client: open connections to its server.
        key: hidden wherever the server repeats it.
    """

    def __init__(self, worker: ServerOptions, client: openai.AsyncOpenAI, key: str | None) -> None:
        self.worker, self.client, self.key = worker, client, key
        self.slots = Slots(worker.concurrency)
        self.last_answer = 0.0  # when the server last said anything
        self.takes_n = True  # until the server shows that it does not

    async def reach(self) -> None:
        """
        Wait until the server answers anything at all, for `start_patience` seconds.

        Raises:
            WorkerError: if it does not.
        """
        import openai

        worker, began, told = self.worker, time.monotonic(), False
        timeout = openai.Timeout(worker.timeout, connect=min(CONNECT_TIMEOUT, worker.timeout))
        while True:
            try:
                await self.client.with_options(max_retries=0, timeout=timeout).models.with_raw_response.list()
            except openai.APIConnectionError as error:
                if type(error.__cause__).__name__ not in _UNREACHABLE:
                    return
                waited, cause = time.monotonic() - began, self.without_key(_cause(error))
            except openai.APIError:
                return
            else:
                return
            if waited >= worker.start_patience:
                raise self.fatal(
                    f"{worker.base_url} can't be reached ({cause}), not once in {waited:.0f} seconds. Start the "
                    "server or correct `base_url`; `start_patience` says how long to wait for a server that starts."
                ) from None
            if not told:
                logger.warning("Worker %r: %s is away (%s).", worker.name, worker.base_url, cause)
                told = True
            await asyncio.sleep(min(_FIRST_TRIES, worker.start_patience))

    async def draw_one(self, request: RationaleRequest) -> list[Rationale | Failure]:
        """Draw the rationales of a request, in the order of its seeds."""
        worker, seeds = self.worker, request.seeds
        try:
            messages = await asyncio.to_thread(
                chat_messages, worker._style, request, worker.num_video_frames, worker.image_format
            )
        except InputError as error:
            return [Failure(error.fault)] * len(seeds)
        together = worker.upload_once and self.takes_n and len(seeds) > 1 and has_media(messages)
        drawn = await self.sample(messages, seeds) if together else []
        if len(drawn) < len(seeds):
            rest = await asyncio.gather(*(self.sample(messages, (seed,)) for seed in seeds[len(drawn) :]))
            alone = [answer for [answer] in rest]
            if together and self.takes_n and any(isinstance(answer, Rationale) for answer in alone):
                self.takes_n = False  # the number was the cause, and not the input
                logger.info("Worker %r: the server takes no `n`; pictures are sent with each rationale.", worker.name)
            drawn += alone
        return drawn

    async def sample(self, messages: list[dict[str, Any]], seeds: Sequence[int]) -> list[Rationale | Failure]:
        """
        Ask once for as many rationales as there are seeds.

        Returns:
            As many answers as there are seeds. Where several were asked for: fewer, if the server gave no more; none,
            if it refused, perhaps because of their number.
        """
        import openai

        count = len(seeds)
        async with self.slots.taken(count):
            try:
                response = await self.ask(messages, seeds[0], count)
            except openai.APITimeoutError:
                tries = self.worker.max_retries + 1
                return [
                    Failure(f"no answer within timeout={self.worker.timeout:g} seconds, in {tries} tries.")
                ] * count
            except openai.APIConnectionError as error:
                return [Failure(self.without_key(f"the connection broke each time ({_cause(error)})."))] * count
            except openai.APIStatusError as error:
                if count > 1 and error.status_code in _NOT_TOGETHER:
                    return []
                return [self.refusal(error)] * count
        try:
            answers = read_completions(response.json(), self.worker._style)[:count]
        except ValueError:
            kind = response.headers.get("content-type", "no content type")
            raise self.fatal(
                f"{self.worker.base_url} answered with {kind} that begins with {response.text[:80]!r}: that is no "
                "chat completion. Correct `base_url`; allowed: the address of an OpenAI-compatible server, which "
                "usually ends in /v1."
            ) from None
        return [
            Failure(self.without_key(answer.reason)) if isinstance(answer, Failure) else answer for answer in answers
        ]

    async def ask(self, messages: list[dict[str, Any]], seed: int, count: int = 1) -> Any:
        """Send a request, with as many tries as are allowed, and return the server's answer, whatever it is."""
        import openai

        worker = self.worker
        body = {
            "max_tokens": worker.max_tokens,
            "temperature": worker.temperature,
            "top_p": worker.top_p,
            "seed": seed,
            **({"n": count} if count > 1 else {}),
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
    return isinstance(error, openai.APIConnectionError) or getattr(error, "status_code", None) in AWAY


def _asked_wait(error: openai.APIError) -> float | None:
    """Return how many seconds the server asks to wait, if the client would not wait that long by itself."""
    response = getattr(error, "response", None)
    if response is None or response.status_code not in (429, 503):
        return None
    seconds = retry_after(response.headers)
    return seconds if seconds is not None and seconds > _CLIENT_MAX_WAIT else None


def _cause(error: openai.APIError) -> str:
    return (str(error.__cause__ or error) or type(error.__cause__).__name__)[:200]
