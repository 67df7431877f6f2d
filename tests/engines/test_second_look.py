"""With an engine, a second look is that of the local model; an engine that can't is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image
from tests.engines.torch_engine import LikelyTorchEngine, TorchEngine
from tests.engines.vllm_double import VllmDouble
from tests.serving.conftest import running

from mmemb_r1 import MMEmbR1
from mmemb_r1.engines import EngineError, HttpEngine

WEIGHTS = {"bias": 0.5, "mean_logp": 0.6, "least_logp": 0.1, "length": -0.7, "cosine": -1.1, "gate_logit": 0.4}
TEXTS = ["Lima", "word " * 40, {"text": "Oslo", "instruction": "Find the capital."}, "What does <think> mean?"]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
CLOSE = {"atol": 2e-5, "rtol": 0}


@pytest.fixture(scope="module")
def model(thinking: Callable[..., MMEmbR1]) -> MMEmbR1:
    """A model whose second look does something; not to be changed."""
    return thinking(max_reasoning_tokens=4, second_look=WEIGHTS)


@pytest.fixture
def other(model: MMEmbR1) -> MMEmbR1:
    """The same, to be run by an engine."""
    return MMEmbR1.from_model(model[0].model, model.processor)


@pytest.fixture
def double(model: MMEmbR1) -> Iterator[VllmDouble]:
    server = VllmDouble(model)
    yield server
    server.close()


def require_same(found: list[dict], expected: list[dict]) -> None:
    weights = [float(row["second_look_weight"]) for row in expected]
    assert len({round(weight, 3) for weight in weights}) > 2
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("sentence_embedding", "second_look_weight"):
            np.testing.assert_allclose(ours[name], theirs[name], **CLOSE)


@pytest.mark.parametrize("rounds", [1, 2])
def test_an_engine_looks_again_as_the_local_model(model, other, rounds):
    options = {"reasoning": "always", "max_reasoning_rounds": rounds, "output_value": None}
    inputs = [*TEXTS, {"image": PICTURE, "text": "which flag?"}]
    other.engine = LikelyTorchEngine(model)
    require_same(other.encode(inputs, batch_size=1, **options), model.encode(inputs, **options))


def test_servers_of_vllm_do_so(model, other, double):
    other.engine = HttpEngine(double.url, f"{double.url}/v1", concurrency=2)
    options = {"reasoning": "always", "output_value": None}
    require_same(other.encode(TEXTS, **options), model.encode(TEXTS, **options))
    off = other.encode(TEXTS, second_look=False, **options)
    assert all("second_look_weight" not in row for row in off)
    other.engine.close()


def test_a_server_that_tells_no_log_probabilities_is_an_error(other, double):
    other.engine = HttpEngine(double.url, f"{double.url}/v1", verify=False, patience=1.0, max_retries=0)
    double.fault = lambda path, body, number: (
        (200, {"choices": [{"token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0]}}]})
        if path == "/v1/completions"
        else None
    )
    with pytest.raises(EngineError, match="2 tokens and 1 log-probabilities"):
        other.encode(TEXTS, reasoning="always")
    other.engine.close()


def test_an_engine_that_does_not_tell_is_refused_before_it_works(model, other):
    engine = other.engine = TorchEngine(model)
    with pytest.raises(ValueError, match="pass second_look=False"):
        other.encode(TEXTS, reasoning="always")
    assert not engine.asked
    found = other.encode(TEXTS, reasoning="always", second_look=False)
    np.testing.assert_allclose(found, model.encode(TEXTS, reasoning="always", second_look=False), **CLOSE)
    np.testing.assert_allclose(other.encode(TEXTS, reasoning="never"), model.encode(TEXTS, reasoning="never"), **CLOSE)


def test_a_server_of_ours_looks_again_whoever_runs_the_model(model, other):
    texts = [text for text in TEXTS if isinstance(text, str)]
    asked = {"reasoning": "always", "explain": True, "input_type": "query"}
    expected = model.explain(texts, reasoning="always", task="query")
    other.engine = LikelyTorchEngine(model)
    for served in (model, other):
        with running(served) as server:
            for item, wanted in zip(server.embed(texts, **asked)["data"], expected, strict=True):
                np.testing.assert_allclose(item["embedding"], wanted["embedding"], **CLOSE)
                weight = item["explanation"]["second_look_weight"]
                assert weight == pytest.approx(wanted["second_look_weight"], abs=2e-5)
            off = server.embed(texts, second_look=False, **asked)["data"]
            plain = model.encode_query(texts, reasoning="always", second_look=False)
            np.testing.assert_allclose([item["embedding"] for item in off], plain, **CLOSE)
            assert all("second_look_weight" not in item["explanation"] for item in off)
            direct = server.embed(texts, explain=True, reasoning="auto", gate_threshold=1.0)["data"]
            assert {item["explanation"]["second_look_weight"] for item in direct} == {0.0}


def test_our_server_refuses_what_its_engine_can_not_tell(model, other):
    other.engine = TorchEngine(model)
    with running(other) as server:
        status, body, _ = server.ask(body={"model": "tiny", "input": "Lima", "reasoning": "always"})
        assert status == 400 and "pass second_look=False" in body["error"]["message"]
        assert server.vectors(["Lima"], reasoning="always", second_look=False).shape[0] == 1
