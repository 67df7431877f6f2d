"""A real vLLM, in process and over HTTP, gives what the local model gives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.vllm.conftest import LLM_OPTIONS, Server

from mmemb_r1 import MMEmbR1
from mmemb_r1.engines import EngineError, HttpEngine, VllmEngine
from mmemb_r1.engines.connection import Connection
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError

RELATIVE = 1e-3  # of states
CLOSE = 1e-3  # gate probabilities that are nearer to the threshold may be on the other side


def _picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def sixty_inputs() -> list[Any]:
    """Texts, pictures, both, two pictures, and long ones."""
    rng = np.random.default_rng(0)
    inputs: list[Any] = [f"What is the capital of country number {number}?" for number in range(14)]
    inputs += [{"text": f"Oslo {number}", "instruction": "Find the capital."} for number in range(6)]
    inputs += [f"{number} " + "a longer text about a flag and its colours " * (2 + number) for number in range(10)]
    inputs += [{"image": _picture(rng, 40 + 8 * number, 56)} for number in range(10)]
    inputs += [{"image": _picture(rng, 64, 40 + 8 * number), "text": f"flag {number}?"} for number in range(10)]
    inputs += [
        {"image": [_picture(rng, 48, 48), _picture(rng, 32 + 8 * number, 64)], "text": "the same?"}
        for number in range(10)
    ]
    return inputs


WAYS = {
    "never": {"reasoning": "never"},
    "always": {"reasoning": "always"},
    "auto": {"reasoning": "auto"},
    "two rounds": {"reasoning": "always", "max_reasoning_rounds": 2},
}


@pytest.fixture(scope="session")
def in_process(vllm_folder: Path) -> Iterator[MMEmbR1]:
    options = {name: value for name, value in LLM_OPTIONS.items() if name != "seed"}
    model = MMEmbR1(str(vllm_folder), engine=VllmEngine(vllm_folder, **options))
    yield model
    model.engine.close()


@pytest.fixture(scope="session")
def over_http(vllm_folder: Path, pooling_server: Server, generating_server: Server) -> Iterator[MMEmbR1]:
    model = MMEmbR1(str(vllm_folder), engine=f"{pooling_server.root},{generating_server.url}")
    yield model
    model.engine.close()


@pytest.fixture(scope="session")
def expected(vllm_model: MMEmbR1) -> Callable[[str], list[dict[str, Any]]]:
    known: dict[str, list[dict[str, Any]]] = {}

    def rows_of(way: str) -> list[dict[str, Any]]:
        if way not in known:
            known[way] = vllm_model.encode(sixty_inputs(), output_value=None, **WAYS[way])
        return known[way]

    return rows_of


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ["in_process", "over_http"])
def test_vllm_gives_what_the_local_model_gives(request, expected, vllm_model, engine, way):
    model = request.getfixturevalue(engine)
    found, wanted = model.encode(sixty_inputs(), output_value=None, **WAYS[way]), expected(way)
    threshold = vllm_model[0].model.config.gate_threshold
    clear = [abs(float(row["gate_prob"]) - threshold) > CLOSE for row in wanted]
    assert len(found) == len(wanted) == 60
    assert sum(clear) > 50
    for place, (row, right) in enumerate(zip(found, wanted, strict=True)):
        if way == "auto" and not clear[place]:
            continue
        assert row["reasoned"] == right["reasoned"], place
        assert row["num_reasoning_rounds"] == right["num_reasoning_rounds"], place
        ids = [[int(token) for token in one["rationale_ids"] if token >= 0] for one in (row, right)]
        assert ids[0] == ids[1], place
        assert row["num_forced_closings"] == right["num_forced_closings"], place
        assert abs(float(row["gate_prob"]) - float(right["gate_prob"])) < CLOSE, place
        vectors = [one["sentence_embedding"].numpy() for one in (row, right)]
        assert np.linalg.norm(vectors[0] - vectors[1]) <= RELATIVE * np.linalg.norm(vectors[1]), place
    if way == "auto":
        assert 5 < sum(bool(row["reasoned"]) for row in found) < 55


LOOK = {"bias": 2.0, "mean_logp": 0.8, "least_logp": 0.1, "length": -0.7, "cosine": -1.1, "gate_logit": 0.4}


@pytest.mark.parametrize("engine", ["in_process", "over_http"])
def test_vllm_looks_again_as_the_local_model(request, vllm_model, engine):
    """What vLLM says of the likelihood of its tokens is what the local model says; also after pictures."""
    model = request.getfixturevalue(engine)
    inputs = sixty_inputs()[::5]
    configs = [one[0].model.config for one in (model, vllm_model)]
    before = [config.repository_format for config in configs]
    try:
        for config in configs:
            config.second_look = LOOK
        found, wanted = (one.encode(inputs, reasoning="always", output_value=None) for one in (model, vllm_model))
    finally:
        for config, number in zip(configs, before, strict=True):
            config.second_look, config.repository_format = None, number
    weights = np.array([[float(row["second_look_weight"]) for row in rows] for rows in (found, wanted)])
    assert weights[1].std() > 0.01
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-3)
    for row, right in zip(found, wanted, strict=True):
        np.testing.assert_allclose(row["sentence_embedding"], right["sentence_embedding"], atol=RELATIVE)


def test_a_server_that_is_killed_is_waited_for(vllm_folder, start_server, expected, monkeypatch):
    """It is killed while it answers, and starts again at the same address: each input has its vector, once."""
    server = start_server(vllm_folder, "--runner=pooling", "--convert=embed")
    engine = HttpEngine(server.root, patience=600, concurrency=2)
    model = MMEmbR1(str(vllm_folder), engine=engine)
    model.encode("Lima", reasoning="never")
    post, asked, starting = Connection.post, [], []

    def watched(connection: Connection, path: str, body: dict[str, Any]) -> Any:
        asked.append(path)
        if len(asked) == 8:
            server.kill()
            starting.append(threading.Thread(target=server.start))
            starting[0].start()
        return post(connection, path, body)

    monkeypatch.setattr(Connection, "post", watched)
    found = model.encode(sixty_inputs(), reasoning="never", output_value=None)
    starting[0].join()
    assert len(asked) > 20
    for row, right in zip(found, expected("never"), strict=True):
        np.testing.assert_allclose(row["sentence_embedding"], right["sentence_embedding"], atol=RELATIVE)
    engine.close()


def test_what_vllm_refuses_names_the_input(in_process, over_http):
    inputs = ["Lima", "Oslo", "a word " * 2000, "Rome"]
    for model in (in_process, over_http):
        with pytest.raises(InputError, match="refuses it") as error:
            model.encode(inputs, reasoning="never")
        assert error.value.index == 2


def test_a_server_of_another_model_is_refused(vllm_folder, make_vllm_model, pooling_server):
    other = make_vllm_model("qwen2_5_vl")
    other.engine = HttpEngine(pooling_server.root)
    with pytest.raises(EngineError, match="runs another model"):
        other.encode("Lima", reasoning="never")
    server_of_texts = MMEmbR1(str(vllm_folder), engine=HttpEngine(pooling_server.root, pooling_server.root))
    with pytest.raises(EngineError):  # it reads, and does not write
        server_of_texts.encode("Lima", reasoning="always")
