"""Adaptive decoding: cached equals recomputed, budgets are exact, control tokens stay out of rationales."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmemb_r1.modeling.backbones_mmemb_r1 import token_positions, uses_multimodal_rope
from mmemb_r1.modeling.decoding_mmemb_r1 import Sampling, left_padded

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
BUDGET = 4


@torch.no_grad()
def thought_without_cache(tiny: Any, value: Any, rounds: int) -> list[int]:
    """Greedy rationales of one input, every token from a forward pass over the whole sequence so far."""
    config = tiny.model.config
    batch, ids = tiny.batch([value]), []
    for _ in range(rounds):
        ids.append(config.think_token_id)
        for _ in range(BUDGET):
            hidden = tiny.model(**tiny.complete(batch, [ids])).last_hidden_state[0, -1]
            logits = tiny.model.get_output_embeddings()(hidden)
            logits[config.suppressed_token_ids] = -torch.inf
            ids.append(int(logits.argmax()))
            if ids[-1] == config.end_think_token_id:
                break
        if ids[-1] != config.end_think_token_id:
            ids.append(config.end_think_token_id)
        ids.append(config.embed_token_id)
    return ids


@pytest.mark.parametrize("rounds", [1, 2])
def test_greedy_rationales_are_those_of_an_uncached_loop(tiny, mixed, rounds):
    output = tiny.embed(mixed, reasoning="always", max_reasoning_rounds=rounds, max_reasoning_tokens=BUDGET)
    assert output.num_reasoning_rounds.tolist() == [rounds] * len(mixed)
    for value, suffix in zip(mixed, tiny.suffixes(output), strict=True):
        assert suffix == thought_without_cache(tiny, value, rounds)


def test_greedy_rationales_over_videos(tiny, clips):
    if not tiny.takes_videos:
        assert tiny.family in ("idefics3", "llava", "gemma3")
        return
    output = tiny.embed(clips, reasoning="always")
    assert tiny.suffixes(output) == [thought_without_cache(tiny, value, 1) for value in clips]


def test_rationales_depend_on_the_input(tiny, mixed):
    """Otherwise the comparisons above would hold for any cache."""
    rationales = tiny.embed(mixed, reasoning="always", max_reasoning_tokens=8).rationale_ids
    assert len(rationales.unique(dim=0)) > 1


@pytest.mark.parametrize("budget", [1, 2, 7])
def test_a_rationale_without_an_end_is_closed_by_force(qwen, mixed, budget):
    token = qwen.processor.tokenizer.convert_tokens_to_ids("a")
    rounds = 3
    with qwen.biased(token):
        output = qwen.embed(mixed, reasoning="always", max_reasoning_tokens=budget, max_reasoning_rounds=rounds)
    config = qwen.model.config
    between = [config.end_think_token_id, config.embed_token_id, config.think_token_id]
    expected = [token] * budget + 2 * (between + [token] * budget)
    assert output.rationale_ids.tolist() == [expected] * 5
    assert output.num_reasoning_tokens.tolist() == [rounds * budget] * 5
    assert output.num_forced_closings.tolist() == [rounds] * 5
    assert output.reasoned.all()


def test_a_rationale_ends_with_the_closing_token(qwen, mixed):
    with qwen.biased(qwen.model.config.end_think_token_id):
        output = qwen.embed(mixed, reasoning="always", max_reasoning_tokens=7)
    assert output.rationale_ids.shape == (5, 0)
    assert output.reasoned.all()
    assert output.num_reasoning_rounds.tolist() == [1] * 5
    assert output.num_reasoning_tokens.tolist() == output.num_forced_closings.tolist() == [0] * 5


def test_closing_just_in_time_is_not_forced(qwen, mixed):
    """The model closes after two tokens: with a budget of two that is its own decision, with one it is not."""
    end, token = qwen.model.config.end_think_token_id, qwen.processor.tokenizer.convert_tokens_to_ids("a")
    prompt = qwen.batch(mixed[:1])["input_ids"].shape[1]
    steps: list[int] = []

    def choose(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        steps.append(prompt)
        wanted = token if len(steps) <= 2 else end
        return logits + 1e4 * (torch.arange(logits.shape[-1]) == wanted)

    for budget, forced, tokens in ((2, 0, 2), (1, 1, 1), (5, 0, 2)):
        steps.clear()
        with qwen.model.get_output_embeddings().register_forward_hook(choose):
            output = qwen.embed(mixed[:1], reasoning="always", max_reasoning_tokens=budget)
        assert output.num_forced_closings.tolist() == [forced]
        assert output.rationale_ids.tolist() == [[token] * tokens]


def test_rows_end_apart(tiny, mixed, close):
    """Rows that close early leave the batch; those that remain are not disturbed."""
    end, head = tiny.model.config.end_think_token_id, tiny.model.get_output_embeddings()
    direction = torch.randn(head.weight.shape[1], generator=torch.Generator().manual_seed(1))

    def close_on_one_side(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits + 1e4 * ((args[0] @ direction > 0)[:, None] & (torch.arange(logits.shape[-1]) == end))

    with head.register_forward_hook(close_on_one_side):
        chosen = {"reasoning": "always", "max_reasoning_tokens": 6, "max_reasoning_rounds": 3}
        together = tiny.embed(mixed, **chosen)
        alone = [tiny.embed([value], **chosen) for value in mixed]
    close(together.embeddings, torch.cat([output.embeddings for output in alone]))
    lengths = together.num_reasoning_tokens.tolist()
    assert lengths == [int(output.num_reasoning_tokens) for output in alone]
    assert len(set(lengths)) > 1


def test_control_tokens_never_occur_in_a_rationale(tiny, mixed):
    config, tokenizer = tiny.model.config, tiny.processor.tokenizer
    controls = set(tokenizer.added_tokens_decoder) - {config.end_think_token_id}
    assert {config.embed_token_id, config.think_token_id, tokenizer.eos_token_id} <= controls
    assert set(config.suppressed_token_ids) == controls
    for token in controls:
        with tiny.biased(token):
            ids = tiny.embed(mixed[:1], reasoning="always").rationale_ids
        assert not set(ids.flatten().tolist()) & controls


def test_the_gate_is_asked_after_every_round(qwen, mixed):
    """Each row stops at the first marker whose gate probability lies below the threshold."""
    rounds = 4
    every = qwen.embed(mixed, reasoning="always", max_reasoning_rounds=rounds)
    with torch.no_grad():
        probabilities = qwen.model(**qwen.complete(qwen.batch(mixed), qwen.suffixes(every))).gate_logits.sigmoid()
    for threshold in probabilities.flatten().quantile(torch.tensor([0.2, 0.4, 0.6])).tolist():
        threshold += 1e-3
        output = qwen.embed(
            mixed, reasoning="auto", gate_threshold=threshold, max_reasoning_rounds=rounds, output_all_embeddings=True
        )
        expected = (probabilities[:, :rounds] >= threshold).long().cumprod(dim=1).sum(dim=1)
        assert output.num_reasoning_rounds.tolist() == expected.tolist()
        for row, reached in enumerate(expected.tolist()):
            assert (output.all_embeddings[row, reached:] == output.embeddings[row]).all()


def test_thresholds_at_the_ends(qwen, mixed):
    assert not qwen.embed(mixed, reasoning="auto", gate_threshold=1.0).reasoned.any()
    assert qwen.embed(mixed, reasoning="auto", gate_threshold=0.0).reasoned.all()


def test_defaults_are_the_configs(make_tiny, mixed):
    tiny = make_tiny("smolvlm", reasoning="always", max_reasoning_tokens=2, max_reasoning_rounds=3)
    with tiny.biased(tiny.processor.tokenizer.convert_tokens_to_ids("a")):
        output = tiny.embed(mixed)
    assert output.num_reasoning_rounds.tolist() == [3] * 5
    assert output.num_reasoning_tokens.tolist() == [6] * 5
    tiny.model.config.reasoning, tiny.model.config.gate_threshold = "auto", 1.0
    assert not tiny.embed(mixed).reasoned.any()


def test_sampling(qwen, mixed):
    def thoughts(**options: Any) -> list[list[int]]:
        return qwen.embed(mixed, reasoning="always", sampling=Sampling(**options)).rationale_ids.tolist()

    greedy = qwen.embed(mixed, reasoning="always").rationale_ids.tolist()
    drawn = [thoughts(do_sample=True, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert thoughts(do_sample=True, temperature=1e-6) == greedy


def test_sampling_follows_the_softmax():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]]).expand(20_000, 3)
    drawn = Sampling(True, temperature=2.0, generator=torch.Generator().manual_seed(0)).choose(logits)
    share = drawn.bincount(minlength=3) / len(drawn)
    torch.testing.assert_close(share, (logits[0] / 2).softmax(dim=0), atol=0.02, rtol=0)
    assert share[2] == 0


def test_padding_moves_to_the_left():
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]])
    order = left_padded(mask)
    assert order is not None
    assert mask.gather(1, order).tolist() == [[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]
    assert order[0, 2:].tolist() == [0, 1]
    assert left_padded(mask.gather(1, order)) is None


def test_positions_count_tokens():
    assert token_positions(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_multimodal_rope_is_recognised(tiny):
    assert uses_multimodal_rope(tiny.model.vlm) == (tiny.family in QWEN)
