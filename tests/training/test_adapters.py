from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from mmemb_r1 import MMEmbR1, MMEmbR1Model
from mmemb_r1.modeling.backbones_mmemb_r1 import model_inputs
from mmemb_r1.rationale_tokens import append_tokens, rationale_suffix
from mmemb_r1.tiny import FAMILIES, build_tiny_vlm
from mmemb_r1.training.adapters import (
    as_merged,
    backbone_weights,
    freeze_vision_tower,
    load_adapters,
    lora_config,
    merged,
    quantization_config,
    with_adapters,
)

INPUTS = ["say red", {"text": "color?"}, "blue"]


def build(family="qwen3_vl", tied=True, **config):
    """A model and its processor; with `tied=False` its output embeddings are a tensor of their own."""
    vlm, processor = build_tiny_vlm(family)
    if not tied:
        vlm.config.tie_word_embeddings = vlm.config.get_text_config().tie_word_embeddings = False
        output = vlm.get_output_embeddings()
        output.weight = nn.Parameter(output.weight.detach().flip(0).clone())
    return MMEmbR1Model.from_vlm(vlm, processor, **config)


@torch.no_grad()
def disturb(model, generator=None):
    """Change everything that is trained, as training would."""
    generator = generator or torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def vectors(model, processor, picture=None, **options):
    inputs = [*INPUTS, {"text": "color?", "image": picture}] if picture is not None else INPUTS
    options = {"reasoning": "always", "max_reasoning_tokens": 6, **options}
    wrapped = model if isinstance(model, MMEmbR1) else MMEmbR1.from_model(model.eval(), processor)
    return wrapped.encode(inputs, **options)


def trained(wrapped):
    return {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_language_model_gets_adapters_in_every_family(family):
    model, _ = build(family, gate_hidden_size=8, embedding_dim=16, pooling="attention")
    decoder = next(name for name, module in model.named_modules() if module is model.vlm.get_decoder())
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and decoder in name}
    wrapped = with_adapters(model, lora_config(model, r=2))
    names = {name.removeprefix("base_model.model.") for name in trained(wrapped)}
    adapters = {name for name in names if ".lora_" in name}
    assert {name.partition(".lora_")[0] for name in adapters} == linear
    heads = {"gate.hidden", "gate.output", "embedding_head.projection", "embedding_head.score"}
    rest = names - adapters
    rows = {name for name in rest if "trainable_tokens_delta" in name}
    assert {name.partition(".modules_to_save")[0] for name in rest - rows} == heads
    assert len(rows) == 1  # the output embeddings follow the input ones


@pytest.mark.parametrize("tied", [True, False])
def test_only_adapters_rows_of_control_tokens_and_heads_change(tied, rows):
    """A step of training, whose loss asks for everything: embeddings, gates and rationale tokens."""
    model, processor = build(tied=tied)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrapped = with_adapters(model, lora_config(model, r=4)).train()
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=1.0)
    batch = model_inputs(MMEmbR1.from_model(model, processor)[0].preprocess([rows[0]["query"], "say red"]))
    thought = rationale_suffix(processor, model.config, "It is red.")
    batch = append_tokens(batch, [thought, thought], processor.tokenizer.pad_token_id)
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    for _ in range(2):  # the gradient of an adapter's first matrix is zero while its second one is
        optimizer.zero_grad()
        output = wrapped(**batch, labels=labels)
        loss = output.embeddings[..., 0].sum() + output.gate_logits.sum() - output.rationale_logps.mean()
        loss.backward()
        optimizer.step()
    after = merged(wrapped).state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    embeddings = {"vlm.model.language_model.embed_tokens.weight", "vlm.lm_head.weight"}
    linear = {name for name in before if ".language_model." in name and name.endswith("_proj.weight")}
    assert changed == embeddings | linear | {"gate.output.weight", "gate.output.bias"}
    config = model.config
    control = sorted([config.embed_token_id, config.think_token_id, config.end_think_token_id])
    for name in embeddings:
        assert (before[name] != after[name]).any(dim=1).nonzero().flatten().tolist() == control
    assert torch.equal(*(after[name] for name in embeddings)) == tied


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [{}, {"gate_hidden_size": 8, "embedding_dim": 16, "pooling": "mean"}])
def test_saved_loaded_and_merged_adapters_give_equal_vectors(tied, config, rows, tmp_path):
    from sentence_transformers import SentenceTransformer

    model, processor = build(tied=tied, **config)
    picture = rows[0]["query"]["image"][0]
    untrained, original = vectors(model, processor, picture), copy.deepcopy(model)
    wrapped = with_adapters(model, lora_config(model, r=4))
    np.testing.assert_array_equal(vectors(wrapped, processor, picture), untrained)  # fresh adapters do nothing
    disturb(wrapped)
    wanted = vectors(wrapped, processor, picture)
    assert abs(wanted - untrained).max() > 1e-2
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()

    again = load_adapters(copy.deepcopy(original), tmp_path / "adapter")
    np.testing.assert_allclose(vectors(again, processor, picture), wanted, atol=1e-6)
    assert not trained(again)
    plain = merged(again)
    assert type(plain) is MMEmbR1Model and not [name for name in plain.state_dict() if "lora" in name]
    np.testing.assert_allclose(vectors(plain, processor, picture), wanted, atol=1e-5)
    MMEmbR1.from_model(plain, processor).save_pretrained(str(tmp_path / "model"))
    loaded = MMEmbR1(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(vectors(loaded, None, picture), wanted, atol=1e-5)
    embedding, output = loaded[0].model.get_input_embeddings(), loaded[0].model.get_output_embeddings()
    assert (embedding.weight is output.weight) == tied
    other = SentenceTransformer(str(tmp_path / "model"), trust_remote_code=True, device="cpu", local_files_only=True)
    inputs = [*INPUTS, {"text": "color?", "image": picture}]
    options = {"reasoning": "always", "max_reasoning_tokens": 6}
    np.testing.assert_allclose(other.encode(inputs, **options), wanted, atol=1e-5)


def test_fresh_adapters_follow_from_the_seed_alone():
    def matrices(seed):
        torch.rand(seed + 1)  # the global state is another one
        model, _ = build()
        state = torch.get_rng_state()
        wrapped = with_adapters(model, lora_config(model, r=2), seed=seed // 2)
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([value.flatten() for name, value in wrapped.named_parameters() if "lora_A" in name])

    first, second, other = matrices(0), matrices(1), matrices(2)
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_changes_no_vector_in_any_family(family, rows):
    model, processor = build(family)
    wrapped = with_adapters(model, lora_config(model, r=2))
    disturb(wrapped)
    picture = rows[0]["query"]["image"][0]
    wanted = vectors(wrapped, processor, picture)
    np.testing.assert_allclose(vectors(merged(wrapped), processor, picture), wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "tied"), [("qwen3_vl", True), ("qwen3_vl", False), ("idefics3", True)])
def test_the_weights_of_the_backbone_are_those_of_the_merged_model_under_its_own_names(family, tied, dtype):
    plain, _ = build(family, tied)
    plain = plain.to(dtype)
    with backbone_weights(plain) as weights:
        names = list(weights)
        assert names == list(plain.vlm.state_dict())
    wrapped = with_adapters(plain, lora_config(plain, r=2, adapt_vision_tower=True))
    disturb(wrapped)
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    with backbone_weights(wrapped) as weights:
        found = {name: value.clone() for name, value in weights.items()}
    after = wrapped.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())  # to the bit
    wanted = merged(wrapped).vlm.state_dict()
    assert sorted(found) == sorted(names) == sorted(wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_quantised_weights_are_not_given_as_merged_ones():
    model, _ = build()
    model.is_quantized = True
    with pytest.raises(ValueError, match="load the model without quantisation"), backbone_weights(model):
        pass


def test_a_merged_model_can_be_adapted_and_trained_again():
    model, _ = build()
    plain = merged(with_adapters(model, lora_config(model, r=2)))
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert trained(with_adapters(plain, lora_config(plain, r=2)))


def test_the_gate_is_saved_although_it_was_not_trained(tmp_path):
    model, _ = build(gate_hidden_size=8)
    nn.init.normal_(model.gate.output.weight)
    gate, original = copy.deepcopy(model.gate.state_dict()), copy.deepcopy(model)
    original.gate.reset()
    wrapped = with_adapters(model, lora_config(model, r=2))
    wrapped.save_pretrained(str(tmp_path))
    loaded = merged(load_adapters(original, tmp_path)).gate.state_dict()
    assert gate.keys() == loaded.keys()
    assert all(torch.equal(gate[name], loaded[name]) for name in gate)


def test_what_is_trained_of_a_bfloat16_model_is_float32_until_it_is_merged(rows):
    model, processor = build(gate_hidden_size=8, embedding_dim=16)
    model = model.bfloat16()
    wrapped = with_adapters(model, lora_config(model, r=2)).train()
    assert {parameter.dtype for parameter in wrapped.parameters() if parameter.requires_grad} == {torch.float32}
    assert {parameter.dtype for parameter in wrapped.parameters() if not parameter.requires_grad} == {torch.bfloat16}
    batch = model_inputs(MMEmbR1.from_model(model, processor)[0].preprocess([rows[0]["query"], "say red"]))
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = wrapped(**batch, labels=labels)
    (output.embeddings.sum() + output.gate_logits.sum() - output.rationale_logps.mean()).backward()
    still = {name for name, p in wrapped.named_parameters() if p.requires_grad and p.grad is None}
    assert not still
    disturb(wrapped)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = vectors(wrapped, processor, reasoning="never")
    plain = merged(wrapped)
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}
    assert (vectors(plain, processor, reasoning="never") * wanted).sum(axis=1).min() > 0.99


@pytest.mark.parametrize("tied", [True, False])
def test_what_merging_will_round_can_be_seen_before(tied):
    model, processor = build(tied=tied, gate_hidden_size=8, embedding_dim=16)
    model = model.bfloat16()
    wrapped = with_adapters(model, lora_config(model, r=2))
    disturb(wrapped)
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    rounded = MMEmbR1.from_model(merged(copy.deepcopy(wrapped)).eval(), processor).encode(INPUTS, reasoning="never")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adapted = vectors(wrapped, processor, reasoning="never")
        with as_merged(wrapped):
            np.testing.assert_allclose(vectors(wrapped, processor, reasoning="never"), rounded, atol=1e-2)
            inside = {name: value.clone() for name, value in wrapped.state_dict().items()}
        np.testing.assert_array_equal(vectors(wrapped, processor, reasoning="never"), adapted)
    plain = merged(copy.deepcopy(wrapped)).state_dict()
    name = "vlm.model.language_model.layers.0.mlp.up_proj"
    assert torch.equal(inside[f"base_model.model.{name}.base_layer.weight"], plain[f"{name}.weight"])
    assert not torch.equal(plain[f"{name}.weight"], before[f"base_model.model.{name}.base_layer.weight"])
    for name, value in wrapped.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_activation_checkpointing_changes_no_gradient(rows):
    def gradients(checkpointing):
        model, processor = build()
        batch = model_inputs(MMEmbR1.from_model(model, processor)[0].preprocess([rows[0]["query"], "say red"]))
        wrapped = with_adapters(model, lora_config(model, r=2)).train()
        disturb(wrapped)
        if checkpointing:
            enable = "activation_checkpointing_enable"  # by its older name in transformers 5.19
            getattr(wrapped, enable if hasattr(wrapped, enable) else "gradient_checkpointing_enable")()
        output = wrapped(**batch)
        (output.embeddings[..., 0].sum() + output.gate_logits.sum()).backward()
        return {name: p.grad for name, p in wrapped.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    assert max(gradient.abs().max() for gradient in plain.values()) > 1e-2
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], atol=1e-6), name


class TestLoraConfig:
    def test_some_layers_by_name(self):
        model, _ = build()
        wrapped = with_adapters(model, lora_config(model, r=3, alpha=9, target_modules=["q_proj", "v_proj"]))
        adapted = {name for name in trained(wrapped) if "lora" in name}
        assert adapted and all(".q_proj." in name or ".v_proj." in name for name in adapted)
        assert all(".language_model." in name for name in adapted)
        layer = wrapped.get_base_model().vlm.model.language_model.layers[0].self_attn.q_proj
        assert layer.scaling["default"] == 3.0 and layer.lora_A["default"].weight.shape[0] == 3

    def test_a_regular_expression_goes_anywhere(self):
        model, _ = build()
        wrapped = with_adapters(model, lora_config(model, target_modules=r".*\.visual\.blocks\.0\.attn\.qkv"))
        assert {name.partition(".lora_")[0] for name in trained(wrapped) if "lora" in name} == {
            "base_model.model.vlm.model.visual.blocks.0.attn.qkv"
        }

    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_vision_tower_on_request(self, family, rows):
        model, processor = build(family)
        linear = {
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
            and any(part in name for part in ("visual.", "vision_tower.", "vision_model.", "language_model", "text_"))
        }
        wrapped = with_adapters(model, lora_config(model, r=2, adapt_vision_tower=True))
        adapted = {name.partition(".lora_")[0] for name in trained(wrapped) if "lora" in name}
        assert {name.removeprefix("base_model.model.") for name in adapted} == linear
        disturb(wrapped)
        picture = rows[0]["query"]["image"][0]
        wanted = vectors(wrapped, processor, picture, reasoning="never")
        np.testing.assert_allclose(vectors(merged(wrapped), processor, picture, reasoning="never"), wanted, atol=1e-5)

    def test_options_of_pefts_own(self):
        model, _ = build()
        assert lora_config(model, use_rslora=True).use_rslora

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rank": 4}, "LoRA has no option 'rank' here; allowed: r, alpha"),
            ({"lora_alpha": 4}, "no option 'lora_alpha' here; it is called alpha"),
            ({"modules_to_save": ["gate"]}, "gate and head are trained in full already"),
            ({"target_modules": ["query"]}, "there is no linear layer 'query'; there are .'down_proj'"),
        ],
    )
    def test_refuses_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            lora_config(build()[0], **options)

    def test_without_peft(self, monkeypatch):
        model, _ = build()
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ImportError, match="pip install 'mmemb-r1.peft.'"):
            lora_config(model)


class TestRefused:
    def test_adapters_on_adapters(self):
        model, _ = build()
        config = lora_config(model, r=2)
        wrapped = with_adapters(model, config)
        for again in (model, wrapped):
            with pytest.raises(ValueError, match="has adapters already; merge them first"):
                with_adapters(again, config)

    def test_ties_that_the_config_denies(self):
        model, _ = build()
        config = lora_config(model, r=2)
        model.config.tie_word_embeddings = False
        with pytest.raises(ValueError, match="one tensor, but the config denies it"):
            with_adapters(model, config)

    def test_merging_what_has_none(self):
        with pytest.raises(ValueError, match="Got a MMEmbR1Model, which has no adapters"):
            merged(build()[0])

    def test_loading_from_nowhere(self, tmp_path):
        with pytest.raises(ValueError, match="There are no adapters in .*none"):
            load_adapters(build()[0], tmp_path / "none")

    @pytest.fixture
    def saved(self, tmp_path):
        model, _ = build()
        with_adapters(model, lora_config(model, r=2)).save_pretrained(str(tmp_path))
        return tmp_path

    def test_loading_anothers_tokens(self, saved):
        model, _ = build()
        model.config.embed_token_id -= 5
        with pytest.raises(ValueError, match="another model's: their control tokens are"):
            load_adapters(model, saved)

    def test_loading_into_another_size(self, saved):
        model, _ = MMEmbR1Model.from_vlm(*build_tiny_vlm("qwen3_vl", hidden_size=64))
        with pytest.raises(ValueError, match=r"don't fit this model: .*\s.*size mismatch"):
            load_adapters(model, saved)

    def test_loading_half_of_them(self, saved):
        from safetensors.torch import load_file, save_file

        file = saved / "adapter_model.safetensors"
        tensors = load_file(file)
        save_file({name: value for name, value in tensors.items() if "layers.0" not in name}, file)
        with pytest.raises(ValueError, match="don't fit this model: Found missing adapter keys"):
            load_adapters(build()[0], saved)

    def test_loading_into_another_architecture(self, saved):
        config = json.loads((saved / "adapter_config.json").read_text(encoding="utf-8"))
        (saved / "adapter_config.json").write_text(json.dumps({**config, "target_modules": "none"}), encoding="utf-8")
        with pytest.raises(ValueError, match="don't fit this model: No modules were targeted"):
            load_adapters(build()[0], saved)


class TestFreezing:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_pictures_train_nothing_of_their_own(self, family, rows):
        model, processor = build(family, tied=family != "qwen3_vl")
        model.train()
        freeze_vision_tower(model)
        batch = model_inputs(MMEmbR1.from_model(model, processor)[0].preprocess([rows[0]["query"], rows[1]["query"]]))
        labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
        output = model(**batch, labels=labels)
        (output.embeddings[..., 0].sum() + output.gate_logits.sum() + output.rationale_logps.sum()).backward()
        # without pictures the same parameters have gradients: processes with and without them can share a step
        with_pictures = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert with_pictures == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        decoder = next(name for name, module in model.named_modules() if module is model.vlm.get_decoder())
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == {
            name
            for name, _ in model.named_parameters()
            if name.startswith("vlm.") and not name.startswith((decoder, "vlm.lm_head"))
        }
        assert any("project" in name or "connector" in name or "merger" in name for name in frozen)

    def test_a_backbone_without_one(self):
        model, _ = build()
        del model.vlm.model.visual
        with pytest.raises(ValueError, match="Qwen3VLModel has no vision tower"):
            freeze_vision_tower(model)


class TestQuantisation:
    def test_needs_bitsandbytes(self, monkeypatch):
        monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda *args: False)
        with pytest.raises(ImportError, match="needs bitsandbytes: pip install bitsandbytes"):
            quantization_config(load_in_4bit=True)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"load_in_2bit": True}, "no option 'load_in_2bit'; allowed: dtype, load_in_8bit, load_in_4bit"),
            ({}, "neither load_in_4bit nor load_in_8bit is true"),
            ({"load_in_4bit": True, "load_in_8bit": True}, "can't use 8 bit and 4 bit"),
        ],
    )
    def test_refuses(self, options, message):
        with pytest.raises(ValueError, match=message):
            quantization_config(**options)

    def test_heads_and_pictures_stay_as_they_are(self, monkeypatch):
        from transformers.quantizers.quantizers_utils import should_convert_module

        monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda *args: True)
        monkeypatch.setattr("transformers.BitsAndBytesConfig.post_init", lambda self: None)
        config = quantization_config(load_in_4bit=True)
        assert config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_compute_dtype == torch.bfloat16
        for family in FAMILIES:
            model, _ = build(family, gate_hidden_size=8, embedding_dim=16)
            linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
            quantised = {name for name in linear if should_convert_module(name, config.llm_int8_skip_modules)}
            language = {id(module) for module in model.vlm.get_decoder().modules()}
            assert quantised == {name for name in linear if id(model.get_submodule(name)) in language}
