"""Logits in chunks are those of all tokens at once: log-probabilities, entropies and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmemb_r1.modeling.token_logps_mmemb_r1 import called_once, token_logps

N, H, V = 23, 8, 40


@pytest.fixture
def head() -> nn.Linear:
    layer = nn.Linear(H, V)
    with torch.no_grad():
        layer.weight.normal_(generator=torch.Generator().manual_seed(0))
    return layer


def of_all(hidden: Tensor, ids: Tensor, head: nn.Linear) -> tuple[Tensor, Tensor]:
    """The same in the plainest way."""
    distribution = head(hidden).log_softmax(dim=-1)  # (N, V)
    return distribution.gather(1, ids[:, None]).squeeze(1), -(distribution.exp() * distribution).sum(dim=-1)


def gradients(head: nn.Linear, hidden: Tensor, logps: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 2, N)  # as advantages do: each token's gradient has a factor of its own
    return list(torch.autograd.grad((logps * weights).sum(), [hidden, head.weight, head.bias]))


@pytest.mark.parametrize("at_once", [1, 7, N - 1, N, 100])
def test_chunks_give_what_all_tokens_at_once_give(head, at_once):
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, H, generator=draw).requires_grad_()
    ids = torch.randint(V, (N,), generator=draw)
    logps, entropies = token_logps(hidden, ids, head, True, at_once)
    expected, expected_entropies = of_all(hidden, ids, head)
    torch.testing.assert_close(logps, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropies, expected_entropies, rtol=1e-6, atol=1e-6)
    assert not entropies.requires_grad
    for ours, theirs in zip(gradients(head, hidden, logps), gradients(head, hidden, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_no_more_logits_than_those_of_a_chunk_are_kept(head, with_gradient):
    """What is kept for the backward pass does not grow with tokens x vocabulary, and no call makes more than a
    chunk's."""
    kept, made = [], []

    def logits_of(states: Tensor) -> Tensor:
        made.append(len(states))
        return head(states)

    hidden = torch.randn(N, H, requires_grad=with_gradient)
    with (
        torch.set_grad_enabled(with_gradient),
        torch.autograd.graph.saved_tensors_hooks(
            lambda value: kept.append(value.numel()) or value, lambda value: value
        ),
    ):
        logps, _ = token_logps(hidden, torch.zeros(N, dtype=torch.long), logits_of, False, 5)
    assert max(kept, default=0) < 5 * V and max(made) == 5
    if with_gradient:
        logps.sum().backward()
        assert made == [5, 5, 5, 5, 3, *([5, 5, 5, 5, 3] if made[5] == 5 else [3, 5, 5, 5, 5])]


def test_no_token_has_no_log_probability(head):
    logps, entropies = token_logps(torch.zeros(0, H), torch.zeros(0, dtype=torch.long), head, True)
    assert logps.shape == entropies.shape == (0,)


def test_a_model_computes_its_logits_in_chunks(make_tiny, mixed, close):
    """Both phases ask the model: the joint one for plain, the adaptive one for tempered log-probabilities."""
    tiny = make_tiny("qwen3_vl")
    batch = dict(tiny.batch(mixed))
    labels = batch["input_ids"].masked_fill(~batch["attention_mask"].bool(), -100)

    def run(at_once: int, **options: Any) -> tuple[Any, Tensor]:
        tiny.model.logits_at_once = at_once
        tiny.model.zero_grad()
        output = tiny.model(**batch, labels=labels, **options)
        finite = output.rationale_logps.isfinite()  # ids that can't occur in a rationale have minus infinity
        output.rationale_logps[finite].sum().backward()
        return output, tiny.model.get_input_embeddings().weight.grad.clone()

    for options in ({}, {"sampling_temperature": 0.7}):
        (whole, gradient), (chunked, other) = run(10**6, **options), run(16, **options)
        close(chunked.rationale_logps, whole.rationale_logps)
        close(other, gradient)
        if options:
            close(chunked.rationale_entropies, whole.rationale_entropies)


def test_hooks_of_the_head_run_once_however_many_chunks_there_are(make_tiny, mixed):
    """FSDP2 gathers weights and reduces gradients in such hooks, in all processes at once or never."""
    tiny = make_tiny("qwen3_vl")
    tiny.model.logits_at_once, head = 4, tiny.model.get_output_embeddings()
    forward, calls = head.forward, []
    head.register_forward_hook(lambda *_: calls.append("forward"))
    head.register_full_backward_hook(lambda *_: calls.append("backward"))
    batch = dict(tiny.batch(mixed))
    labels = batch["input_ids"].masked_fill(~batch["attention_mask"].bool(), -100)
    tiny.model(**batch, labels=labels).rationale_logps.sum().backward()
    assert calls == ["forward", "backward"]
    assert head.forward == forward and "forward" not in vars(head)


def test_a_forward_of_its_own_comes_back_after_an_error():
    layer = nn.Linear(2, 2)
    layer.forward = own = lambda value: value
    with pytest.raises(RuntimeError, match="as planned"):
        called_once(layer, lambda value: (_ for _ in ()).throw(RuntimeError("as planned")), torch.ones(2))
    assert layer.forward is own
