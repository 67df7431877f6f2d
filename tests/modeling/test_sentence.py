"""The sentence-transformers module: what training and encoding see of the model."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from mmemb_r1.modeling.options_mmemb_r1 import REASONING_OPTIONS
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module


@pytest.fixture
def module(qwen):
    return MMEmbR1Module(qwen.model, qwen.processor)


def test_one_input_is_one_row(module, qwen, mixed, close):
    features = module.preprocess(mixed)
    with torch.no_grad():
        output = module(features, reasoning="always")
    expected = qwen.embed(mixed, reasoning="always")
    close(output["sentence_embedding"], expected.embeddings)
    assert output["num_reasoning_tokens"].tolist() == expected.num_reasoning_tokens.tolist()
    assert {len(value) for value in output.values()} == {len(mixed)}


def test_a_prompt_is_the_system_turn(module, draw):
    inputs = ["Lima", draw(0), {"text": "Lima", "instruction": "Find it."}]
    with_prompt = module.preprocess(inputs, prompt="Represent this.")["input_ids"]
    texts = module.tokenizer.batch_decode(with_prompt)
    assert ["Represent this." in text for text in texts] == [True, True, False]
    assert "Find it." in texts[2]
    assert torch.equal(
        module.preprocess(inputs[2:], prompt="Represent this.")["input_ids"],
        module.preprocess(inputs[2:])["input_ids"],
    )
    assert torch.equal(module.preprocess(["Lima"], prompt="")["input_ids"], module.preprocess(["Lima"])["input_ids"])


def test_with_gradients_nothing_is_decoded(module, mixed, close):
    features = module.preprocess(mixed)
    output = module(features)
    assert not output["reasoned"].any()
    with pytest.raises(ValueError, match="reasoning='always' has no gradient; wrap the call in torch.no_grad"):
        module(features, reasoning="always")
    assert output["sentence_embedding"].requires_grad
    with torch.no_grad():
        close(output["sentence_embedding"], module(features, reasoning="never")["sentence_embedding"])
        assert module(features, reasoning="always")["reasoned"].all()


def test_modalities(tiny):
    modalities = MMEmbR1Module(tiny.model, tiny.processor).modalities
    assert modalities == ["text", "image", *["video"] * tiny.takes_videos, "message"]


def test_limits_are_the_configs(make_tiny):
    tiny = make_tiny("qwen3_vl", embedding_dim=24, max_text_tokens=64, num_video_frames=2)
    module = MMEmbR1Module(tiny.model, tiny.processor)
    assert (module.max_seq_length, module.get_embedding_dimension()) == (64, 24)
    long = module.preprocess(["Lima " * 500])["input_ids"]
    module.max_seq_length = 8
    assert tiny.model.config.max_text_tokens == 8
    assert module.preprocess(["Lima " * 500])["input_ids"].shape[1] < long.shape[1] < 90
    module.max_seq_length = None
    assert module.preprocess(["Lima " * 500])["input_ids"].shape[1] > 500
    assert module.tokenizer is tiny.processor.tokenizer
    tiny.model.config.truncate_dim = 8
    assert module.get_embedding_dimension() == 8
    assert set(module.forward_kwargs) == {*REASONING_OPTIONS, "decode_batch_size", "task", "allow_remote_media"}


def test_save_and_load(make_tiny, mixed, tmp_path, close):
    tiny = make_tiny("smolvlm", pooling="mean", embedding_dim=16)
    module = MMEmbR1Module(tiny.model, tiny.processor)
    module.save(str(tmp_path))
    loaded = MMEmbR1Module.load(str(tmp_path))
    with torch.no_grad():
        one, other = (each(each.preprocess(mixed), reasoning="always") for each in (module, loaded))
    close(one["sentence_embedding"], other["sentence_embedding"])
    half = MMEmbR1Module.load(str(tmp_path), model_kwargs={"dtype": torch.bfloat16})
    assert half.model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="saves safetensors only; leave safe_serialization=True"):
        module.save(str(tmp_path), safe_serialization=False)
    with pytest.raises(ValueError, match="backend='onnx' is not supported; allowed: 'torch'"):
        MMEmbR1Module.load(str(tmp_path), backend="onnx")


def test_a_contrastive_step_reaches_backbone_and_head(make_tiny, draw):
    tiny = make_tiny("qwen3_vl", pooling="attention", embedding_dim=16)
    model = SentenceTransformer(modules=[MMEmbR1Module(tiny.model, tiny.processor)], device="cpu").train()
    queries = [{"text": "capital?", "image": draw(0)}, "the flag of Chad"]
    features = [dict(model.preprocess(side)) for side in (queries, ["Lima", draw(1)])]
    loss = MultipleNegativesRankingLoss(model)(features, labels=None)
    loss.backward()
    gate = {id(weight) for weight in tiny.model.gate.parameters()}  # no contrastive loss reads the gate
    for name, weight in tiny.model.named_parameters():
        if id(weight) in gate:
            assert weight.grad is None
        else:
            assert weight.grad is not None, name
            assert weight.grad.isfinite().all(), name
    before = loss.item()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    optimiser.step()
    assert MultipleNegativesRankingLoss(model)(features, labels=None).item() < before


def test_the_trainer_of_sentence_transformers(make_tiny, tmp_path):
    tiny = make_tiny("qwen3_vl")
    model = SentenceTransformer(modules=[MMEmbR1Module(tiny.model, tiny.processor)], device="cpu")
    rows = Dataset.from_dict({"anchor": ["capital of Peru?", "Chad", "3, 5, 7"], "positive": ["Lima", "a flag", "15"]})
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=3, learning_rate=1e-2, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    SentenceTransformerTrainer(model, arguments, rows, loss=MultipleNegativesRankingLoss(model)).train()
    text_layers = [name for name in before if "language_model.layers" in name]
    assert text_layers
    assert not any(
        torch.equal(before[name], weight) for name, weight in model.named_parameters() if name in text_layers
    )
