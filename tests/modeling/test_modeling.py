"""What an embedding may depend on: its input, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

MODES = {
    "never": {"reasoning": "never"},
    "always": {"reasoning": "always", "max_reasoning_rounds": 2},
    "auto": {"reasoning": "auto", "max_reasoning_rounds": 2},
}


@pytest.fixture(params=MODES, ids=list(MODES))
def mode(request: Any) -> str:
    return request.param


def options(tiny: Any, mode: str, inputs: list[Any]) -> dict[str, Any]:
    return MODES[mode] | ({"gate_threshold": tiny.threshold(inputs)} if mode == "auto" else {})


def assert_rows_agree(close: Any, actual: Any, rows: Any, expected: Any) -> None:
    """Compare `embed` outputs; `actual[rows]` against `expected`."""
    for name in ("embeddings", "gate_prob"):
        close(actual[name][rows], expected[name])
    for name in ("reasoned", "num_reasoning_rounds", "num_reasoning_tokens", "num_forced_closings"):
        assert torch.equal(actual[name][rows], expected[name]), name
    for one, other in zip(actual.rationale_ids[rows], expected.rationale_ids, strict=True):
        assert one[one >= 0].tolist() == other[other >= 0].tolist()


def assert_batch_is_its_parts(tiny: Any, mode: str, inputs: list[Any], close: Any) -> Any:
    chosen = options(tiny, mode, inputs)
    together = tiny.embed(inputs, **chosen)
    for row, value in enumerate(inputs):
        assert_rows_agree(close, together, slice(row, row + 1), tiny.embed([value], **chosen))
    return together


def test_batch_is_its_parts(tiny, mode, mixed, close):
    together = assert_batch_is_its_parts(tiny, mode, mixed, close)
    assert together.reasoned.tolist() == [mode == "always"] * 5 or mode == "auto"
    if mode == "auto":
        assert 0 < together.reasoned.sum() < len(mixed)


def test_text_batch_is_its_parts(tiny, mode, close):
    """Without media, Qwen-VL would count padding as positions."""
    assert_batch_is_its_parts(tiny, mode, ["Lima", "What is the capital of Peru?", "The sum is 15.", "a b"], close)


def test_video_batch_is_its_parts(tiny, mode, clips, mixed, close):
    if not tiny.takes_videos:  # refused by name: see test_inputs.py
        assert tiny.family in ("idefics3", "llava", "gemma3")
        return
    assert_batch_is_its_parts(tiny, mode, [*clips, *mixed[1:3]], close)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen2_vl", "smolvlm", "internvl"])
def test_videos_of_different_length_are_independent(tiny, draw, close):
    inputs = [{"video": [draw(seed) for seed in range(frames)], "text": "a"} for frames in (2, 5, 4)]
    assert_batch_is_its_parts(tiny, "always", inputs, close)


def test_embeddings_tell_inputs_apart(tiny, mixed, draw):
    """Equality says little about models that see nothing: text and pixels move the vectors far above the tolerance."""
    vectors = tiny.embed(mixed, reasoning="never").embeddings
    assert (vectors @ vectors.T).fill_diagonal_(0).max() < 1 - 1e-3
    one, other = tiny.embed([draw(1), draw(2)], reasoning="never").embeddings
    assert (one - other).abs().max() > 1e-3


def test_order_of_the_rows_does_not_matter(tiny, mode, mixed, close):
    chosen = options(tiny, mode, mixed)
    forward, backward = tiny.embed(mixed, **chosen), tiny.embed(mixed[::-1], **chosen)
    assert_rows_agree(close, backward, torch.arange(len(mixed) - 1, -1, -1), forward)


def test_padding_side_does_not_matter(tiny, mode, mixed, close):
    chosen = options(tiny, mode, mixed)
    left = tiny.batch(mixed)
    shape = left["input_ids"].shape
    padding = (left["attention_mask"] == 0).sum(dim=1).tolist()
    assert max(padding) > 0
    assert left["attention_mask"][:, -1].all()

    def moved(value: torch.Tensor) -> torch.Tensor:
        return torch.stack([row.roll(-count) for row, count in zip(value, padding, strict=True)])

    right = {key: moved(value) if value.shape == shape else value for key, value in left.items()}
    types = {"gemma3": "token_type_ids"} | dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "mm_token_type_ids")
    if key := types.get(tiny.family):
        assert not torch.equal(left[key], right[key])
    with torch.no_grad():
        assert_rows_agree(close, tiny.model.embed(**right, **chosen), slice(None), tiny.model.embed(**left, **chosen))
        close(tiny.model(**right).embeddings, tiny.model(**left).embeddings)


def test_mask_may_be_left_out_where_nothing_is_padded(qwen, mixed, close):
    batch = qwen.batch(mixed[:1])
    mask = batch.pop("attention_mask")
    assert mask.all()
    with torch.no_grad():
        close(qwen.model.embed(**batch).embeddings, qwen.model.embed(attention_mask=mask, **batch).embeddings)
        close(qwen.model(**batch).embeddings, qwen.model(attention_mask=mask, **batch).embeddings)


def test_direct_embedding_and_gate_come_with_the_same_prefill(tiny, mixed, close):
    never = tiny.embed(mixed, reasoning="never", output_all_embeddings=True)
    always = tiny.embed(mixed, reasoning="always", output_all_embeddings=True)
    close(always.all_embeddings[:, 0], never.embeddings)
    close(always.gate_prob, never.gate_prob)
    assert never.all_embeddings.shape[1] == 1
    assert not never.reasoned.any()
    assert (always.embeddings - never.embeddings).abs().max(dim=1).values.min() > 1e-3


def test_forward_gives_what_embed_gives(tiny, mixed, close):
    """A pass over the complete sequences reads the same vectors and gate as cached decoding, after every round."""
    rounds = 2
    output = tiny.embed(mixed, reasoning="always", max_reasoning_rounds=rounds, output_all_embeddings=True)
    complete = tiny.complete(tiny.batch(mixed), tiny.suffixes(output))
    with torch.no_grad():
        full = tiny.model(**complete)
    assert full.path_mask.all()
    assert full.embeddings.shape[1] == rounds + 1
    close(full.embeddings, output.all_embeddings)
    close(full.gate_logits[:, 0].sigmoid(), output.gate_prob)


def test_forward_gives_what_embed_gives_for_videos(tiny, clips, close):
    if not tiny.takes_videos:
        assert tiny.family in ("idefics3", "llava", "gemma3")
        return
    output = tiny.embed(clips, reasoning="always", output_all_embeddings=True)
    with torch.no_grad():
        full = tiny.model(**tiny.complete(tiny.batch(clips), tiny.suffixes(output)))
    close(full.embeddings, output.all_embeddings)


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("qwen3_vl", {"pooling": "last", "embedding_dim": 16}),
        ("smolvlm", {"pooling": "mean"}),
        ("qwen2_5_vl", {"pooling": "attention", "embedding_dim": 24, "truncate_dim": 8, "gate_hidden_size": 6}),
        ("gemma3", {"pooling": "attention", "normalize": False}),
    ],
)
def test_poolings(make_tiny, family, config, mixed, close):
    tiny = make_tiny(family, **config)
    assert_batch_is_its_parts(tiny, "always", mixed, close)
    output = tiny.embed(mixed, reasoning="always", max_reasoning_rounds=2, output_all_embeddings=True)
    assert output.embeddings.shape == (5, config.get("truncate_dim") or config.get("embedding_dim") or 32)
    with torch.no_grad():
        full = tiny.model(**tiny.complete(tiny.batch(mixed), tiny.suffixes(output)))
    close(full.embeddings, output.all_embeddings)
    norms = output.embeddings.norm(dim=-1)
    assert config.get("normalize", True) == bool(torch.allclose(norms, torch.ones(5)))


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_rows_with_fewer_rationales_repeat_their_last_vector(make_tiny, pooling, mixed, close):
    tiny = make_tiny("qwen3_vl", pooling=pooling)
    output = tiny.embed(mixed, reasoning="always", output_all_embeddings=True)
    suffixes = tiny.suffixes(output)
    suffixes[0] = suffixes[
        2
    ] = []  # the first row is padded on the left, and a marker at its first column would not be
    complete = tiny.complete(tiny.batch(mixed), suffixes)
    full = tiny.model(**complete)
    assert full.path_mask.tolist() == [[True, bool(suffix)] for suffix in suffixes]
    close(full.embeddings[0, 1], full.embeddings[0, 0])
    close(full.gate_logits[2, 1], full.gate_logits[2, 0])
    close(full.embeddings[1], output.all_embeddings[1])
    full.embeddings[full.path_mask].sum().backward()
    gradients = [parameter.grad for parameter in tiny.model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_log_probabilities_are_those_of_the_full_logits(tiny, mixed, close):
    output = tiny.embed(mixed, reasoning="always")
    batch = tiny.batch(mixed)
    complete = tiny.complete(batch, tiny.suffixes(output))
    prompt = batch["input_ids"].shape[1]
    labels = torch.full_like(complete["input_ids"], -100)
    labels[:, prompt + 1 : prompt + 4] = complete["input_ids"][:, prompt + 1 : prompt + 4]
    labels[3] = -100
    with torch.no_grad():
        full = tiny.model(**complete, labels=labels)
        logits = tiny.model.get_output_embeddings()(full.last_hidden_state)
        assert tiny.model(**complete).rationale_logps is None
    logps = logits.log_softmax(dim=-1)[:, :-1].gather(2, labels[:, 1:].clamp(min=0)[..., None]).squeeze(-1)
    assert full.rationale_logps.shape == (12,)
    close(full.rationale_logps, logps[labels[:, 1:] != -100])


def test_a_missing_marker_is_an_error(qwen, mixed):
    batch = qwen.batch(mixed[:2])
    batch["input_ids"][1, -1] = qwen.processor.tokenizer.eos_token_id
    with pytest.raises(ValueError, match=r"Row 1 does not hold `<\|embed\|>` \(id \d+\)"):
        qwen.model(**batch)
    with pytest.raises(ValueError, match="Row 1 does not hold"):
        qwen.model.embed(**batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reasoning": "sometimes"}, "reasoning='sometimes' is not known; allowed: auto, always, never"),
        ({"max_reasoning_tokens": 0}, "max_reasoning_tokens=0 .* has to be one whole number of at least 1"),
        ({"max_reasoning_rounds": 0}, "max_reasoning_rounds=0 .* has to be one whole number of at least 1"),
    ],
)
def test_options_out_of_range(qwen, options, message):
    with pytest.raises(ValueError, match=message):
        qwen.embed(["Lima"], **options)


def test_bfloat16(make_tiny, mixed):
    tiny = make_tiny("qwen3_vl", pooling="mean", embedding_dim=16)
    exact = tiny.embed(mixed, reasoning="never").embeddings
    tiny.model.to(torch.bfloat16)
    output = tiny.embed(mixed, reasoning="always", output_all_embeddings=True)
    assert output.embeddings.dtype == output.gate_prob.dtype == torch.float32
    assert torch.allclose(output.embeddings.norm(dim=-1), torch.ones(5))
    assert (output.all_embeddings[:, 0] * exact).sum(dim=-1).min() > 0.99


def test_gradients_reach_backbone_and_heads(make_tiny, mixed):
    tiny = make_tiny("smolvlm", pooling="attention", embedding_dim=16)
    output = tiny.embed(mixed, reasoning="always")
    complete = tiny.complete(tiny.batch(mixed), tiny.suffixes(output))
    labels = torch.where(complete["attention_mask"].bool(), complete["input_ids"], -100)
    full = tiny.model(**complete, labels=labels)
    (full.embeddings[..., 0].sum() + full.gate_logits.sum() - full.rationale_logps.mean()).backward()
    untouched = {name for name, weight in tiny.model.named_parameters() if weight.grad is None}
    assert untouched == set()
    assert all(weight.grad.isfinite().all() for weight in tiny.model.parameters())


def test_on_request_the_gates_loss_leaves_everything_but_the_gate_alone(make_tiny, mixed):
    tiny = make_tiny("qwen3_vl", gate_hidden_size=6)
    batch = tiny.complete(tiny.batch(mixed), tiny.suffixes(tiny.embed(mixed, reasoning="always")))
    detached, attached = tiny.model(**batch, detach_gate=True), tiny.model(**batch)
    for name in ("embeddings", "path_mask", "gate_logits", "last_hidden_state"):
        assert torch.equal(detached[name], attached[name]), name

    def gradients(output: Any) -> dict[str, torch.Tensor]:
        tiny.model.zero_grad()
        output.backward()
        return {name: weight.grad for name, weight in tiny.model.named_parameters() if weight.grad is not None}

    of_the_gate = gradients(detached.gate_logits.square().sum())
    wanted = gradients(attached.gate_logits.square().sum())
    assert set(of_the_gate) == {name for name in wanted if name.startswith("gate.")} < set(wanted)
    assert all(torch.equal(gradient, wanted[name]) and gradient.any() for name, gradient in of_the_gate.items())
    assert not any(name.startswith("gate.") for name in gradients(detached.embeddings[..., 0].sum()))


def test_plain_generation_is_the_backbones(qwen, mixed):
    batch = qwen.batch(mixed[:1])
    ids = qwen.model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert torch.equal(ids, qwen.model.vlm.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False))
    assert ids.shape[1] == batch["input_ids"].shape[1] + 3


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_threads_share_no_state(tiny, mixed, close):
    """Another batch between prefill and decoding, as a second thread would run it, changes nothing."""
    expected = tiny.embed(mixed, reasoning="always").embeddings
    base, disturbed = tiny.model.base_model, []

    def disturb(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if not disturbed:
            disturbed.append(True)
            tiny.embed(mixed[2:3] * 2, reasoning="never")

    with base.register_forward_hook(disturb, with_kwargs=True):
        close(tiny.embed(mixed, reasoning="always").embeddings, expected)
    assert disturbed
