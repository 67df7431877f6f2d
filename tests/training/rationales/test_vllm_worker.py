"""The keys of a worker on vLLM, and what it refuses; tests/vllm/test_prior.py draws with a real one."""

from __future__ import annotations

import json
import sys

import pytest

from mmemb_r1.training.rationales.pool import load_pool
from mmemb_r1.training.rationales.vllm_worker import VllmWorker
from mmemb_r1.training.rationales.worker import RationaleRequest, WorkerError

REQUEST = RationaleRequest({"text": "What is it?"}, "query", (1, 2))


def make(**keys):
    return VllmWorker(**({"name": "fast", "model": "org/vlm"} | keys))


def test_a_pool_names_it_beside_the_others(tmp_path):
    (tmp_path / "pool.yaml").write_text(
        """
samples: 8
workers:
  - name: fast
    kind: vllm
    model: Qwen/Qwen3-VL-8B-Instruct
    temperature: 0.7
    engine: {tensor_parallel_size: 2, max_model_len: 16384}
""",
        encoding="utf-8",
    )
    (worker,) = load_pool(tmp_path / "pool.yaml")
    assert worker == make(
        model="Qwen/Qwen3-VL-8B-Instruct",
        num_samples=8,
        temperature=0.7,
        engine={"tensor_parallel_size": 2, "max_model_len": 16384},
    )


def test_definition():
    worker = make()
    assert json.loads(json.dumps(worker.definition)) == worker.definition
    speed = {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.5}
    assert make(batch_size=1, name="other", num_samples=9, engine=speed).definition == worker.definition
    for change in (
        {"model": "m"}, {"style": "thinking"}, {"max_tokens": 9}, {"temperature": 1}, {"top_p": 0.5},
        {"dtype": "bfloat16"}, {"max_image_tokens": 64}, {"engine": {"quantization": "fp8"}},
    ):  # fmt: skip
        assert make(**change).definition != worker.definition


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "", "a folder or an ID"),
        ("num_samples", 0, "a whole number from 1 on"),
        ("max_tokens", 1.5, "a whole number from 1 on"),
        ("batch_size", True, "a whole number from 1 on"),
        ("temperature", 0.001, r"0 \(greedy\), or 0.01 to 2"),
        ("temperature", 2.1, r"0 \(greedy\), or 0.01 to 2"),
        ("temperature", None, r"0 \(greedy\), or 0.01 to 2"),
        ("top_p", 0, "more than 0, up to 1"),
        ("dtype", "int4", "auto, float32"),
        ("max_image_tokens", 0, "a whole number from 1 on, or null"),
        ("engine", ["max_model_len"], "options of vLLM's LLM by name"),
    ],
)
def test_wrong_keys_are_named(key, value, message):
    with pytest.raises(ValueError, match=f"Worker 'fast': `{key}` is .*; allowed: .*{message}"):
        make(**{key: value})


def test_an_option_that_has_a_key_of_its_own_is_refused():
    with pytest.raises(ValueError, match="Worker 'fast': `engine` holds 'dtype', which is decided elsewhere"):
        make(engine={"dtype": "float32"})


def test_without_vllm_it_stops_the_run_when_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    worker = make()
    worker.close()  # nothing was started
    with pytest.raises(WorkerError, match=r"Worker 'fast': `model` can't be used with vLLM. .*'mmemb-r1\[vllm\]'"):
        worker.draw([REQUEST])
