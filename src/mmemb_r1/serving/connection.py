"""Speak HTTP with clients that may be slow, or many."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from mmemb_r1.serving.settings import ServerSettings

_FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class GuardedProtocol(H11Protocol):
    """
    Close connections whose headers do not come, or that take no answers; uvicorn waits for both without end.

    `settings` are those of the server; see [`protocol_of`].
    """

    settings: ClassVar[ServerSettings]
    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            transport.write(_FULL)
            transport.close()
        else:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_between_requests():
            self._await_headers()
        super().data_received(data)
        if not self._is_between_requests():
            self._headers_came()

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_headers(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.settings.header_seconds, self._end)

    def _headers_came(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def on_response_complete(self) -> None:
        self._headers_came()  # uvicorn's own timer is for what comes between requests
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _watch_writing(self, size: int) -> None:
        self._write_timer = self.loop.call_later(self.settings.write_seconds, self._check_writing, size)

    def _check_writing(self, before: int) -> None:
        """End the connection if the client took nothing since."""
        size = self.transport.get_write_buffer_size()
        if size >= before:
            self._end()
        else:
            self._watch_writing(size)

    def _end(self) -> None:
        self._disarm()
        self.transport.abort()

    def _disarm(self) -> None:
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._header_timer = self._write_timer = None


def protocol_of(settings: ServerSettings) -> type[GuardedProtocol]:
    """Make the protocol of a server with these limits."""
    return type("ServerProtocol", (GuardedProtocol,), {"settings": settings})
