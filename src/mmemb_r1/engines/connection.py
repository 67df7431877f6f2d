"""Ask a server many questions at once, again where it was away, and tell whose fault a refusal is."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx

from mmemb_r1.engines.protocol import EngineError
from mmemb_r1.servers import AWAY, is_address, is_loopback, is_usable_key, is_variable, retry_after, without_secrets

logger = logging.getLogger(__name__)

_REFUSED = (400, 413, 422)  # what a server says of a request, and not of itself
_CONNECT_TIMEOUT = 10.0  # seconds
_LONGEST_PAUSE = 8.0  # seconds between tries, unless the server asks for more


class RefusedRequest(ValueError):
    """Say why a server refuses a request that it understood."""


class Connection:
    """
    Send requests to one server, `concurrency` of them at a time, from any number of threads.

    A request that was not answered (no connection, a broken one, 502, 503, 504, 429) is sent again until the server is
    away for `patience` seconds; `Retry-After` is honoured. What was asked is the same each time, and the
    server keeps nothing of it, so that nothing is done twice.

    Args:
        address: `http://HOST:PORT`, with `/v1` at its end or not.
        key_env: name of the environment variable that holds the key. Default: the server wants none.
        concurrency: requests at a time.
        timeout: seconds to wait for an answer.
        patience: seconds for which the server may be away.
        max_retries: tries after the first where the server fails (500) or does not answer in time.

    Raises:
        ValueError: for an address or a name that can't be used.
    """

    def __init__(
        self,
        address: str,
        key_env: str | None = None,
        *,
        concurrency: int = 64,
        timeout: float = 600.0,
        patience: float = 120.0,
        max_retries: int = 4,
    ) -> None:
        if not is_address(address):
            raise ValueError(
                f"{without_secrets(address)!r} is no address of a server; allowed: http://HOST:PORT or https://..., "
                "without user, password or query. Keys are read from the environment."
            )
        if key_env is not None and not is_variable(key_env):
            raise ValueError(
                "The name of the key's environment variable can't be used; allowed: capitals, digits and underscores, "
                "such as VLLM_API_KEY. The key itself is never passed."
            )
        self.address = address.rstrip("/").removesuffix("/v1")
        self.key_env, self.patience, self.max_retries = key_env, patience, max_retries
        self.concurrency = concurrency
        self._client = httpx.Client(
            base_url=self.address,
            timeout=httpx.Timeout(timeout, connect=min(_CONNECT_TIMEOUT, timeout)),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            trust_env=not is_loopback(self.address),  # for a proxy, localhost is the proxy's own machine
        )
        self._threads = ThreadPoolExecutor(concurrency, "mmemb-r1-request")
        self._closing = threading.Event()

    def ask_each(self, asks: Sequence[Callable[[Connection], Any]]) -> list[Any]:
        """
        Run functions that ask this server, in threads of its own.

        Returns:
            What each of them returns, in order.

        Raises:
            What the first of them, in order, raises; those that have not begun are given up then.
        """
        futures = [self._threads.submit(ask, self) for ask in asks]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """
        Ask once, until there is an answer.

        Returns:
            The answer's JSON.

        Raises:
            RefusedRequest: if the server refuses this request.
            EngineError: if it is away for too long, refuses the key, has no such path, or fails each time.
        """
        return self._sent("POST", path, body)

    def get(self, path: str) -> Any:
        """Get a path likewise."""
        return self._sent("GET", path, None)

    def close(self) -> None:
        """Give up what is waiting, and close the connections."""
        self._closing.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _sent(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        away_since, failures, pauses = None, 0, 0
        while True:
            wait = None
            try:
                response = self._client.request(method, path, json=body, headers=self._headers())
            except httpx.ReadTimeout as error:
                failures += 1
                self._give_up_after(failures, f"does not answer in time ({error or 'timeout'})", error)
                continue
            except httpx.TransportError as error:
                away_since = self._note_absence(away_since, f"{type(error).__name__}: {error}", error)
            else:
                if response.status_code not in (*AWAY, 429, 500):
                    return self._read(response)
                wait = retry_after(response.headers)
                told = f"{response.status_code}: {_message(response)}"
                if response.status_code == 500:
                    failures += 1
                    self._give_up_after(failures, f"fails ({told})", None)
                else:
                    away_since = self._note_absence(away_since, told, None)
            pauses += 1
            pause = min(_LONGEST_PAUSE, 0.25 * 2**pauses) * random.uniform(0.75, 1.0)
            if self._closing.wait(pause if wait is None else wait):
                raise EngineError(f"{self.address}: the connection was closed.")

    def _headers(self) -> dict[str, str]:
        if self.key_env is None:
            return {}
        key = os.environ.get(self.key_env, "").strip()
        if not is_usable_key(key):
            raise EngineError(
                f"The environment variable {self.key_env} {'holds no usable key' if key else 'is not set'}; set it to "
                f"the key of {self.address}."
            )
        return {"Authorization": f"Bearer {key}"}

    def _note_absence(self, since: float | None, cause: str, error: Exception | None) -> float:
        """Remember since when the server is away; give up where that is too long."""
        now = time.monotonic()
        if since is None:
            since = now
            logger.warning("%s is away (%s).", self.address, self._hidden(cause))
        if now - since >= self.patience:
            raise EngineError(
                f"{self.address} can't be reached ({self._hidden(cause)}), not for {self.patience:g} seconds. Start "
                "the server, correct the address, or allow more patience."
            ) from error
        return since

    def _give_up_after(self, failures: int, what: str, error: Exception | None) -> None:
        if failures > self.max_retries:
            raise EngineError(
                f"{self.address} {self._hidden(what)}, in {failures} tries; its log says why."
            ) from error

    def _read(self, response: httpx.Response) -> Any:
        status, told = response.status_code, self._hidden(_message(response))
        if status in _REFUSED:
            raise RefusedRequest(told)
        if status in (401, 403):
            key = "no key is sent" if self.key_env is None else f"the key is read from {self.key_env}"
            raise EngineError(f"{self.address} refuses the key ({status}: {told}); {key}.")
        if status != 200:
            raise EngineError(
                f"{self.address} answered {status} to {response.request.url.path} ({told}). Correct the address; it "
                "is that of `vllm serve`, of a version that mmemb-r1 knows."
            )
        try:
            return response.json()
        except ValueError as error:
            raise EngineError(
                f"{self.address} answered with what is no JSON, {response.text[:80]!r}; correct the address."
            ) from error

    def _hidden(self, text: str) -> str:
        """Hide the key in what a server repeats."""
        key = os.environ.get(self.key_env, "").strip() if self.key_env else ""
        return text.replace(key, "***") if key else text


def _message(response: httpx.Response) -> str:
    try:
        told = response.json()
        error = told.get("error", told)
        return str(error.get("message", error) if isinstance(error, dict) else error)[:500]
    except (ValueError, AttributeError):
        return response.text[:200]
