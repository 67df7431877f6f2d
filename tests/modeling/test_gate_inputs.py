"""What the gate reads: the state at the marker, the words of the prompt, or both, wherever it is asked."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tests.modeling.conftest import Tiny, build_tiny

from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.modeling.gate_inputs_mmemb_r1 import mean_words
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model

BOTH = ["state", "words"]


@cache
@torch.no_grad()
def reader(family: str) -> Tiny:
    """A model whose gate depends on the words as much as on the state."""
    tiny = build_tiny(family, gate_inputs=BOTH)
    width = tiny.model.config.hidden_size
    scale = tiny.model.get_input_embeddings().weight.std()
    tiny.model.gate.output.weight[:, width:] /= scale
    return tiny


@pytest.fixture
def both(family: str) -> Tiny:
    return reader(family)


def test_the_gate_reads_the_same_wherever_it_is_asked(both, mixed, close):
    """In one pass over complete sequences, and while decoding, round after round."""
    threshold = both.threshold(mixed)
    output = both.embed(
        mixed, reasoning="auto", gate_threshold=threshold, max_reasoning_rounds=3, max_reasoning_tokens=3
    )
    whole = both.model(**both.complete(both.batch(mixed), both.suffixes(output)))
    probs = whole.gate_logits.sigmoid()
    close(output.gate_prob, probs[:, 0])
    assert set(output.reasoned.tolist()) == {True, False}
    for row, rounds in enumerate(output.num_reasoning_rounds.tolist()):
        thinks = (probs[row] >= threshold).tolist()
        assert all(thinks[:rounds]) and (rounds == 3 or not thinks[rounds])


def test_words_are_those_of_the_prompt(both, mixed, close):
    batch = both.batch(mixed)
    output = both.model(**batch)
    width = both.model.config.hidden_size
    embeddings = both.model.get_input_embeddings()
    media = {both.model.config.image_token_id}
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        prompt = [one for one, seen in zip(ids.tolist(), mask.tolist(), strict=True) if seen][:-1]
        words = torch.tensor([one for one in prompt if one not in media])
        close(output.gate_inputs[row, 0, width:], embeddings(words).float().mean(dim=0))
        close(output.gate_inputs[row, 0, :width], output.last_hidden_state[row, -1])
    assert not output.gate_inputs.requires_grad


def test_neighbours_and_padding_change_nothing(both, mixed, close):
    together = both.embed(mixed, reasoning="never").gate_prob
    alone = torch.cat([both.embed([one], reasoning="never").gate_prob for one in mixed])
    close(together, alone)
    assert together.logit().std() > 0.1


def test_words_alone(make_tiny, close):
    tiny = make_tiny("qwen3_vl", gate_inputs=["words"])
    output = tiny.embed(["alpha beta gamma", "gamma alpha beta", "alpha beta beta"], reasoning="never")
    assert (output.embeddings[0] - output.embeddings[1]).abs().max() > 1e-3
    close(output.gate_prob[0], output.gate_prob[1])
    assert (output.gate_prob[0] - output.gate_prob[2]).abs() > 1e-6


def test_the_gate_teaches_the_word_embeddings_nothing(make_tiny):
    tiny = make_tiny("qwen3_vl", gate_inputs=["words"])
    tiny.model(**tiny.batch(["one"])).gate_logits.sum().backward()
    assert tiny.model.get_input_embeddings().weight.grad is None
    assert tiny.model.gate.output.weight.grad.abs().max() > 0


def test_no_word_counts(qwen):
    ids = torch.tensor([[5, 6], [7, 8]])
    words = mean_words(qwen.model.vlm, ids, torch.tensor([[0, 0], [1, 0]]))
    assert torch.equal(words[0], torch.zeros_like(words[0])) and words[1].abs().max() > 0


def test_it_is_saved(both, mixed, tmp_path, close):
    both.model.save_pretrained(tmp_path)
    loaded = MMEmbR1Model.from_pretrained(tmp_path).eval()
    assert loaded.config.gate_inputs == BOTH and loaded.config.repository_format == 2
    with torch.no_grad():
        output = loaded.embed(**both.batch(mixed), reasoning="never")
    close(output.gate_prob, both.embed(mixed, reasoning="never").gate_prob)


def test_the_config():
    assert MMEmbR1Config().gate_inputs == ["state"] and MMEmbR1Config().repository_format == 1
    config = MMEmbR1Config(gate_inputs=["words", "state", "words"])
    assert config.gate_inputs == BOTH and config.repository_format == 2
    config = MMEmbR1Config()
    config.gate_inputs = ["words"]
    assert config.repository_format == 2
    with pytest.raises(ValueError, match="allowed: state, words"):
        MMEmbR1Config(gate_inputs=["layers"])
    with pytest.raises(ValueError, match="a list of"):
        MMEmbR1Config(gate_inputs="state")
