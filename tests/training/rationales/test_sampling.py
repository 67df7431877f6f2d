"""Sampling that depends on a row's own seed and its own prompt, and on nothing else."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.rationale_tokens import append_tokens
from mmemb_r1.tiny import FAMILIES, build_tiny_vlm
from mmemb_r1.training.rationales.sampling import choose, draw_continuations, row_uniforms
from mmemb_r1.training.shared_prefix import branch, read_prefix

LOGITS = torch.tensor([0.5, -torch.inf, 2.0, 1.0, -1.0, 1.0])


def shares(count: int = 20_000, **options: float) -> torch.Tensor:
    """How often each token is drawn by numbers that are spread evenly."""
    uniforms = (torch.arange(count) + 0.5) / count
    drawn = choose(LOGITS.expand(count, -1), uniforms, **options)
    return drawn.bincount(minlength=len(LOGITS)) / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_choosing_follows_the_softmax(temperature):
    torch.testing.assert_close(shares(temperature=temperature), (LOGITS / temperature).softmax(0), atol=1e-4, rtol=0)


def test_seeded_numbers_follow_it_too():
    numbers = row_uniforms(range(20_000), 1)[:, 0]
    drawn = choose(LOGITS.expand(len(numbers), -1), numbers)
    share = drawn.bincount(minlength=len(LOGITS)) / len(numbers)
    torch.testing.assert_close(share, LOGITS.softmax(0), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1e-6, [2]), (0.4, [2]), (0.6, [2, 3]), (0.8, [2, 3, 5]), (1.0, [0, 2, 3, 4, 5])]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    """The probabilities are 0.11, 0, 0.50, 0.18, 0.02, 0.18; of equals the lower id comes first."""
    probabilities = LOGITS.softmax(0)
    expected = torch.zeros_like(probabilities)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    torch.testing.assert_close(shares(top_p=top_p), expected, atol=1e-4, rtol=0)


def test_the_likeliest_come_first():
    uniforms = torch.linspace(0, 1, 1000)[:-1]
    probabilities = LOGITS.softmax(0)[choose(LOGITS.expand(len(uniforms), -1), uniforms)]
    assert (probabilities.diff() <= 0).all()


@pytest.mark.parametrize("temperature", [0, 1e-40, 1e-3])
def test_low_temperatures_are_greedy(temperature):
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0)) * 10
    assert torch.equal(choose(logits, row_uniforms(range(50), 1)[:, 0], temperature), logits.argmax(dim=1))


def test_a_row_is_chosen_by_itself():
    logits = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    uniforms = row_uniforms(range(40), 1)[:, 0]
    together = choose(logits, uniforms, 0.9, 0.95)
    alone = [choose(logits[row : row + 1], uniforms[row : row + 1], 0.9, 0.95) for row in range(40)]
    assert torch.equal(together, torch.cat(alone))


def test_the_extremes_of_the_unit_interval():
    just_below_one = torch.tensor([1.0]).nextafter(torch.tensor([0.0]))
    for count in (2, 1000, 150_000):
        logits = torch.zeros(1, count)
        assert choose(logits, torch.zeros(1)).tolist() == [0]
        assert choose(logits, just_below_one).tolist() <= [count - 1]
    assert choose(LOGITS[None], just_below_one).tolist() == [4]


def test_numbers_are_those_of_the_rows_seed():
    numbers = row_uniforms([7, 8, 7], 5)
    assert numbers.shape == (3, 5)
    assert torch.equal(numbers[0], numbers[2]) and not torch.equal(numbers[0], numbers[1])
    assert torch.equal(row_uniforms([8], 5), numbers[1:2])
    assert torch.equal(row_uniforms([7, 8, 7], 300)[:, :5], numbers)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert row_uniforms([], 5).shape == (0, 5)


@torch.no_grad()
def sharpened(family: str) -> tuple[Any, Any]:
    vlm, processor = build_tiny_vlm(family)
    for parameter in vlm.parameters():
        if parameter.ndim > 1:
            parameter.mul_(8.0)
    return vlm, processor


@contextmanager
def ending_often(vlm: Any, end: int, strength: float = 3.0):
    """Raises the logit of a token, so that rows end at different lengths."""

    def hook(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits + strength * logits.std(dim=-1, keepdim=True) * (torch.arange(logits.shape[-1]) == end)

    with vlm.get_output_embeddings().register_forward_hook(hook):
        yield


@torch.no_grad()
def read_anew(vlm: Any, batch: dict[str, Any], seed: int, end: int, max_tokens: int, **options: float):
    """One continuation, each token from a pass over all before it, without a cache."""
    ids: list[int] = []
    numbers = row_uniforms([seed], max_tokens)[0]
    for number in numbers:
        inputs = append_tokens(batch, [ids], pad_token_id=0)
        token = int(choose(vlm(**inputs, use_cache=False).logits[:, -1], number[None], **options))
        if token == end:
            return ids, True
        ids.append(token)
    return ids, False


@pytest.mark.parametrize("family", FAMILIES)
def test_continuations_are_those_of_an_uncached_loop(family, squares):
    vlm, processor = sharpened(family)
    inputs = [{"text": "Which is larger?", "image": squares[:2]}, "a", {"image": squares[2], "text": "What is this?"}]
    rows, seeds = [0, 0, 1, 1, 2, 2, 2], [1, 2, 1, 2, 1, 2, 1]
    end, options = processor.tokenizer.eos_token_id, {"temperature": 0.9, "top_p": 0.95}

    def batch(values: list[Any]) -> dict[str, Any]:
        return dict(render(processor, to_conversations(values)))

    with ending_often(vlm, end):
        prefix = branch(read_prefix(vlm, batch(inputs)), torch.tensor(rows))
        drawn = draw_continuations(vlm, prefix, seeds, end_ids=[end], max_tokens=8, **options)
        expected = [
            read_anew(vlm, batch([inputs[row]]), seed, end, 8, **options)
            for row, seed in zip(rows, seeds, strict=True)
        ]
    assert [(one.token_ids, one.ended) for one in drawn] == expected
    assert drawn[4] == drawn[6]
    assert len({tuple(one.token_ids) for one in drawn}) > 3


@pytest.fixture(scope="module")
def qwen():
    return sharpened("qwen3_vl")


def continuations(qwen: Any, seeds: list[int], max_tokens: int = 12, end_ids: Any = None, **options: float):
    vlm, processor = qwen
    prefix = read_prefix(vlm, render(processor, to_conversations(["What is this?"])))
    ends = [processor.tokenizer.eos_token_id] if end_ids is None else end_ids
    rows = torch.zeros(len(seeds), dtype=torch.long)
    return draw_continuations(vlm, branch(prefix, rows), seeds, end_ids=ends, max_tokens=max_tokens, **options)


def test_budget_and_ends(qwen):
    (whole,) = continuations(qwen, [3])
    assert len(whole.token_ids) == 12 and not whole.ended
    (shorter,) = continuations(qwen, [3], max_tokens=5)
    assert shorter.token_ids == whole.token_ids[:5] and not shorter.ended
    end = whole.token_ids[4]
    place = whole.token_ids.index(end)
    for ends in ([end], [383, end]):
        (ended,) = continuations(qwen, [3], end_ids=ends)
        assert ended.token_ids == whole.token_ids[:place] and ended.ended
    (just,) = continuations(qwen, [3], max_tokens=place + 1, end_ids=[end])
    assert just.ended
    assert continuations(qwen, []) == []


def test_rows_that_have_ended_are_not_read_on(qwen, monkeypatch):
    vlm, processor = qwen
    seen = []
    forward = type(vlm).forward
    with ending_often(vlm, processor.tokenizer.eos_token_id):
        monkeypatch.setattr(
            type(vlm), "forward", lambda self, **kw: seen.append(len(kw["input_ids"])) or forward(self, **kw)
        )
        drawn = continuations(qwen, list(range(20)))
    lengths = [len(one.token_ids) for one in drawn]
    assert len(set(lengths)) > 2
    longest = max(map(len, (one.token_ids for one in drawn)))
    # after the prompt, step t reads token t of those rows that have one and need another
    expected = [sum(len(one.token_ids) > step for one in drawn) for step in range(min(longest, 11))]
    assert seen == [1, *expected]
