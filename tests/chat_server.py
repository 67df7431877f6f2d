"""A chat endpoint on this machine that does as a test says."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mmemb_r1.training.rationales.openai_worker import OpenAIWorker
from mmemb_r1.training.rationales.worker import RationaleRequest


@dataclass
class Reply:
    """What the server does with one request."""

    content: str = "It is red."
    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False
    contents: list[str] | None = None  # of several choices

    def data(self) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": self.content}}).encode()
        choices = [
            {"index": index, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
            for index, content in enumerate(self.contents or [self.content])
        ]
        usage = {"completion_tokens": 5 * len(choices)}
        return json.dumps({"choices": choices[::-1], "usage": usage}).encode()


class Server:
    """A chat endpoint on loopback that answers as `reply(request, number of requests so far)` says."""

    def __init__(self, port: int = 0) -> None:
        self.reply: Callable[[dict[str, Any], int], Reply] = lambda body, number: Reply(f"seed {body.get('seed')}")
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.active = self.most_active = self.connections = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                outer.connections += 1

            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Http(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

        self._http = Http(("127.0.0.1", port), Handler)
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            self.requests.append(body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.times.append(time.monotonic())
            number = len(self.requests)
            self.active += 1
            self.most_active = max(self.most_active, self.active)
        reply = self.reply(body, number)
        self._closing.wait(reply.delay)
        with self._lock:
            self.active -= 1
        handler.close_connection = reply.drop or self._closing.is_set()
        if handler.close_connection:
            return
        data = reply.data()
        with suppress(ConnectionError):  # a client that stopped does not wait for answers
            handler.send_response(reply.status)
            for name, value in {"content-type": "application/json", **reply.headers}.items():
                handler.send_header(name, value)
            handler.send_header("content-length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)

    def close(self) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()


def worker(server: Server | str, **options: Any) -> OpenAIWorker:
    url = server if isinstance(server, str) else server.url
    return OpenAIWorker(**{"name": "w", "model": "m", "base_url": url, "max_retries": 2, "patience": 0.0, **options})


def request(text: str = "red?", seeds: tuple[int, ...] = (1, 2), **fields: Any) -> RationaleRequest:
    return RationaleRequest({"text": text, **fields}, "query", seeds)


def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]
