from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from mmemb_r1.tiny import FAMILIES, build_tiny_vlm, train_tokenizer
from mmemb_r1.tiny.config import TinySizes
from mmemb_r1.tiny.qwen import deepstack_layers

pytestmark = pytest.mark.disable_socket

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
WITH_VIDEO = (*QWEN, "smolvlm", "internvl")
QUICKSTART = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_layers": 4,
    "num_heads": 4,
    "vision_hidden_size": 192,
    "vision_layers": 3,
    "image_size": 64,
}
IMAGE = {"type": "image"}
Row = tuple[list[dict[str, Any]], list[Image.Image]]


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


# One row each: text only, one picture, two pictures; the text comes first because processors look at the first row.
ROWS: list[Row] = [
    ([{"role": "system", "content": "Be brief."}, user("capital of Peru?")], []),
    ([user(IMAGE, "What is this?")], [picture(0)]),
    ([user(IMAGE, IMAGE, "Which is larger?")], [picture(1, 100, 100), picture(2, 37, 50)]),
]


def encode(processor: ProcessorMixin, rows: list[Row], **kwargs: Any) -> Any:
    texts = [processor.apply_chat_template(m, add_generation_prompt=True, tokenize=False) for m, _ in rows]
    images = [images for _, images in rows]
    kwargs = {"padding": True, "padding_side": "right", "return_tensors": "pt", **kwargs}
    return processor(text=texts, images=images if any(images) else None, **kwargs)


@cache
def tiny(family: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    return build_tiny_vlm(family)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@torch.no_grad()
def logits(vlm: PreTrainedModel, batch: Any) -> torch.Tensor:
    return vlm(**batch).logits


def test_is_tiny_float32_in_eval_mode_with_tied_embeddings(family: str) -> None:
    vlm, processor = tiny(family)
    assert 40_000 <= sum(p.numel() for p in vlm.parameters()) <= 100_000
    assert {p.dtype for p in vlm.parameters()} == {torch.float32}
    assert not vlm.training
    assert vlm.get_output_embeddings().weight is vlm.get_input_embeddings().weight
    assert vlm.config.model_type == family
    assert vlm.get_input_embeddings().weight.shape[0] == len(processor.tokenizer)
    assert processor.tokenizer.model_max_length == 2048


def test_end_and_padding_are_control_tokens(family: str) -> None:
    vlm, processor = tiny(family)
    tokenizer = processor.tokenizer
    assert vlm.generation_config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert vlm.generation_config.pad_token_id == tokenizer.pad_token_id
    for token in (tokenizer.eos_token, tokenizer.pad_token, processor.image_token):
        assert token in tokenizer.all_special_tokens
        assert len(tokenizer.tokenize(token)) == 1


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[1:2], ROWS[2:], ROWS], ids=["text", "image", "two-images", "mixed"])
def test_forward_and_generate(family: str, rows: Any) -> None:
    vlm, processor = tiny(family)
    batch = encode(processor, rows, padding_side="left")
    out = logits(vlm, batch)
    assert out.shape == (*batch["input_ids"].shape, len(processor.tokenizer))
    assert out.isfinite().all()
    generated = vlm.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert generated.shape == (len(rows), batch["input_ids"].shape[1] + 4)


def test_mixed_batch_is_its_parts(family: str) -> None:
    vlm, processor = tiny(family)
    together = logits(vlm, encode(processor, ROWS))
    for i, row in enumerate(ROWS):
        alone = logits(vlm, encode(processor, [row]))[0]
        torch.testing.assert_close(together[i, : len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_pixels_reach_the_logits(family: str) -> None:
    vlm, processor = tiny(family)
    messages, _ = ROWS[1]
    one, other = (logits(vlm, encode(processor, [(messages, [picture(seed)])])) for seed in (3, 4))
    assert (one[0, -1] - other[0, -1]).abs().max() > 1e-6


@pytest.mark.parametrize("family", WITH_VIDEO)
def test_video(family: str) -> None:
    vlm, processor = tiny(family)
    text = processor.apply_chat_template(
        [user({"type": "video"}, "What happens?")],
        chat_template=processor.chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )
    frames = np.stack([np.asarray(picture(seed)) for seed in range(4)])
    batch = processor(text=[text], videos=[[frames]], return_tensors="pt")
    out = logits(vlm, batch)
    still = processor(text=[text], videos=[[np.stack([frames[0]] * 4)]], return_tensors="pt")
    assert out.isfinite().all()
    assert (out[0, -1] - logits(vlm, still)[0, -1]).abs().max() > 1e-6
    assert vlm.generate(**batch, max_new_tokens=4, min_new_tokens=4).shape[1] == batch["input_ids"].shape[1] + 4


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(WITH_VIDEO)))
def test_video_in_a_family_without_videos_is_an_error(family: str) -> None:
    _, processor = tiny(family)
    with pytest.raises(TemplateError, match="video.*Allowed: text, image"):
        processor.apply_chat_template([user({"type": "video"})], tokenize=False)


def test_chat_template(family: str) -> None:
    _, processor = tiny(family)
    tokenizer = processor.tokenizer
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Yes."},
    ]
    start, end = tokenizer.turn_start_token, tokenizer.eos_token
    turns = f"{start}system Be brief.{end}{start}user Hi{end}{start}assistant Yes.{end}"
    assert processor.apply_chat_template(messages, tokenize=False) == turns
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == f"{turns}{start}assistant"
    for role in ("system", "user", "assistant"):
        assert len(tokenizer.tokenize(role)) == 1


def test_save_and_load(family: str, tmp_path: Any) -> None:
    vlm, processor = tiny(family)
    vlm.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded_vlm = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    loaded_processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded_processor) is type(processor)
    assert loaded_processor.chat_template == processor.chat_template
    batch, loaded_batch = encode(processor, ROWS), encode(loaded_processor, ROWS)
    assert set(batch) == set(loaded_batch)
    torch.testing.assert_close(logits(loaded_vlm, loaded_batch), logits(vlm, batch), rtol=0, atol=0)
    assert loaded_vlm.generation_config.eos_token_id == vlm.generation_config.eos_token_id


def test_every_matrix_is_random(family: str) -> None:
    vlm, _ = tiny(family)
    assert [name for name, weight in vlm.named_parameters() if weight.ndim > 1 and not weight.any()] == []


def test_seed_decides_the_weights_and_leaves_the_global_state(family: str) -> None:
    state = torch.random.get_rng_state()
    same, same_processor = build_tiny_vlm(family)
    other, _ = build_tiny_vlm(family, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    vlm, processor = tiny(family)
    assert processor.tokenizer.get_vocab() == same_processor.tokenizer.get_vocab()
    assert all(torch.equal(a, b) for a, b in zip(vlm.parameters(), same.parameters(), strict=True))
    assert not torch.equal(vlm.get_input_embeddings().weight, other.get_input_embeddings().weight)


def test_larger_sizes_reach_every_family(family: str) -> None:
    vlm, processor = build_tiny_vlm(
        family, hidden_size=48, num_layers=3, num_heads=2, vision_hidden_size=24, vision_layers=3, image_size=128
    )
    text = vlm.config.get_text_config()
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (48, 3, 2)
    assert logits(vlm, encode(processor, ROWS)).isfinite().all()


def test_quickstart_backbone() -> None:
    vlm, processor = build_tiny_vlm("qwen3_vl", texts=["The capital of Peru is Lima."], **QUICKSTART)
    vocabulary = 4096 * 256
    parameters = sum(p.numel() for p in vlm.parameters()) - vlm.get_input_embeddings().weight.numel() + vocabulary
    assert 5e6 <= parameters <= 8e6
    batch = encode(processor, ROWS[1:2])
    assert (batch["input_ids"] == processor.image_token_id).sum() == 4


@pytest.mark.parametrize("family", QWEN)
@pytest.mark.parametrize("image_size", [64, 96])
def test_square_pictures_become_exactly_image_size(family: str, image_size: int) -> None:
    _, processor = build_tiny_vlm(family, image_size=image_size)
    pictures = [picture(0, edge, edge) for edge in range(8, 300)]
    grids = processor.image_processor(pictures, return_tensors="pt")["image_grid_thw"]
    assert grids.unique(dim=0).tolist() == [[1, image_size // 16, image_size // 16]]


def test_deepstack_layers_lie_before_the_last() -> None:
    assert deepstack_layers(27, 36) == [6, 13, 20]
    assert deepstack_layers(3, 4) == [1]
    assert deepstack_layers(2, 2) == [0]
    assert deepstack_layers(1, 2) == [0]


def test_tokenizer_encodes_what_it_never_saw() -> None:
    tokenizer = train_tokenizer(["abc"], 300, {"pad_token": "<pad>", "eos_token": "<eos>", "image_token": "<image>"})
    text = "Grüße 東京 🦙\n\t<eos>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.image_token_id) == (0, 1, 2)


def test_tokenizer_learns_the_texts() -> None:
    text = "The capital of Peru is Lima."
    small, large = (train_tokenizer([text] * 10, size, {"pad_token": "<pad>"}) for size in (280, 400))
    assert len(large(text)["input_ids"]) < len(small(text)["input_ids"])


def test_unknown_family() -> None:
    with pytest.raises(ValueError, match="Got family='bert'. Allowed: .*qwen3_vl.*internvl"):
        build_tiny_vlm("bert")


def test_sizes_left_at_zero_follow_from_the_others() -> None:
    sizes = TinySizes(num_heads=4, hidden_size=64)
    assert (sizes.num_key_value_heads, sizes.intermediate_size) == (2, 192)
    assert TinySizes(num_heads=1).num_key_value_heads == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 32}, r"unknown size\(s\) \['width'\]. Allowed: \['hidden_size'"),
        ({"num_layers": 0}, "num_layers=0, which must be an integer of at least 1"),
        ({"num_heads": "4"}, "num_heads='4', which must be an integer of at least 1"),
        ({"vision_layers": -1}, "vision_layers=-1, which must be an integer of at least 1"),
        ({"hidden_size": 36}, r"hidden_size=36, which must be a multiple of 2 \* num_heads = 8"),
        ({"vision_hidden_size": 24}, r"vision_hidden_size=24, which must be a multiple of 4 \* num_heads = 16"),
        ({"image_size": 48}, r"image_size=48, which must be a multiple of 2 \* patch_size = 32"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TinySizes.from_kwargs(sizes)


def test_vocabulary_must_hold_bytes_and_control_tokens() -> None:
    with pytest.raises(ValueError, match="vocab_size=200, which must be at least 263"):
        build_tiny_vlm("qwen3_vl", vocab_size=200)
