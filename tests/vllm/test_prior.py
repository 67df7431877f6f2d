"""The worker on vLLM draws what the transformers worker draws, up to the random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from mmemb_r1.training.rationales.draw import draw_rationales
from mmemb_r1.training.rationales.prompting import request_conversation
from mmemb_r1.training.rationales.table import read_rationales
from mmemb_r1.training.rationales.transformers_worker import TransformersWorker
from mmemb_r1.training.rationales.vllm_worker import VllmWorker
from mmemb_r1.training.rationales.worker import Failure, Rationale, RationaleRequest, WorkerError
from mmemb_r1.training.shared_prefix import read_prefix

K = 8


def picture(seed, size=(64, 64)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def request(seed, seeds=tuple(range(K)), **parts):
    return RationaleRequest({"text": f"What is number {seed}?", **parts}, "query", seeds)


REQUESTS = [
    request(0, image=[picture(0), picture(1, (96, 64))]),
    request(1),
    request(2, image=picture(2), instruction="Name the color."),
    request(3, text="A long text. " * 20),
    request(4, video=[picture(place) for place in range(3, 7)]),
]


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    """A short one: the tiny tokenizer makes hundreds of tokens of the real ones."""
    path = tmp_path_factory.mktemp("styles") / "short.txt"
    path.write_text("# rationale: answer\nDescribe it.", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def make(vllm_folder, style, chat_engine):
    """`make(**keys)`: a worker on vLLM; those that start it are closed by the tests."""

    def make_worker(**keys):
        keys = {"name": "fast", "max_tokens": 12, "engine": chat_engine, "num_samples": K} | keys
        return VllmWorker(model=str(vllm_folder), style=style, **keys)

    return make_worker


@pytest.fixture(scope="module")
def worker(make):
    worker = make(engine={**make().engine, "disable_log_stats": False})  # so that it counts tokens
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def slow(vllm_folder, style):
    return TransformersWorker(
        name="slow", model=str(vllm_folder), style=style, max_tokens=12, device="cpu", num_samples=K
    )


@pytest.fixture
def other(worker, monkeypatch):
    """`other(**keys)`: a worker with other keys of sampling and the same vLLM."""

    def make_other(**keys):
        for key, value in keys.items():
            monkeypatch.setattr(worker, key, value)
        return worker

    return make_other


def test_greedy_rationales_are_the_same(other, slow, monkeypatch):
    monkeypatch.setattr(slow, "temperature", 0)
    expected = slow.draw(REQUESTS)
    assert other(temperature=0).draw(REQUESTS) == expected
    assert all(isinstance(answer, Rationale) for answers in expected for answer in answers)
    assert len({answers[0].text for answers in expected}) == len(REQUESTS)


def test_rationales_are_drawn_per_seed_and_company_does_not_matter(worker, other):
    drawn = worker.draw(REQUESTS)
    assert [len(answers) for answers in drawn] == [K] * len(REQUESTS)
    for answers in drawn:
        assert len({answer.text for answer in answers}) > K // 2
        for answer in answers:
            assert answer.finish_reason == ("length" if answer.num_tokens == 12 else "stop")
    assert worker.draw(REQUESTS[::-1]) == drawn[::-1]
    assert [worker.draw([one])[0] for one in REQUESTS] == drawn
    assert other(batch_size=2).draw(REQUESTS) == drawn
    seeds = tuple(range(100, 100 + K))
    assert worker.draw([RationaleRequest(REQUESTS[0].input, "query", seeds)])[0] != drawn[0]


@pytest.mark.parametrize("sampling", [{"temperature": 0.9, "top_p": 0.95}, {"temperature": 0.5, "top_p": 0.8}])
def test_tokens_are_drawn_from_the_same_distribution(other, slow, sampling):
    """Of the first token, whose probabilities are known."""
    count = 4000
    probabilities = {}
    for one in REQUESTS[:2]:
        vlm, _ = slow._loaded
        logits = read_prefix(vlm, slow._prompts([slow._conversation(one)])).logits[0]
        sorted_, ids = (logits / sampling["temperature"]).softmax(dim=-1).sort(descending=True)
        within = sorted_.cumsum(dim=-1) - sorted_ < sampling["top_p"]  # the first ones that reach it together
        expected = torch.zeros_like(logits).index_put((ids[within],), sorted_[within] / sorted_[within].sum())
        chat = other(max_tokens=1, **sampling)._chat
        params = other()._params(range(count))
        (output,) = chat.generate([chat.prompt(slow._conversation(one))], [params])
        drawn = torch.tensor([answer.token_ids[0] for answer in output.outputs])
        shares = torch.bincount(drawn, minlength=len(expected)) / count
        assert not shares[expected == 0].any()
        assert (
            float((shares - expected).abs().sum() / 2) < 0.12
        )  # of as many draws from it, the distance is about 0.07
        probabilities[float(expected.max())] = one
    assert len(probabilities) == 2


def computed(worker):
    """Count the tokens that vLLM was asked to read, and those that it found in its cache."""
    values = {metric.name: metric.value for metric in worker._chat.llm.get_metrics() if hasattr(metric, "value")}
    return values["vllm:prefix_cache_queries"], values["vllm:prefix_cache_hits"]


def test_a_prompt_is_read_once_for_all_its_rationales(worker):
    long = request(77, text="Never asked before. " * 20)
    length = len(worker._chat.prompt(request_conversation(worker._style, long)).token_ids)
    queries, hits = computed(worker)
    worker.draw([long])
    asked, found = (after - before for after, before in zip(computed(worker), (queries, hits), strict=True))
    assert asked == K * length
    assert found >= (K - 1) * ((length - 1) // 32 * 32)  # in whole blocks
    assert asked - found < 2 * length


def test_an_input_that_can_not_be_read_fails_alone(worker, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    many = [picture(2)] * 5  # more than vLLM was told to take
    bad = [
        request(0, image=str(tmp_path / "broken.png")),
        request(1, text="far too long " * 400),
        request(2, image=many),
    ]
    mixed = [bad[0], REQUESTS[0], bad[1], REQUESTS[2], bad[2]]
    drawn = worker.draw(mixed)
    assert [drawn[1], drawn[3]] == worker.draw([REQUESTS[0], REQUESTS[2]])
    for place, reason in (
        (0, "can't be read"),
        (2, "maximum context length is 1024"),
        (4, "does not take it: At most 4"),
    ):
        assert len(drawn[place]) == K
        assert all(isinstance(answer, Failure) and reason in answer.reason for answer in drawn[place]), drawn[place]


def test_a_pool_draws_the_same_table(worker, other, slow, monkeypatch, tmp_path):
    """Up to the random numbers: greedily, the tables of both workers are the same; and a run that broke is resumed."""
    monkeypatch.setattr(slow, "temperature", 0)
    pairs = Dataset.from_list(
        [
            {"pair_id": f"p{place}", "query": {"text": f"What is {place}?"}, "target": {"text": f"It is {place % 3}."}}
            for place in range(7)
        ]
    )
    greedy = other(temperature=0)
    draw_rationales(pairs, [slow, greedy], tmp_path / "whole", shard_size=3)
    rows = read_rationales(tmp_path / "whole").to_pandas()
    parts = [rows[rows["worker"] == name].drop(columns=["worker", "seed"]) for name in ("slow", "fast")]
    keys = ["pair_id", "side", "sample"]
    first, second = (part.sort_values(keys).reset_index(drop=True) for part in parts)
    assert len(first) == 2 * 7 * K and first.equals(second)

    real, calls = greedy.draw, []

    def breaking(requests):
        calls.append(len(requests))
        if len(calls) == 3:
            raise WorkerError("it broke")
        return real(requests)

    monkeypatch.setattr(greedy, "draw", breaking)
    with pytest.raises(WorkerError, match="it broke"):
        draw_rationales(pairs, [greedy], tmp_path / "broken", shard_size=3)
    summary = draw_rationales(pairs, [greedy], tmp_path / "broken", shard_size=3)
    assert summary.workers[0].skipped == 2
    again = read_rationales(tmp_path / "broken").to_pandas()
    expected = rows[rows["worker"] == "fast"]
    assert again.sort_values(keys).reset_index(drop=True).equals(expected.sort_values(keys).reset_index(drop=True))


def test_what_was_interrupted_is_not_answered_to_the_next_one(worker, monkeypatch):
    expected = worker.draw(REQUESTS[1:2])

    def interrupted(**_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(worker._chat.llm, "wait_for_completion", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.draw(REQUESTS)
    assert not worker._chat.llm.llm_engine.has_unfinished_requests()
    assert worker.draw(REQUESTS[1:2]) == expected


def test_a_worker_whose_vllm_has_died_stops_the_run_and_draws_again(make, monkeypatch):
    from vllm.v1.engine.exceptions import EngineDeadError

    def dead(**_):
        raise EngineDeadError

    worker = make(num_samples=2)
    drawn = worker.draw(REQUESTS[1:2])
    monkeypatch.setattr(worker._chat.llm, "wait_for_completion", dead)
    with pytest.raises(WorkerError, match="Worker 'fast': vLLM has died .*run the same command again"):
        worker.draw(REQUESTS[1:2])
    assert "_chat" not in vars(worker)  # it was closed
    assert worker.draw(REQUESTS[1:2]) == drawn
    worker.close()


def test_a_real_vllm_refuses_options_that_it_does_not_have(make):
    for engine, message in (
        ({"max_model_length": 9}, "did you mean 'max_model_len'"),
        ({"max_model_len": -5}, "start"),
    ):
        with pytest.raises(WorkerError, match=f"Worker 'fast': `model` can't be used with vLLM. .*{message}"):
            make(engine=engine).draw(REQUESTS[1:2])
