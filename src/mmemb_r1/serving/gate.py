"""Stand before the application: who has no key, or sends too much or too slowly, gets no further."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mmemb_r1.serving.errors import ApiError
from mmemb_r1.serving.metrics import Metrics
from mmemb_r1.serving.settings import ServerSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

GUARDED = "/v1/"
LINGER_SECONDS = 1.0


class Gate:
    """
    Check the key, and read the body, within limits of size and time, before anything looks at it.

    Args:
        app: the application of ASGI behind it.
        settings: the limits.
        keys: that are accepted. None: everybody is.
        metrics: where bytes are counted.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, keys: Sequence[str], metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.keys = [key.encode() for key in keys]
        self.pending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self.app(scope, receive, send)
            return
        held = _Held()
        try:
            self._check_key(scope)
            body = await self._read_body(scope, receive, held)
            if body is not None:
                await self.app(scope, _replayed(body, receive), send)
        except ApiError as error:
            await self._pass_over(scope, receive)
            await _send_error(send, error)
        finally:
            self._hold(held, -held.bytes)

    def _check_key(self, scope: Scope) -> None:
        if not self.keys:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        # all of them are compared, each in constant time: how long it takes tells nothing
        matches = [hmac.compare_digest(key.strip(), known) for known in self.keys]
        if scheme.lower() != b"bearer" or not any(matches):
            what = "a wrong" if given else "no"
            raise ApiError(
                401,
                f"The request has {what} API key. Send the header `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    async def _read_body(self, scope: Scope, receive: Receive, held: _Held) -> bytes | None:
        """Read all of the body; `None` if the client went away."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        self._check_size(int(length) if length.isdigit() else 0)
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part, more = message.get("body", b""), message.get("more_body", False)
                    self._check_size(held.bytes + len(part))
                    self._hold(held, len(part))
                    parts.append(part)
        except TimeoutError as error:
            told = f"The body did not come within {self.settings.body_seconds:g} s. Send it faster, or send less."
            raise ApiError(408, told, code="timeout") from error
        return b"".join(parts)

    async def _pass_over(self, scope: Scope, receive: Receive) -> None:
        """Read on for a moment: a client that is still sending would see a broken connection, and no answer."""
        left, expects = self.settings.max_body_bytes, b"expect" in dict(scope["headers"])
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while left > 0 and not expects:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    def _check_size(self, size: int) -> None:
        if size > self.settings.max_body_bytes:
            raise ApiError(
                413,
                f"The body has more than {self.settings.max_body_bytes} bytes, which this server allows. Send fewer "
                "inputs, or smaller pictures.",
                code="body_too_large",
            )

    def _hold(self, held: _Held, size: int) -> None:
        if self.pending + size > self.settings.max_pending_bytes:
            told = "The requests that are being answered fill the memory that they may have. Try again later."
            raise ApiError(429, told, code="server_full", headers={"retry-after": "1"})
        held.bytes += size
        self.pending += size
        self.metrics.pending_bytes.set(self.pending)


class _Held:
    """Count the bytes of one request."""

    bytes = 0


def _replayed(body: bytes, receive: Receive) -> Any:
    """Give the body in one message, and what comes after it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return messages.pop() if messages else await receive()

    return replay


async def _send_error(send: Send, error: ApiError) -> None:
    """Answer, and close the connection: the rest of the body is not waited for."""
    headers = {"content-type": "application/json", "connection": "close", **error.headers}
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": json.dumps(error.body).encode()})
