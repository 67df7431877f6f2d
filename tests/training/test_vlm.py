"""Loading chat models, from their own folder or out of a checkpoint."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.tiny import FAMILIES, build_tiny_vlm
from mmemb_r1.training.vlm import chat_template, files_fingerprint, load_vlm, weights_fingerprint

INPUTS = [{"text": "What is the capital of Peru?", "instruction": "Be brief."}, "a"]


def prompts(processor):
    return render(processor, to_conversations(INPUTS), chat_template=chat_template(processor))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_back_what_was_saved(tmp_path, family):
    vlm, processor = build_tiny_vlm(family)
    vlm.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, its_processor = load_vlm(str(tmp_path), device="cpu")
    assert type(loaded) is type(vlm) and type(its_processor) is type(processor)
    assert not loaded.training
    assert its_processor.tokenizer.padding_side == "left"
    for name, tensor in vlm.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(prompts(its_processor)["input_ids"], prompts(processor)["input_ids"])


def test_a_checkpoint_gives_its_backbone(tmp_path, tiny_checkpoint):
    vlm, processor = load_vlm(tiny_checkpoint, device="cpu")
    model = MMEmbR1Model.from_pretrained(tiny_checkpoint)
    assert type(vlm) is type(model.vlm)
    for name, tensor in model.vlm.state_dict().items():
        assert torch.equal(vlm.state_dict()[name], tensor), name
    plain = build_tiny_vlm("qwen3_vl")[1]
    assert torch.equal(prompts(processor)["input_ids"], prompts(plain)["input_ids"])
    assert not (prompts(processor)["input_ids"] == model.config.embed_token_id).any()


def test_prompts_hold_no_control_tokens_of_users(tiny_checkpoint):
    processor = load_vlm(tiny_checkpoint, device="cpu")[1]
    chats = to_conversations(["<|embed|> <|im_end|> a"])
    ids = render(processor, chats, chat_template=chat_template(processor))["input_ids"]
    clean = render(processor, to_conversations(["a"]), chat_template=chat_template(processor))["input_ids"]
    controls = list(processor.tokenizer.added_tokens_decoder)
    assert torch.isin(ids, torch.tensor(controls)).sum() == torch.isin(clean, torch.tensor(controls)).sum()


def test_dtype(tmp_path):
    vlm, processor = build_tiny_vlm("smolvlm")
    vlm.to(torch.bfloat16).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert load_vlm(tmp_path, device="cpu")[0].dtype == torch.bfloat16
    assert load_vlm(tmp_path, device="cpu", dtype="float32")[0].dtype == torch.float32
    with pytest.raises(ValueError, match="dtype='int4'; allowed: 'auto', 'float32'"):
        load_vlm(tmp_path, dtype="int4")


def test_the_fingerprint_of_weights_is_that_of_what_was_saved(tmp_path):
    vlm, processor = build_tiny_vlm("qwen3_vl")
    for part in (vlm, processor):
        part.save_pretrained(tmp_path)
    loaded, half = (load_vlm(tmp_path, device="cpu", dtype=dtype)[0] for dtype in ("auto", "bfloat16"))
    assert weights_fingerprint(loaded) == weights_fingerprint(vlm)
    assert weights_fingerprint(half) != weights_fingerprint(vlm)
    assert weights_fingerprint(half) == weights_fingerprint(vlm.to(torch.bfloat16))
    assert weights_fingerprint(build_tiny_vlm("qwen3_vl", seed=1)[0]) != weights_fingerprint(loaded)


def test_the_fingerprint_of_weights_notices_a_change_of_any_parameter():
    vlm, _ = build_tiny_vlm("qwen3_vl")
    seen = {weights_fingerprint(vlm)}
    for number, parameter in enumerate(vlm.parameters(), start=1):
        with torch.no_grad():
            parameter.add_(1e-3)
        seen.add(weights_fingerprint(vlm))
        assert len(seen) == number + 1


def test_the_fingerprint_of_weights_reads_layouts_and_sizes_of_all_kinds():
    values = torch.arange(40.0).reshape(5, 8)
    plain, strided = torch.nn.ParameterList([values]), torch.nn.ParameterList([values.T.contiguous().T])
    assert weights_fingerprint(plain) == weights_fingerprint(strided)
    assert weights_fingerprint(plain) != weights_fingerprint(torch.nn.ParameterList([values.reshape(8, 5)]))
    odd = torch.nn.ParameterList([torch.tensor(1.0), torch.empty(0), torch.ones(1, dtype=torch.float8_e4m3fn)])
    assert weights_fingerprint(odd) == weights_fingerprint(copy.deepcopy(odd))


def test_the_fingerprint_of_files_is_that_of_what_they_hold(tmp_path):
    vlm, _ = build_tiny_vlm("qwen3_vl")
    vlm.save_pretrained(tmp_path / "one")
    build_tiny_vlm("qwen3_vl")[0].save_pretrained(tmp_path / "same")
    seen = {files_fingerprint(str(tmp_path / "one"))}
    assert seen == {files_fingerprint(str(tmp_path / "same"))}
    for number, parameter in enumerate(list(vlm.parameters())[::7], start=1):
        with torch.no_grad():
            parameter.add_(1e-3)
        vlm.save_pretrained(tmp_path / str(number))
        seen.add(files_fingerprint(str(tmp_path / str(number))))
        assert len(seen) == number + 1


def test_the_fingerprint_of_files_reads_sizes_of_all_kinds(tmp_path):
    odd = {"one": torch.tensor(1.0), "none": torch.empty(0), "many": torch.ones(2, 3, 4, dtype=torch.bfloat16)}
    save_file(odd, tmp_path / "model.safetensors")
    assert files_fingerprint(str(tmp_path)) == files_fingerprint(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights in safetensors, by which they could be told from others"):
        files_fingerprint(str(tmp_path))


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="There is no folder .*nowhere, and it is no Hub id"):
        load_vlm(tmp_path / "nowhere")
    with pytest.raises(OSError, match="There is no folder someone/some-model here, and the Hub's cache does not hold"):
        load_vlm("someone/some-model")


def test_an_error_that_says_nothing_is_named_by_its_kind(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError

    monkeypatch.setattr("mmemb_r1.training.vlm.AutoConfig.from_pretrained", fail)
    with pytest.raises(ValueError, match=r"can't be loaded .* \(OSError\)"):
        load_vlm(tmp_path)


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    with pytest.raises(ValueError, match="can't be loaded as a vision-language model. Pass the folder"):
        load_vlm(tmp_path)


def test_a_chat_template_may_be_the_tokenizers():
    _, processor = build_tiny_vlm("llava")
    own, processor.chat_template = processor.chat_template, None
    with pytest.raises(ValueError, match="LlavaProcessor has no chat template; a vision-language model"):
        chat_template(processor)
    processor.tokenizer.chat_template = own
    assert chat_template(processor) == own
    assert len(prompts(processor)["input_ids"]) == len(INPUTS)
    processor.chat_template = {"default": own, "tools": "another"}
    assert chat_template(processor) == own


def test_a_processor_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="object has no tokenizer"):
        chat_template(object())
