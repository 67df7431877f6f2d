"""A checkpoint proposes what it would think."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmemb_r1 import MMEmbR1
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training.rationales.checkpoint_worker import CheckpointWorker
from mmemb_r1.training.rationales.pool import make_worker
from mmemb_r1.training.rationales.worker import Failure, Rationale, RationaleRequest, WorkerError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(thinking: Callable[..., MMEmbR1], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    thinking(max_reasoning_tokens=6).save_pretrained(str(folder))
    return folder


@pytest.fixture
def make(checkpoint: Path) -> Callable[..., CheckpointWorker]:
    def make_worker(**keys: Any) -> CheckpointWorker:
        return CheckpointWorker(
            **({"name": "self", "model": str(checkpoint), "max_tokens": 6, "device": "cpu"} | keys)
        )

    return make_worker


@pytest.fixture
def requests(squares) -> list[RationaleRequest]:
    inputs = [
        {"text": "What is the capital of Peru?"},
        {"image": squares[0], "text": "What is this?"},
        {"image": squares[:2], "instruction": "Compare them."},
    ]
    return [RationaleRequest(value, "query", (1, 2, 3)) for value in inputs]


def test_greedily_it_says_what_encode_thinks(make, requests, checkpoint):
    model = MMEmbR1(str(checkpoint), device="cpu")
    expected = model.explain([dict(request.input) for request in requests], reasoning="always")
    drawn = make(temperature=0).draw(requests)
    for answers, explained in zip(drawn, expected, strict=True):
        for answer in answers:
            assert answer.text == explained["rationale"]
            assert answer.num_tokens == explained["num_reasoning_tokens"]


def test_seeds_decide_and_company_does_not(make, requests):
    drawn = make(temperature=1.5).draw(requests)
    assert all(len({answer.text for answer in answers}) > 1 for answers in drawn)
    assert [make(temperature=1.5).draw([request])[0] for request in requests] == drawn
    assert make(temperature=1.5, batch_size=2).draw(requests[::-1]) == drawn[::-1]


def test_control_tokens_are_never_drawn(make, requests, checkpoint):
    """Hot enough to draw any token there is."""
    tokenizer = MMEmbR1(str(checkpoint), device="cpu").tokenizer
    worker = make(temperature=1e6, top_p=1.0, max_tokens=128)
    texts = [answer.text for answers in worker.draw(requests) for answer in answers if isinstance(answer, Rationale)]
    assert texts
    controls = [token.content for token in tokenizer.added_tokens_decoder.values()]
    assert not [token for token in controls if any(token in text for text in texts)]


def test_an_empty_rationale_is_a_failure(make, requests, monkeypatch):
    worker = make()
    end = worker._config.end_think_token_id
    monkeypatch.setattr(
        "mmemb_r1.training.rationales.sampling.choose", lambda logits, *_: torch.full((len(logits),), end)
    )
    assert worker.draw(requests[:1])[0] == [Failure("the rationale is empty (finish_reason 'stop').")] * 3


def test_an_unreadable_input_fails_alone(make, requests):
    bad = RationaleRequest({"image": "nowhere.png"}, "query", (1,))
    first, (failure,) = make().draw([requests[0], bad])
    assert first == make().draw(requests[:1])[0]
    assert "nowhere.png" in failure.reason


def test_in_a_pool_file(checkpoint):
    entry = {"name": "self", "kind": "checkpoint", "model": str(checkpoint), "samples": 2}
    worker = make_worker(entry)
    assert isinstance(worker, CheckpointWorker)
    assert (worker.num_samples, worker.max_tokens) == (2, 128)
    with pytest.raises(ValueError, match="worker 'self': the key 'style' is not known"):
        make_worker({**entry, "style": "instruct"})


def test_what_determines_the_rationales(make):
    definition = make().definition
    assert make(batch_size=1, name="other", num_samples=9).definition == definition
    for change in ({"model": "m"}, {"max_tokens": 9}, {"temperature": 1}, {"top_p": 0.5}, {"dtype": "bfloat16"}):
        assert make(**change).definition != definition


def test_a_model_that_is_no_checkpoint(make, requests, tmp_path):
    vlm, processor = build_tiny_vlm("qwen3_vl")
    vlm.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(WorkerError, match="Worker 'self': `model` can't be used. It is a qwen3_vl model, no mmemb-r1"):
        make(model=str(tmp_path)).draw(requests)
    with pytest.raises(WorkerError, match="Worker 'self': `model` can't be used"):
        make(model=str(tmp_path / "nowhere")).draw(requests)
