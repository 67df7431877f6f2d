"""The gate and the embedding head as closed forms."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmemb_r1 import MMEmbR1
from mmemb_r1.modeling.heads_mmemb_r1 import EmbeddingHead, ReasoningGate, pooling_class, register_pooling

B, S, H = 3, 7, 4


def head(pooling: str = "last", **config: object) -> EmbeddingHead:
    defaults = {"hidden_size": H, "truncate_dim": None, "embedding_dim": None, "normalize": True}
    torch.manual_seed(0)
    return pooling_class(pooling)(SimpleNamespace(pooling=pooling, **(defaults | config)))


def gate(width: int) -> ReasoningGate:
    torch.manual_seed(0)
    config = {"hidden_size": H, "gate_hidden_size": width, "gate_init_bias": -2.0, "gate_inputs": ["state"]}
    return ReasoningGate(SimpleNamespace(**config))


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(B, S, H, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mask() -> torch.Tensor:
    return torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])


def test_last_is_the_last_position_on_either_padding_side(hidden, mask):
    mean = head().pool(hidden, mask).mean
    assert torch.equal(mean, torch.stack([hidden[0, 6], hidden[1, 2], hidden[2, 0]]))


def test_mean_is_the_mean(hidden, mask):
    mean = head("mean").pool(hidden, mask).mean
    expected = torch.stack([hidden[0, 2:].mean(0), hidden[1, :3].mean(0), hidden[2, 0]])
    torch.testing.assert_close(mean, expected)


def test_attention_is_a_softmax_over_what_the_mask_shows(hidden, mask):
    layer = head("attention")
    mean = layer.pool(hidden, mask).mean
    scores = layer.score(hidden).squeeze(-1).masked_fill(mask == 0, -torch.inf).softmax(dim=1)
    torch.testing.assert_close(mean, (scores[..., None] * hidden).sum(dim=1))


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_extending_token_by_token_is_pooling_at_once(pooling, hidden):
    layer, mask = head(pooling), torch.ones(B, S)
    pooled = layer.pool(hidden[:, :2], mask[:, :2])
    for position in range(2, S):
        pooled = layer.extend(pooled, hidden[:, position])
    expected = layer.pool(hidden, mask)
    torch.testing.assert_close(pooled.mean, expected.mean)
    torch.testing.assert_close(pooled.log_weight, expected.log_weight)
    chosen = pooled.select(torch.tensor([2, 0]))
    assert torch.equal(chosen.mean, pooled.mean[[2, 0]])
    assert torch.equal(chosen.log_weight, pooled.log_weight[[2, 0]])


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_long_mean_in_bfloat16_does_not_stand_still(pooling):
    """A thousand tokens of one kind after a thousand of another leave the mean half way between."""
    layer = head(pooling).to(torch.bfloat16)
    before, after = torch.zeros(1, 1000, H, dtype=torch.bfloat16), torch.ones(1, H, dtype=torch.bfloat16)
    if pooling == "attention":
        layer.score.weight.data.zero_()
    pooled = layer.pool(before, torch.ones(1, 1000))
    for _ in range(1000):
        pooled = layer.extend(pooled, after)
    torch.testing.assert_close(pooled.mean, torch.full((1, H), 0.5), atol=1e-3, rtol=0)


def test_projection_truncation_and_normalisation(hidden):
    layer = head(embedding_dim=6, truncate_dim=3)
    embedding = layer(hidden)
    expected = (hidden @ layer.projection.weight.T)[..., :3]
    torch.testing.assert_close(embedding, expected / expected.norm(dim=-1, keepdim=True))
    raw = head(embedding_dim=6, truncate_dim=3, normalize=False)
    torch.testing.assert_close(raw(hidden), expected)
    assert layer.to(torch.bfloat16)(hidden).dtype == torch.float32


@pytest.mark.parametrize("width", [0, 5])
def test_a_reset_gate_is_constant_and_prefers_direct(width, hidden):
    layer = gate(width)
    layer.reset()
    assert torch.equal(layer(hidden), torch.full((B, S), -2.0))
    assert layer(hidden).sigmoid().max() < 0.5
    layer(hidden).sum().backward()
    assert layer.output.bias.grad.item() == B * S


@pytest.mark.parametrize("width", [0, 5])
def test_the_gate_is_a_small_network(width, hidden):
    layer = gate(width)
    inner = torch.nn.functional.silu(layer.hidden(hidden)) if width else hidden
    torch.testing.assert_close(layer(hidden), (inner @ layer.output.weight.T + layer.output.bias)[..., 0])
    assert layer.to(torch.bfloat16)(hidden.bfloat16()).dtype == torch.float32


@register_pooling("length")
class NormPooling(EmbeddingHead):
    """Long states count for more."""

    def log_weights(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.float().norm(dim=-1).log()


def test_a_pooling_of_ones_own_needs_no_change_to_the_package(make_tiny, tmp_path):
    tiny = make_tiny("qwen3_vl", pooling="length")
    model = MMEmbR1.from_model(tiny.model, tiny.processor)
    vectors = model.encode(["Lima", "the capital of Peru"], reasoning="always", max_reasoning_tokens=3)
    model.save_pretrained(str(tmp_path / "model"))
    again = MMEmbR1(str(tmp_path / "model"), device="cpu")
    assert type(again[0].model.embedding_head) is NormPooling
    encoded = again.encode(["Lima", "the capital of Peru"], reasoning="always", max_reasoning_tokens=3)
    np.testing.assert_allclose(encoded, vectors, atol=1e-5)
    hidden, mask = torch.randn(1, S, H), torch.ones(1, S)
    expected = torch.nn.functional.normalize(hidden[0].norm(dim=-1) @ hidden[0], dim=0)
    layer = head("length")
    torch.testing.assert_close(layer(layer.pool(hidden, mask).mean)[0], expected)


@pytest.mark.slow
def test_loading_a_pooling_that_nobody_registered_says_what_to_import(make_tiny, tmp_path):
    tiny = make_tiny("qwen3_vl", pooling="length")
    MMEmbR1.from_model(tiny.model, tiny.processor).save_pretrained(str(tmp_path))
    code = "import sys; from mmemb_r1 import MMEmbR1; MMEmbR1(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode and "pooling='length' is not known" in run.stderr
    assert "import the module that registers it" in run.stderr


def test_names_of_poolings_are_taken_once():
    with pytest.raises(ValueError, match="'mean' is MeanPooling already; choose another name"):
        register_pooling("mean")(NormPooling)
