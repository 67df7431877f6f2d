"""Inputs that other processes prepare are those that this one prepares, whatever becomes of the processes."""

from __future__ import annotations

import os
import signal

import numpy as np
import psutil
import pytest
import torch
from tests.engines.torch_engine import TorchEngine
from tests.serving.conftest import data_url, running, wait_until

from mmemb_r1.modeling.decoding_mmemb_r1 import Sampling
from mmemb_r1.modeling.scheduling_mmemb_r1 import ReasoningOptions
from mmemb_r1.serving.executor import Prepared, Row
from mmemb_r1.serving.preparing import Preparation, PreparingProcesses
from mmemb_r1.serving.running import executor_of
from mmemb_r1.serving.settings import ServerSettings

NEVER = ReasoningOptions("never", 0.5, 4, 1, Sampling())
GIVEN = [
    ("Lima", None),
    ({"text": "a flag " * 9}, "Find it."),
    ({"image": data_url("red")}, None),
    ({"image": data_url("blue", 90), "text": "which?"}, "Find it."),
    ({"text": "word " * 400}, None),  # longer than is allowed
    ({"image": "data:image/png;base64,AAAA"}, None),  # no picture
]


def rows() -> list[Row]:
    return [
        Row({"text": value} if isinstance(value, str) else value, NEVER, prompt, "image" in value, index)
        for index, (value, prompt) in enumerate(GIVEN)
    ]


@pytest.fixture(scope="module")
def preparation(model) -> Preparation:
    return Preparation(model.processor, model[0].model.config, max_input_tokens=300)


@pytest.fixture(scope="module")
def processes(preparation):
    made = PreparingProcesses(preparation, 1)
    yield made
    made.close()


def children() -> list[int]:
    """The processes that prepare, which belong to this one."""
    living = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    return [one.pid for one in living if any("spawn_main" in word for word in one.cmdline())]


def test_they_prepare_what_this_process_prepares(preparation, processes):
    found, expected = processes.prepare(rows()), preparation.prepare(rows())
    assert [type(one) for one in expected] == [Prepared] * 4 + [ValueError] * 2
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours) is type(theirs)
        if isinstance(theirs, ValueError):
            assert str(ours) == str(theirs)
            continue
        assert (ours.tokens, ours.kind, ours.features.keys()) == (theirs.tokens, theirs.kind, theirs.features.keys())
        for name, value in theirs.features.items():
            assert torch.equal(ours.features[name], value)


@pytest.mark.slow
def test_a_process_that_dies_is_replaced(preparation, monkeypatch):
    before = set(children())
    processes = PreparingProcesses(preparation, 1)
    try:
        assert len(processes.prepare(rows()[:1])) == 1
        (first,) = set(children()) - before
        os.kill(first, signal.SIGKILL)
        assert isinstance(processes.prepare(rows()[:1])[0], Prepared)
        (second,) = set(children()) - before - {first}
        monkeypatch.setattr(processes, "_preparation", None)  # with which none can work
        os.kill(second, signal.SIGKILL)
        with pytest.raises(RuntimeError):
            processes.prepare(rows()[:1])
    finally:
        processes.close()
    wait_until(lambda: not set(children()) - before)


@pytest.mark.slow
def test_a_server_with_such_processes_gives_the_vectors_of_encode(model):
    before = set(children())
    inputs = ["Lima", {"image": data_url("green"), "text": "which flag?"}, {"image": data_url("red", 60)}, "b " * 30]
    with running(model, prepare_processes=1) as served:
        for mode in ("never", "always"):
            expected = model.encode_query(
                [{"text": one} if isinstance(one, str) else one for one in inputs], reasoning=mode
            )
            found = served.vectors(inputs, reasoning=mode, input_type="query")
            np.testing.assert_allclose(found, expected, atol=1e-6)
        assert "tokens, and this server reads" in served.error(400, input="word " * 20_000)["message"]
        (only,) = set(children()) - before
        os.kill(only, signal.SIGKILL)
        wait_until(lambda: only not in children())
        np.testing.assert_allclose(
            served.vectors(inputs, reasoning="never", input_type="query"),
            model.encode_query([{"text": one} if isinstance(one, str) else one for one in inputs], reasoning="never"),
            atol=1e-6,
        )
    wait_until(lambda: not set(children()) - before)


def test_an_engine_prepares_by_itself(thinking):
    model = thinking()
    model.engine = TorchEngine(model)
    with pytest.raises(ValueError, match="prepare_processes=1 is for a model that runs in this process"):
        executor_of(model, ServerSettings(prepare_processes=1))
