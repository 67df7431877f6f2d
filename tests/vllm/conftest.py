"""
A tiny model of ours that vLLM serves, and engines that are started once for all tests: `make test-vllm` runs them.

Fixtures, each made when a test first asks for it, and kept until the end:

* `vllm_model`: an `MMEmbR1` over a tiny Qwen3-VL whose heads are 64 wide, the least that vLLM's attention on a CPU
  takes. Its gate depends on the input, and it thinks at most 8 tokens. Not to be changed; `make_vllm_model(...)` makes
  one to change, or one with other fields of the config.
* `vllm_folder`: its export (`mmemb-r1 export vllm`).
* `pooling_llm`, `generating_llm`: engines of `vllm.LLM` over that folder, in this process: states and rationales.
  They take 10 seconds to start. Options of theirs: `LLM_OPTIONS`.
* `pooling_server`, `generating_server`: the same as `vllm serve` gives it, in processes of their own on loopback; half
  a minute each. `.url` is what an OpenAI client takes as its base URL, `.name` the served name.
* `chat_engine`: options of a chat model that the package starts itself, in this process: those of `LLM_OPTIONS` that
  can be the `engine` of a worker or an evaluator, and blocks of 32 tokens, so that short prompts share some.
* `picture_part(picture)`: a picture as a part of a chat message to a server.
* `start_server(folder, "--runner", "pooling", ...)`: another one, to kill and to restart; it ends with the test.

Modules of tests import vLLM inside of tests and fixtures, so that they are collected where it is not installed.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmemb_r1 import MMEmbR1
from mmemb_r1.export import export_vllm

_CACHE = tempfile.TemporaryDirectory(prefix="mmemb-r1-vllm-")
SETTINGS = {  # vLLM reads them when it is imported
    "VLLM_CACHE_ROOT": _CACHE.name,
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB of an engine
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines share these cores with the tests
    "VLLM_HOST_IP": "127.0.0.1",  # it looks for an address with a route to the Internet otherwise
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
os.environ |= SETTINGS

LLM_OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "max_num_seqs": 16,
    "limit_mm_per_prompt": {"image": 4, "video": 1},
    "seed": 0,
}
SERVER_OPTIONS = (
    "--dtype=float32",
    "--enforce-eager",
    "--max-model-len=1024",
    "--max-num-seqs=16",
    '--limit-mm-per-prompt={"image": 4, "video": 1}',
    "--disable-uvicorn-access-log",
)
SIZES = {"hidden_size": 128, "num_heads": 2, "num_layers": 2}  # heads of 64
NAME = "tiny"
START = 600  # seconds after which a server that does not answer is given up


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what lies here where there is no vLLM, and say so; `make test-vllm` does not skip."""
    if find_spec("vllm") is None and "MMEMB_R1_VLLM" not in os.environ:
        here = Path(__file__).parent
        for item in items:
            if item.path.is_relative_to(here):
                item.add_marker(pytest.mark.skip(reason="needs vLLM: make test-vllm"))


@pytest.fixture(scope="session")
def make_vllm_model(thinking: Callable[..., MMEmbR1]) -> Callable[..., MMEmbR1]:
    """`make_vllm_model(family, **config)`: a tiny model of heads that vLLM takes."""

    def make(family: str = "qwen3_vl", **config: Any) -> MMEmbR1:
        model = thinking(family, sizes=SIZES, scale=4, **{"max_reasoning_tokens": 8, **config})
        tokenizer, ours = model.tokenizer, model[0].model.config
        parts = [number for number in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([number])]
        ours.suppressed_token_ids = sorted({*(ours.suppressed_token_ids or []), *parts})  # writes whole characters
        return model

    return make


@pytest.fixture(scope="session")
def vllm_model(make_vllm_model: Callable[..., MMEmbR1]) -> MMEmbR1:
    return make_vllm_model()


@pytest.fixture(scope="session")
def vllm_folder(vllm_model: MMEmbR1, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "vllm"
    export_vllm(vllm_model, folder, name=NAME)
    return folder


@pytest.fixture(scope="session")
def make_llm() -> Iterator[Callable[..., Any]]:
    """`make_llm(folder, **options)`: an engine in this process."""
    # in a process of its own it would be one more that has to be ended
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    engines = []

    def make(folder: Path, **options: Any) -> Any:
        engines.append(LLM(str(folder), **{**LLM_OPTIONS, **options}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="session")
def chat_engine() -> dict[str, Any]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return {"block_size": 32} | {name: value for name, value in LLM_OPTIONS.items() if name not in ("dtype", "seed")}


@pytest.fixture(scope="session")
def pooling_llm(make_llm: Callable[..., Any], vllm_folder: Path) -> Any:
    return make_llm(vllm_folder, runner="pooling", convert="embed")


@pytest.fixture(scope="session")
def generating_llm(make_llm: Callable[..., Any], vllm_folder: Path) -> Any:
    return make_llm(vllm_folder)


@pytest.fixture(scope="session")
def picture_part() -> Callable[[Image.Image], dict[str, Any]]:
    """`picture_part(picture)`: a part of a chat message, as OpenAI's clients send it."""

    def part(picture: Image.Image) -> dict[str, Any]:
        stream = BytesIO()
        picture.save(stream, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    return part


class Server:
    """`vllm serve` in a process of its own, on a port of loopback that it keeps when it is started again."""

    def __init__(self, folder: Path, *options: str, log: Path) -> None:
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.name, self.log = NAME, log
        # what `vllm serve` runs; that itself asks for a distribution named vllm, which vllm-cpu is not
        self._command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={folder}"]
        self._command += ["--host=127.0.0.1", f"--port={self.port}", f"--served-model-name={NAME}", *SERVER_OPTIONS]
        self._command += options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> str:
        """Of the paths that OpenAI does not have, such as `/pooling` and `/health`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def start(self) -> Server:
        """Start it, and wait until it answers."""
        # its engine is a child; one that is in the same process is none that a server can have
        environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True, env=environment | SETTINGS
            )
        end = time.monotonic() + START
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"vLLM did not start:\n{self.log.read_text(errors='replace')[-8000:]}")
            time.sleep(0.5)
        return self

    def ask(self, path: str, **body: Any) -> Any:
        """Send a request that names the model; return the JSON that is answered."""
        sent = json.dumps({"model": self.name, **body}).encode()
        request = urllib.request.Request(f"{self.url}/{path}", sent, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    @staticmethod
    def vectors(answer: Any) -> np.ndarray:
        """Read the vectors `(N, D)` in an answer to a request with `encoding_format="base64"`."""
        return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in answer["data"]])

    def kill(self) -> None:
        """End it and its children at once; what it was doing is lost."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.root}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


def _serving(folder: Path, *options: str, log: Path) -> Iterator[Server]:
    server = Server(folder, *options, log=log)
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(scope="session")
def pooling_server(vllm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("pooling-server") / "log"
    yield from _serving(vllm_folder, "--runner=pooling", "--convert=embed", log=log)


@pytest.fixture(scope="session")
def generating_server(vllm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _serving(vllm_folder, log=tmp_path_factory.mktemp("generating-server") / "log")


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(folder: Path, *options: str) -> Server:
        servers.append(Server(folder, *options, log=tmp_path / f"server-{len(servers)}.log"))
        return servers[-1].start()

    yield start
    for server in servers:
        server.kill()
