"""Servers on loopback that answer as those of vLLM do, by plain transformers calls, and fail as a test says."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.engines.torch_engine import LikelyTorchEngine

from mmemb_r1 import MMEmbR1
from mmemb_r1.engines.protocol import EnginePrompt

Fault = Callable[[str, dict[str, Any], int], tuple[int, Any] | None]


class VllmDouble:
    """
    One server for states and rationales of prompts of text. `fault(path, body, number of requests so far)` gives a
    status and an answer in the place of the right one; the status 0 breaks the connection.
    """

    def __init__(self, model: MMEmbR1, port: int = 0) -> None:
        self.engine = LikelyTorchEngine(model)
        self.engine.start(model[0], writes=True)
        self.fault: Fault = lambda path, body, number: None
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.answer({})

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body: dict[str, Any]) -> None:
                with outer.lock:  # one model, no threads
                    outer.requests.append((self.path, body, dict(self.headers)))
                    wrong = outer.fault(self.path, body, len(outer.requests))
                    status, content = wrong or (200, outer.right(self.path, body))
                if status == 0:
                    self.close_connection = True
                    return
                headers = content.pop("headers", {}) if isinstance(content, dict) else {}
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                with suppress(ConnectionError):
                    self.send_response(status)
                    for name, value in {"Content-Length": len(data), **headers}.items():
                        self.send_header(name, str(value))
                    self.end_headers()
                    self.wfile.write(data)

        ThreadingHTTPServer.allow_reuse_address = True
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def right(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "tiny"}]}
        assert body["model"] == "tiny"
        if path == "/pooling":
            assert body["use_activation"] is False
            states = self.engine.states([EnginePrompt(tuple(ids), len(ids)) for ids in body["input"]])
            data = [base64.b64encode(state.numpy().astype("<f4").tobytes()).decode() for state in states]
            return {"data": [{"index": index, "data": text} for index, text in reversed(list(enumerate(data)))]}
        assert path == "/v1/completions"
        assert body["temperature"] == 0
        assert body["ignore_eos"]
        asked = [EnginePrompt(tuple(body["prompt"]), len(body["prompt"]))], [body["max_tokens"]]
        if "logprobs" not in body:
            return {"choices": [{"token_ids": self.engine.rationales(*asked)[0]}]}
        assert body["logprobs"] == 0
        [(ids, logps)] = self.engine.likely_rationales(*asked)
        return {"choices": [{"token_ids": ids, "logprobs": {"token_logprobs": logps}}]}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
