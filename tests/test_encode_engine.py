"""How `encode` spends its time: equal inputs once, what was embedded before never again, full batches of thinkers."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmemb_r1 import MMEmbR1, MMEmbR1Config
from mmemb_r1.embedding_cache import FILE, EmbeddingCache
from mmemb_r1.encoding import InputSize, input_sizes, plan_batches
from mmemb_r1.modeling.decoding_mmemb_r1 import Decoder
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module
from mmemb_r1.tiny import FAMILIES, build_tiny_vlm

pytestmark = pytest.mark.usefixtures("one_thread")
ALWAYS = {"reasoning": "always", "max_reasoning_tokens": 4}
RED, BLUE = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))
REPEATED = ["Lima", RED, {"text": "Lima"}, "Quito", RED.copy(), {"image": RED, "text": "Lima"}, "Lima", BLUE]
DISTINCT = 5  # of these


@pytest.fixture
def model(thinking: Callable[..., MMEmbR1]) -> MMEmbR1:
    return thinking()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows of every batch that is read."""
    seen: list[int] = []
    original = MMEmbR1Module.preprocess

    def preprocess(self: MMEmbR1Module, inputs: Any, **options: Any) -> Any:
        seen.append(len(inputs))
        return original(self, inputs, **options)

    monkeypatch.setattr(MMEmbR1Module, "preprocess", preprocess)
    return seen


def assert_close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=1e-5, rtol=0)


# equal inputs


@pytest.mark.parametrize(
    "options", [{}, {"convert_to_tensor": True}, {"convert_to_numpy": False}, {"precision": "ubinary"}]
)
def test_equal_inputs_are_embedded_once(model, batches, options):
    together = model.encode(REPEATED, **ALWAYS, **options)
    assert sum(batches) == DISTINCT
    if options.get("convert_to_numpy", True):
        assert type(together) is (torch.Tensor if options.get("convert_to_tensor") else np.ndarray)
    alone = [model.encode([value], **ALWAYS, **options)[0] for value in REPEATED]
    assert len(together) == len(REPEATED)
    for one, other in zip(together, alone, strict=True):
        assert_close(one, other)


def test_what_is_explained_of_equal_inputs_is_theirs_alone(model):
    rows = model.encode(["Lima", "Lima"], output_value=None, **ALWAYS)
    rows[0].clear()
    assert rows[1]["reasoned"]


def test_an_error_names_the_first_of_equal_inputs(model):
    with pytest.raises(InputError, match="Input 3 "):
        model.encode(["Lima", "Lima", "Quito", {"image": "nowhere.png"}, "Lima", {"image": "nowhere.png"}])


# the cache


@pytest.fixture
def cached(model: MMEmbR1, tmp_path: Path) -> Iterator[MMEmbR1]:
    with EmbeddingCache(tmp_path / "cache") as cache:
        model.embedding_cache = cache
        yield model


@pytest.mark.parametrize(
    "options", [{}, {"truncate_dim": 8}, {"normalize_embeddings": True}, {"precision": "ubinary"}]
)
@pytest.mark.parametrize("reasoning", ["always", "auto", "never"])
def test_a_second_time_costs_nothing(cached, batches, reasoning, options):
    first = cached.encode(REPEATED, reasoning=reasoning, **options)
    assert cached.embedding_cache is not None
    assert len(cached.embedding_cache) == DISTINCT
    batches.clear()
    assert (cached.encode(REPEATED[::-1], reasoning=reasoning, **options)[::-1] == first).all()
    assert batches == []
    cached.embedding_cache = None
    assert_close(first, cached.encode(REPEATED, reasoning=reasoning, **options))


def test_everything_comes_back(cached, batches):
    first = cached.explain(REPEATED, **ALWAYS)
    batches.clear()
    again = cached.explain([*REPEATED, "Arequipa"], **ALWAYS)
    assert batches == [1]  # only what is new is read
    for one, other in zip(first, again, strict=False):
        assert_close(one.pop("embedding"), other.pop("embedding"))
        assert one == other


def test_what_changes_a_row_is_another_entry(cached, batches):
    base = {"reasoning": "always", "max_reasoning_tokens": 4, "max_reasoning_rounds": 1}
    variants: list[dict[str, Any]] = [
        base, {**base, "max_reasoning_tokens": 3}, {**base, "max_reasoning_rounds": 2}, {"reasoning": "never"},
        {**base, "prompt": "Find the city."}, {"task": "document", "prompt": "A city."}, {"reasoning": "auto"},
    ]  # fmt: skip
    for _ in range(2):
        for options in variants:
            cached.encode(["Lima"], **options)
    assert len(batches) == len(cached.embedding_cache) == len(variants)
    cached.encode(["Lima"], **base, batch_size=1, decode_batch_size=1, truncate_dim=4, show_progress_bar=False)
    cached.encode_document(["Lima"], prompt="A city.")  # direct by default, as above
    assert len(batches) == len(variants)


def test_other_weights_are_another_checkpoint(cached, batches):
    before = cached.encode(["Lima"])
    with torch.no_grad():
        cached[0].model.get_input_embeddings().weight[:] *= -1
    after = cached.encode(["Lima"])
    assert len(batches) == 2
    assert np.abs(before - after).max() > 1e-3


def test_a_damaged_entry_is_made_again(cached, batches):
    first = cached.encode(["Lima", "Quito"])
    with sqlite3.connect(cached.embedding_cache.folder / FILE) as connection:
        connection.execute("UPDATE rows SET value = substr(value, 1, 40) WHERE key = (SELECT min(key) FROM rows)")
    batches.clear()
    assert_close(cached.encode(["Lima", "Quito"]), first)
    assert batches == [1]


def test_a_cache_is_shared(cached, batches):
    cached.encode(["Lima"])
    first = cached.embedding_cache
    cached.embedding_cache = str(first.folder)
    assert cached.embedding_cache.folder == first.folder
    cached.encode(["Lima"])
    cached.embedding_cache.close()
    assert batches == [1]


# batches


def test_thinkers_of_several_batches_share_their_steps(model, monkeypatch):
    sizes = []
    step = Decoder.step

    def counted(decoder: Decoder) -> None:
        sizes.append(len(decoder))
        step(decoder)

    monkeypatch.setattr(Decoder, "step", counted)
    texts = [f"city {number}" for number in range(12)]
    expected = model.encode(texts, batch_size=12, **ALWAYS)
    for decode_batch_size, largest in ((None, 8), (4, 4), (12, 12)):
        sizes.clear()
        options = {} if decode_batch_size is None else {"decode_batch_size": decode_batch_size}
        assert_close(model.encode(texts, batch_size=2, **options, **ALWAYS), expected)
        assert max(sizes) == largest


def test_a_budget_of_tokens_makes_smaller_batches(model, batches):
    texts = ["city " * 40] * 2 + ["town " * 40, "lake " * 40, "river", "sea", "hill"]
    expected = model.encode(texts, batch_size=8)
    assert batches == [6]
    batches.clear()
    assert_close(model.encode(texts, batch_size=8, max_batch_tokens=110), expected)
    assert batches == [2, 2, 2] or batches == [2, 1, 3] or batches == [2, 4]
    with pytest.raises(ValueError, match="max_batch_token"):
        model.encode(texts, max_batch_token=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_larger_pictures_are_longer(family, tmp_path):
    """Whatever a picture is handed over as; nothing is decoded, and what can't be opened has a length too."""
    _, processor = build_tiny_vlm(family)
    large, small = Image.new("RGB", (256, 256)), Image.new("RGB", (64, 64))
    large.save(tmp_path / "large.png")
    content = (tmp_path / "large.png").read_bytes()
    (tmp_path / "none.png").write_bytes(b"no picture")
    undecoded = {"image": {"bytes": content, "path": None}}
    values = [
        large, str(tmp_path / "large.png"), {"image": tmp_path / "large.png"}, content, undecoded,
        np.asarray(large), {"image": large}, [{"role": "user", "content": [{"type": "image", "image": large}]}],
    ]  # fmt: skip
    first, *others, little, more = input_sizes(
        [*values, small, {"text": "x" * 40, "image": large}], processor, MMEmbR1Config()
    )
    assert others == [first] * 7
    assert 0 < little.tokens <= first.tokens < more.tokens
    assert input_sizes(["Lima", {"text": "Lima"}], processor, MMEmbR1Config()) == [InputSize(False, 2)] * 2
    broken = [str(tmp_path / "none.png"), "nowhere.png", {"video": np.zeros((4, 64, 64, 3))}, b"", 3]
    assert min(size.tokens for size in input_sizes(broken, processor, MMEmbR1Config())) > 0


def test_what_is_not_looked_into_counts_as_media(model, tmp_path, monkeypatch):
    """By what a part is and not by what its name ends in; of text that is cut only what is left counts."""
    config = model[0].model.config
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"")
    (tmp_path / "picture").write_bytes(b"")
    values = [
        {"video": "clip"}, "clip.mp4", [{"role": "user", "content": [{"type": "video", "video": "clip.mp4"}]}],
        {"image": str(tmp_path / "picture")}, {"image": {"bytes": None, "path": "x.png"}},
        {"image": "https://example.org/?format=jpg"}, {"image": "data:image/png;base64," + "A" * 10**6},
    ]  # fmt: skip
    sizes = input_sizes(values, model.processor, config)
    assert all(size.media and size.tokens < 10**4 for size in sizes)
    assert sizes[0] == sizes[1] == sizes[2]
    assert sizes[0].tokens == config.num_video_frames * sizes[3].tokens
    assert input_sizes(["a" * 10**6], model.processor, config) == [InputSize(False, config.max_text_tokens)]


def test_messages_in_a_tuple_are_inputs(model):
    """As in sentence-transformers: a list of messages is one chat, any other collection holds as many inputs."""
    first, second = ({"role": "user", "content": text} for text in ("Lima", "Quito"))
    expected = model.encode(["Lima", "Quito", "Lima"], **ALWAYS)
    assert_close(model.encode((first, second, first), **ALWAYS), expected)


@pytest.mark.parametrize("with_cache", [True, False])
@pytest.mark.parametrize("budget", [[2, 6], 4.0, "4"])
def test_one_budget_for_all_inputs(model, tmp_path, with_cache, budget):
    model.embedding_cache = tmp_path / "cache" if with_cache else None
    with pytest.raises(ValueError, match="max_reasoning_tokens=.* has to be one whole number"):
        model.encode(["Lima", "Quito and La Paz"], reasoning="always", max_reasoning_tokens=budget)
    numbers = {"max_reasoning_tokens": np.int64(2), "max_reasoning_rounds": np.int64(2)}
    (row,) = model.explain(["Lima"], reasoning="always", **numbers)
    assert row["num_reasoning_tokens"] <= 4 and row["num_reasoning_rounds"] == 2


def test_what_is_no_file_is_not_opened(model, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for value in ({"image": str(tmp_path / "pipe.png")}, {"video": str(tmp_path / "pipe.png")}):
        with pytest.raises(InputError):
            model.encode([value])


def test_modules_that_come_later_get_their_options(thinking):
    class Scale(torch.nn.Module):
        forward_kwargs = {"scale"}

        def forward(self, features: dict[str, Any], scale: float = 1.0) -> dict[str, Any]:
            return {**features, "sentence_embedding": features["sentence_embedding"] * scale}

    model = thinking()
    model.append(Scale())
    assert_close(np.linalg.norm(model.encode(["Lima"], scale=3.0)), 3.0)


def test_every_row_is_in_one_batch():
    """Within both limits; few batches have rows with media and rows without."""
    generator = np.random.default_rng(0)
    tokens, media = generator.integers(1, 100, 500).tolist(), (generator.random(500) < 0.3).tolist()
    sizes = [InputSize(*size) for size in zip(media, tokens, strict=True)]
    plan = plan_batches(sizes, batch_size=16, max_batch_tokens=300)
    assert sorted(row for rows in plan for row in rows) == list(range(500))
    for rows in plan:
        assert len(rows) <= 16
        assert len(rows) == 1 or len(rows) * max(tokens[row] for row in rows) <= 300
    assert [sizes[row] for rows in plan for row in rows] == sorted(sizes, reverse=True)
    assert sum(len({media[row] for row in rows}) > 1 for rows in plan) <= 1


def test_the_command_passes_its_sizes_on(tiny_checkpoint, batches, monkeypatch, tmp_path):
    from mmemb_r1.cli import run

    sizes: list[int] = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self: (sizes.append(len(self)), step(self))[1])
    (tmp_path / "in.jsonl").write_text("\n".join(f'"number {n}"' for n in range(6)), encoding="utf-8")
    files = ["--model", tiny_checkpoint, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.npy"]
    fixed = ["--device", "cpu", "--reasoning", "always", "--max-reasoning-tokens", "2"]
    sizes_given = ["--batch-size", "3", "--decode-batch-size", "2"]
    assert run(["encode", *map(str, files), *fixed, *sizes_given]) == 0
    assert batches == [3, 3]
    assert max(sizes) == 2
    batches.clear()
    assert run(["encode", *map(str, files), *fixed, "--max-batch-tokens", "1"]) == 0
    assert batches == [1] * 6
