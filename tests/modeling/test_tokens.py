"""Control tokens, chat templates, and what making a model of a backbone leaves alone."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor

from mmemb_r1 import MMEmbR1Config, MMEmbR1Model
from mmemb_r1.modeling.backbones_mmemb_r1 import embedding_template
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.modeling.tokens_mmemb_r1 import WORD_JOINER, as_plain_text
from mmemb_r1.tiny import build_tiny_vlm

EMBED, THINK, END_THINK = "<|embed|>", "<think>", "</think>"


def chat(image: Any = None) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": [{"type": "text", "text": "Be brief.\n"}]},
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": " What is this? "}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A flag."}]},
        {"role": "user", "content": [{"type": "text", "text": "Of which country?"}]},
    ]


THINKING_TEMPLATES = {
    "opens": "{{ messages[-1].content }}\n{% if add_generation_prompt %}assistant\n<think>\n{% endif %}",
    "opens and closes": (
        "{{ messages[-1].content }}{% if add_generation_prompt %}assistant\n<think>\n\n</think>\n\n{% endif %}\n"
    ),
    "neither": "{{ messages[-1].content }}{% if add_generation_prompt %}assistant\n{% endif %}",
    "in the text": "<think>x</think>{{ messages[-1].content }}assistant",
}
PROMPTS = {
    "opens": "Hi\nassistant\n<|embed|>",
    "opens and closes": "Hiassistant\n<|embed|>",
    "neither": "Hiassistant\n<|embed|>",
    "in the text": "<think>x</think>Hiassistant<|embed|>",
}


@pytest.mark.parametrize("generation_prompt", [True, False])
def test_without_embed_the_template_is_the_backbones_own(family, generation_prompt):
    _, processor = build_tiny_vlm(family)
    own = processor.apply_chat_template(chat(), add_generation_prompt=generation_prompt, tokenize=False)
    processor.chat_template = embedding_template(processor.chat_template)
    again = processor.apply_chat_template(chat(), add_generation_prompt=generation_prompt, tokenize=False, embed=False)
    assert again == own
    embedding = processor.apply_chat_template(chat(), add_generation_prompt=generation_prompt, tokenize=False)
    assert embedding == own + EMBED


@pytest.mark.parametrize("kind", list(THINKING_TEMPLATES))
def test_thinking_templates(kind):
    _, processor = build_tiny_vlm("qwen3_vl")
    template, messages = THINKING_TEMPLATES[kind], [{"role": "user", "content": "Hi"}]
    for generation_prompt in (True, False):
        options = {"add_generation_prompt": generation_prompt, "tokenize": False}
        own = processor.apply_chat_template(messages, chat_template=template, **options)
        wrapped = embedding_template(template)
        assert processor.apply_chat_template(messages, chat_template=wrapped, embed=False, **options) == own
        prompt = processor.apply_chat_template(messages, chat_template=wrapped, **options)
        assert prompt.count(EMBED) == 1
        assert prompt.endswith(EMBED)
    assert (
        processor.apply_chat_template(messages, chat_template=wrapped, add_generation_prompt=True, tokenize=False)
        == PROMPTS[kind]
    )


def test_every_prompt_ends_in_its_only_marker(tiny, mixed, clips):
    marker = tiny.model.config.embed_token_id
    for inputs in (mixed, clips) if tiny.takes_videos else (mixed,):
        ids = tiny.batch(inputs)["input_ids"]
        assert (ids[:, -1] == marker).all()
        assert ((ids == marker).sum(dim=1) == 1).all()


def test_control_strings_in_user_text_are_text(tiny, draw):
    """Neither the strings themselves nor two halves of one become control ids, and the text is not lost."""
    tokenizer, images = tiny.processor.tokenizer, [draw(0), draw(1)]
    strings = sorted(tokenizer.added_tokens_encoder)
    assert {EMBED, THINK, END_THINK, tiny.processor.image_token, tokenizer.eos_token} <= set(strings)
    text = "a " + " b ".join(strings) + " " + "".join(strings)
    halves = [{"type": "text", "text": text[start : start + 5]} for start in range(0, len(text), 5)]
    pictures = [{"type": "image", "image": image} for image in images]
    cases = [  # the same prompt with harmless and with odd text
        ({"text": "x", "image": images}, {"text": text, "image": images}),
        ({"text": "x"}, {"text": text}),
        (
            {"text": "x", "image": images, "instruction": "x"},
            {"text": "x", "image": images, "instruction": text},
        ),
        (
            [{"role": "user", "content": [*pictures, {"type": "text", "text": "x"}]}],
            [{"role": "user", "content": [*pictures, *halves]}],
        ),
    ]
    for harmless, odd in cases:
        expected, ids = (tiny.batch([prompt])["input_ids"][0] for prompt in (harmless, odd))
        for token in tokenizer.added_tokens_decoder:
            assert (ids == token).sum() == (expected == token).sum(), tokenizer.decode([token])
        assert ids[-1] == tiny.model.config.embed_token_id
        assert text in tokenizer.decode(ids).replace(WORD_JOINER, "")


def test_plain_text():
    controls = ("<a>", "><", "<a>b")
    assert as_plain_text("no controls: <b> > <", controls) == "no controls: <b> > <"
    assert as_plain_text("x<a>y", controls) == f"x<{WORD_JOINER}a>y"
    broken = as_plain_text("<a><a>b<<a>", controls)
    assert not any(control in broken for control in controls)
    assert broken.replace(WORD_JOINER, "") == "<a><a>b<<a>"


def test_a_text_is_encoded_alike_beside_control_strings(tiny, mixed):
    alone = tiny.batch(mixed[:1])
    beside = tiny.batch([*mixed[:1], "<|embed|>" * 20])
    ids = beside["input_ids"][0][beside["attention_mask"][0].bool()]
    assert torch.equal(ids, alone["input_ids"][0])
    assert set(alone) == set(beside)


def test_new_tokens(tiny):
    tokenizer, config = tiny.processor.tokenizer, tiny.model.config
    ids = tokenizer.convert_tokens_to_ids([EMBED, THINK, END_THINK])
    assert ids == [config.embed_token_id, config.think_token_id, config.end_think_token_id]
    assert config.rationale_vocab_size == len(tokenizer) == tiny.model.get_input_embeddings().weight.shape[0]
    assert (
        tokenizer.decode(tokenizer(f"a{THINK}b{END_THINK}", add_special_tokens=False).input_ids)
        == f"a{THINK}b{END_THINK}"
    )
    assert tokenizer.decode(ids, skip_special_tokens=True) == EMBED + THINK + END_THINK


def test_the_backbones_weights_stay_as_they_were(family):
    vlm, processor = build_tiny_vlm(family)
    before = {name: weight.clone() for name, weight in vlm.state_dict().items()}
    model, returned = MMEmbR1Model.from_vlm(vlm, processor)
    assert model.vlm is vlm
    assert returned is processor
    assert not model.training
    for name, weight in vlm.state_dict().items():
        assert torch.equal(weight[: len(before[name])] if weight.ndim else weight, before[name]), name
    new = model.get_input_embeddings().weight[-3:]
    assert new.isfinite().all()
    assert torch.pdist(new).min() > 1e-3
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not any(weight.is_meta for weight in model.parameters())


def test_new_rows_lie_among_the_old():
    vlm, processor = build_tiny_vlm("smolvlm")
    old = vlm.get_input_embeddings().weight.detach().clone()
    model, _ = MMEmbR1Model.from_vlm(vlm, processor)
    new = model.get_input_embeddings().weight[-3:]
    assert ((new - old.mean(dim=0)).abs() < 0.5 * old.std(dim=0)).all()


def test_an_untied_backbone_gets_rows_on_both_sides():
    vlm, processor = build_tiny_vlm("llava")
    output = vlm.get_output_embeddings()
    output.weight = torch.nn.Parameter(output.weight.detach() * 2)
    vlm.config.tie_word_embeddings = vlm.config.text_config.tie_word_embeddings = False
    size = len(output.weight)
    model, _ = MMEmbR1Model.from_vlm(vlm, processor)
    read, written = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert len(read) == len(written) == size + 3
    torch.testing.assert_close(written[-3:].mean(), 2 * read[-3:].mean(), atol=1e-2, rtol=0.5)
    assert torch.pdist(written[-3:]).min() > 1e-3
    assert not model.config.tie_word_embeddings


def test_tokens_that_exist_are_reused():
    vlm, processor = build_tiny_vlm("qwen3_vl")
    processor.tokenizer.add_tokens([THINK, END_THINK])
    vlm.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    ids = processor.tokenizer.convert_tokens_to_ids([THINK, END_THINK])
    rows = vlm.get_input_embeddings().weight[ids].detach().clone()
    model, _ = MMEmbR1Model.from_vlm(vlm, processor)
    assert [model.config.think_token_id, model.config.end_think_token_id] == ids
    assert torch.equal(model.get_input_embeddings().weight[ids], rows)
    assert model.config.embed_token_id == max(ids) + 1 == len(model.get_input_embeddings().weight) - 1


def test_a_padded_vocabulary_keeps_its_size_and_its_spare_rows_unthought():
    vlm, processor = build_tiny_vlm("qwen3_vl")
    vlm.resize_token_embeddings(512, mean_resizing=False)
    model, processor = MMEmbR1Model.from_vlm(vlm, processor)
    assert len(model.get_input_embeddings().weight) == 512
    spare = len(processor.tokenizer)
    assert model.config.rationale_vocab_size == spare < 512
    batch = render(processor, to_conversations(["Lima"]))
    with model.get_output_embeddings().register_forward_hook(
        lambda m, a, out: out + 1e4 * (torch.arange(512) >= spare)
    ):
        ids = model.embed(**batch, reasoning="always", max_reasoning_tokens=3).rationale_ids
    assert ids.max() < spare


def test_a_second_time_is_an_error():
    vlm, processor = build_tiny_vlm("qwen3_vl")
    MMEmbR1Model.from_vlm(vlm, processor)
    with pytest.raises(ValueError, match=r"ends in <\|embed\|> already"):
        MMEmbR1Model.from_vlm(build_tiny_vlm("qwen3_vl")[0], processor)


def test_misspelt_fields_are_an_error():
    with pytest.raises(ValueError, match="MMEmbR1Config has no field 'gate_treshold'"):
        MMEmbR1Model.from_vlm(*build_tiny_vlm("qwen3_vl"), gate_treshold=0.3)


def test_processors_that_cannot_be_used():
    vlm, processor = build_tiny_vlm("qwen3_vl")
    with pytest.raises(ValueError, match="Qwen2VLImageProcessor has no tokenizer"):
        MMEmbR1Model.from_vlm(vlm, processor.image_processor)
    processor.chat_template = {"a": "x", "b": "y"}
    with pytest.raises(ValueError, match="has no single chat template .*dict"):
        MMEmbR1Model.from_vlm(vlm, processor)
    processor.chat_template = None
    with pytest.raises(ValueError, match="has no single chat template .*NoneType"):
        MMEmbR1Model.from_vlm(vlm, processor)


def test_a_tokenizer_that_begins_every_text(draw):
    """LLaVA's writes `<s>` before a text: once, whatever the text says."""
    vlm, processor = build_tiny_vlm("llava")
    tokenizer = processor.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    vlm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    start = tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    model, processor = MMEmbR1Model.from_vlm(vlm, processor)
    batch = render(processor, to_conversations(["Lima", {"image": draw(0)}, "<s> and <think>"]))
    for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        ids = row[mask.bool()].tolist()
        assert ids[0] == start
        assert ids.count(start) == 1
        assert ids[-1] == model.config.embed_token_id


def test_building_from_the_config_touches_no_file_and_no_network(tiny, monkeypatch):
    MMEmbR1Model(tiny.model.config)  # modules that are imported lazily are not what this is about

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("I/O while a model is built")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)
    monkeypatch.setattr("os.open", refuse)
    monkeypatch.setattr(socket, "socket", refuse)
    model = MMEmbR1Model(tiny.model.config)
    assert {name: weight.shape for name, weight in model.named_parameters()} == {
        name: weight.shape for name, weight in tiny.model.named_parameters()
    }


def test_the_gate_of_a_fresh_model_is_constant_and_prefers_direct(family, mixed):
    vlm, processor = build_tiny_vlm(family)
    fresh, processor = MMEmbR1Model.from_vlm(vlm, processor)
    built = MMEmbR1Model(fresh.config).eval()
    batch = render(processor, to_conversations(mixed))
    for model in (fresh, built):
        output = model.embed(**batch, max_reasoning_tokens=1)
        torch.testing.assert_close(output.gate_prob, torch.full((5,), -2.0).sigmoid())
        assert not output.reasoned.any()


def test_save_and_load(tiny, mixed, tmp_path, close):
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    model = MMEmbR1Model.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is type(tiny.processor)
    assert processor.chat_template == tiny.processor.chat_template
    assert model.config.vlm_config.model_type == tiny.family
    assert model.config.suppressed_token_ids == tiny.model.config.suppressed_token_ids
    odd = [*mixed, "text with <|embed|> in it"]
    before, batch = tiny.batch(odd), render(processor, to_conversations(odd))
    assert all(torch.equal(batch[key], before[key]) for key in before)
    assert batch.keys() == before.keys()
    with torch.no_grad():
        loaded = model.embed(**batch, reasoning="always", max_reasoning_rounds=2)
    expected = tiny.embed(odd, reasoning="always", max_reasoning_rounds=2)
    for key in expected:
        close(loaded[key].float(), expected[key].float())


def test_loading_part_of_a_checkpoint_keeps_that_part(qwen, tmp_path):
    """What is missing is initialised; the trained gate is not reset with it."""
    qwen.model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["gate.output.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = MMEmbR1Config.from_pretrained(tmp_path, pooling="attention", embedding_dim=8)
    model, _ = MMEmbR1Model.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert torch.equal(model.gate.output.weight, qwen.model.gate.output.weight)
    assert model.gate.output.bias.item() == -2
    assert model.embedding_head.projection.weight.isfinite().all()
    assert model.embedding_head.projection.weight.std() > 0


def test_loading_in_bfloat16(qwen, mixed, tmp_path):
    qwen.model.save_pretrained(tmp_path)
    model = MMEmbR1Model.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    batch = qwen.batch(mixed)
    expected = qwen.embed(mixed, reasoning="never").embeddings
    assert (model.embed(**batch, reasoning="never").embeddings * expected).sum(dim=-1).min() > 0.99
