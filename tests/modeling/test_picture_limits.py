"""`max_image_tokens`: no picture takes more tokens, in any family, on any way in; who can't keep it is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor

from mmemb_r1 import MMEmbR1
from mmemb_r1.encoding import input_sizes
from mmemb_r1.fingerprint import checkpoint_fingerprint
from mmemb_r1.modeling.backbones_mmemb_r1 import image_token_counter, narrow_pixels, picture_options
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module

QWEN, TILES = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl"), ("smolvlm", "idefics3", "internvl")
SIZES = [(64, 64), (300, 200), (2000, 100), (33, 1000), (100, 33), (700, 700), (20, 20), (64, 96), (1, 90)]


@pytest.fixture
def processor(family: str, tiny: Any) -> Any:
    """That of a family, with pictures of up to 64 tokens (Qwen), 4 x 4 tiles (Idefics) or 6 tiles."""
    processor = copy.deepcopy(tiny.processor)
    images = processor.image_processor
    if family in QWEN:
        images.size = {"shortest_edge": 4 * 32 * 32, "longest_edge": 64 * 32 * 32}
    elif family == "internvl":
        images.max_patches = 6
    elif family in TILES:
        images.do_image_splitting, images.size = True, {"longest_edge": 256}
    return processor


def pictures(processor: Any, sizes: list[tuple[int, int]], limit: int | None) -> list[int]:
    """Count the places of pictures in the prompts of pictures of these sizes."""
    values = [{"image": Image.new("RGB", size, "red"), "text": "a"} for size in sizes]
    ids = [render(processor, to_conversations([value]), max_image_tokens=limit)["input_ids"] for value in values]
    return [int((row == processor.image_token_id).sum()) for row in ids]


@pytest.mark.parametrize("limit", [70, 40, 20, 9, 7])
def test_no_picture_takes_more(processor: Any, family: str, limit: int) -> None:
    try:
        picture_options(processor, limit)
    except ValueError as error:
        assert family == "llava" and limit < 16 and "gives each picture 16 tokens at least; allowed: 16" in str(error)
        return
    free = pictures(processor, SIZES, None)
    limited = pictures(processor, SIZES, limit)
    assert max(limited) <= limit
    assert all(few <= many for few, many in zip(limited, free, strict=True))
    if limit < max(free):
        assert limited != free
    if family in QWEN:
        assert max(limited) > limit / 2  # no more is taken away than has to be
        assert max(pictures(processor, [(1200, 1000)], limit)) >= min(0.5 * limit, 20)
        assert [image_token_counter(processor, limit)(*size) for size in SIZES] == limited


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_qwen_keeps_any_limit(limit: int, qwen: Any) -> None:
    assert max(pictures(qwen.processor, SIZES, limit)) <= limit


def test_the_aspect_is_kept(qwen: Any) -> None:
    processor = copy.deepcopy(qwen.processor)
    processor.image_processor.size = {"shortest_edge": 4 * 32 * 32, "longest_edge": 64 * 32 * 32}
    value = to_conversations([{"image": Image.new("RGB", (1600, 800))}])
    _, rows, columns = render(processor, value, max_image_tokens=18)["image_grid_thw"][0].tolist()  # in half tokens
    assert (rows, columns) == (6, 12)


def test_without_a_limit_nothing_changes(processor: Any) -> None:
    value = to_conversations([{"image": Image.effect_noise((90, 60), 50).convert("RGB"), "text": "a"}])
    plain, large = render(processor, value), render(processor, value, max_image_tokens=10**6)
    assert plain.keys() == large.keys()
    assert all(torch.equal(plain[name], large[name]) for name in plain if isinstance(plain[name], torch.Tensor))


def test_fewer_than_a_picture_has_at_least_are_refused(family: str, processor: Any, make_tiny: Any) -> None:
    if family in QWEN:
        return
    with pytest.raises(ValueError, match=r"max_image_tokens=1: .* gives each picture \d+ tokens at least; allowed: "):
        picture_options(processor, 1)
    with pytest.raises(ValueError, match="max_image_tokens=1: "):
        tiny = make_tiny(family, max_image_tokens=1)
        MMEmbR1Module(tiny.model, tiny.processor)


def test_a_processor_that_does_not_tell_is_refused(qwen: Any) -> None:
    class Images:
        size = {"height": 8, "width": 8}

    class Own:
        image_processor = Images()

    with pytest.raises(ValueError, match="max_image_tokens=9: a Own has no option that mmemb-r1 knows for it"):
        picture_options(Own(), 9)


def test_a_gemma_that_crops_is_refused(make_tiny: Any) -> None:
    processor = copy.deepcopy(make_tiny("gemma3").processor)
    processor.image_processor.do_pan_and_scan = True
    with pytest.raises(ValueError, match="has no option that mmemb-r1 knows"):
        picture_options(processor, 100)


# every way in


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_tiny: Any) -> Path:
    tiny = make_tiny("qwen3_vl", max_image_tokens=2)
    path = tmp_path_factory.mktemp("limited")
    MMEmbR1.from_model(tiny.model, tiny.processor).save_pretrained(str(path))
    return path


LARGE = {"image": Image.effect_noise((256, 256), 80).convert("RGB"), "text": "a"}


def grid_of(module: Any) -> int:
    return int(module.preprocess([LARGE])["image_grid_thw"].prod()) // 4


def test_it_is_saved_and_kept_by_every_loader(folder: Path) -> None:
    ours, theirs = MMEmbR1(str(folder)), SentenceTransformer(str(folder), trust_remote_code=True)
    assert ours.max_image_tokens == 2
    assert grid_of(ours) == grid_of(theirs[0]) == 1
    model = AutoModel.from_pretrained(folder)
    assert model.config.max_image_tokens == 2
    processor = AutoProcessor.from_pretrained(folder)
    vectors = ours.encode([LARGE], convert_to_tensor=True)
    torch.testing.assert_close(theirs.encode([LARGE], convert_to_tensor=True), vectors)
    batch = render(processor, to_conversations([LARGE]), max_image_tokens=model.config.max_image_tokens)
    with torch.inference_mode():
        torch.testing.assert_close(model.embed(**batch, reasoning="never")["embeddings"], vectors)


def test_it_can_be_set_and_changes_vectors_keys_and_sizes(folder: Path) -> None:
    model = MMEmbR1(str(folder))
    tight = model.encode([LARGE])
    fingerprint = checkpoint_fingerprint(model[0])
    size = input_sizes([LARGE], model.processor, model[0].model.config)[0].tokens
    model.max_image_tokens = None
    assert grid_of(model) > 2
    assert abs(model.encode([LARGE]) - tight).max() > 1e-4
    assert checkpoint_fingerprint(model[0]) != fingerprint
    assert input_sizes([LARGE], model.processor, model[0].model.config)[0].tokens > size
    same = MMEmbR1(str(folder), config_kwargs={"max_image_tokens": None})
    assert abs(same.encode([LARGE]) - model.encode([LARGE])).max() == 0
    with pytest.raises(ValueError, match=r"max_image_tokens=0 \(tokens of one picture\) has to be one whole number"):
        model.max_image_tokens = 0
    assert model.max_image_tokens is None


def test_an_input_whose_picture_can_not_be_limited_is_named(make_tiny: Any) -> None:
    tiny = make_tiny("gemma3")
    module = MMEmbR1Module(tiny.model, tiny.processor)
    tiny.model.config.max_image_tokens = 1
    with pytest.raises(InputError, match="Input 1 .*max_image_tokens=1: this model's backbone gives each picture"):
        module.preprocess(["a", LARGE])


# pixels in 16 bits


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_narrow_pixels_give_the_same_vectors(family: str, make_tiny: Any, weights: torch.dtype) -> None:
    """Of a model in bfloat16, and of one in float32 that computes in bfloat16, as in training."""
    tiny = make_tiny(family)
    model = tiny.model.to(weights)
    batch = dict(render(tiny.processor, to_conversations([LARGE, "b"])))
    narrow = narrow_pixels(batch, torch.bfloat16)
    changed = [name for name in batch if narrow[name] is not batch[name]]
    assert changed and all(name.startswith("pixel_values") for name in changed)
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32)
    with torch.inference_mode(), mixed:
        wide, small = (model.embed(**one, reasoning="never")["embeddings"] for one in (batch, narrow))
    assert torch.equal(wide, small)
    assert MMEmbR1Module(model, tiny.processor).preprocess([LARGE])["pixel_values"].dtype == weights
    assert narrow_pixels(batch, torch.float32) is batch
