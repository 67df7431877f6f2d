"""After a rationale its vector is kept, taken back or mixed, by how likely the model found what it wrote."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from mmemb_r1 import MMEmbR1Config, MMEmbR1Model
from mmemb_r1.modeling.decoding_mmemb_r1 import Decoder, Sampling
from mmemb_r1.modeling.options_mmemb_r1 import SECOND_LOOK
from mmemb_r1.modeling.scheduling_mmemb_r1 import ReasoningOptions, read_prompts, start_thinking
from mmemb_r1.modeling.second_look_mmemb_r1 import FEATURES, likelihood, second_look_features, second_look_weight

CERTAIN = math.log(999)  # logit of a probability of .999
WEIGHTS = {"bias": 1.5, "mean_logp": 0.3, "least_logp": 0.05, "length": -0.7, "cosine": -1.1, "gate_logit": 0.4}


@contextmanager
def second_look(tiny: Any, weights: dict[str, float] = WEIGHTS) -> Iterator[None]:
    """Give a model that others share a second look for a while."""
    config = tiny.model.config
    before = config.repository_format
    config.second_look = weights
    yield
    config.second_look, config.truncate_dim, config.repository_format = None, None, before


@pytest.fixture
def looking(tiny) -> Iterator[Any]:
    """The tiny model with a second look."""
    with second_look(tiny):
        yield tiny


def by_hand(tiny: Any, value: Any, output: Any, row: int, rounds: int, budget: int) -> tuple[torch.Tensor, float]:
    """Vector and weight of a row, from one full pass over its prompt and what it wrote, by the formula."""
    config = tiny.model.config
    ids = [token for token in output.rationale_ids[row].tolist() if token >= 0]
    suffix = [config.think_token_id, *ids, config.end_think_token_id, config.embed_token_id]
    batch = tiny.complete(tiny.batch([value]), [suffix])
    with torch.no_grad():
        whole = tiny.model(**batch)
        logits = tiny.model.get_output_embeddings()(whole.last_hidden_state[0]).float()
    start = len(batch["input_ids"][0]) - len(suffix)
    controls = {config.think_token_id, config.end_think_token_id, config.embed_token_id}
    logps = [
        float(logits[start + place - 1].log_softmax(dim=-1)[token])
        for place, token in enumerate(suffix)
        if token not in controls
    ]
    mean, least = (sum(logps) / len(logps), min(logps)) if logps else (0.0, 0.0)
    direct, reasoned = whole.embeddings[0, 0], whole.embeddings[0, -1]
    facts = {
        "mean_logp": mean,
        "least_logp": least,
        "length": len(logps) / (budget * rounds),
        "cosine": float(cosine_similarity(direct, reasoned, dim=0)),
        "gate_logit": min(max(float(whole.gate_logits[0, 0]), -CERTAIN), CERTAIN),
    }
    weight = 1 / (1 + math.exp(-WEIGHTS["bias"] - sum(WEIGHTS[name] * value for name, value in facts.items())))
    return normalize((1 - weight) * direct + weight * reasoned, dim=0), weight


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("do_sample", [False, True])
def test_a_second_look_is_that_of_a_full_pass(looking, mixed, rounds, do_sample):
    sampling = Sampling(do_sample, temperature=0.7, generator=torch.Generator().manual_seed(0))
    options = {"reasoning": "always", "max_reasoning_tokens": 4, "max_reasoning_rounds": rounds}
    output = looking.embed(mixed, sampling=sampling, **options)
    assert output.second_look_weight.std() > 1e-3
    for row, value in enumerate(mixed):
        vector, weight = by_hand(looking, value, output, row, rounds, 4)
        torch.testing.assert_close(output.second_look_weight[row].item(), weight, atol=1e-5, rtol=0)
        torch.testing.assert_close(output.embeddings[row], vector, atol=1e-5, rtol=0)


def test_it_does_not_depend_on_the_schedule(looking, mixed, close):
    options = {"reasoning": "auto", "gate_threshold": looking.threshold(mixed), "max_reasoning_rounds": 2}
    alone = [looking.embed([value], **options) for value in mixed]
    expected = {name: torch.cat([one[name] for one in alone]) for name in ("embeddings", "second_look_weight")}
    for batches in ([mixed], [mixed[:2], mixed[2:]], [[value] for value in mixed]):
        for size in (None, 1, 3):
            read = [looking.batch(values) for values in batches]
            with torch.no_grad():
                outputs = list(looking.model.embed_batches(read, decode_batch_size=size, **options))
            for name, wanted in expected.items():
                close(torch.cat([one[name] for one in outputs]), wanted)


def test_rows_that_did_not_think_keep_the_direct_vector(looking, mixed):
    output = looking.embed(mixed, reasoning="auto", gate_threshold=looking.threshold(mixed))
    direct = looking.embed(mixed, reasoning="never")
    assert 0 < output.reasoned.sum() < len(mixed)
    assert torch.equal(output.embeddings[~output.reasoned], direct.embeddings[~output.reasoned])
    assert (output.second_look_weight[~output.reasoned] == 0).all()
    assert (output.second_look_weight[output.reasoned] > 0).all()
    assert direct.second_look_weight is None


def test_off_is_as_without_one(tiny, mixed):
    before = tiny.embed(mixed, reasoning="always", max_reasoning_rounds=2)
    with second_look(tiny):
        off = tiny.embed(mixed, reasoning="always", max_reasoning_rounds=2, second_look=False)
        on = tiny.embed(mixed, reasoning="always", max_reasoning_rounds=2)
    assert off.keys() == before.keys()
    assert all(torch.equal(off[name], before[name]) for name in before.keys())  # noqa: SIM118 - its values would come
    assert torch.equal(on.rationale_ids, before.rationale_ids)
    assert not torch.allclose(on.embeddings, before.embeddings)


@pytest.mark.parametrize(("bias", "path"), [(-1e6, 0), (1e6, 1)])
def test_one_formula_keeps_and_takes_back(qwen, mixed, close, bias, path):
    with second_look(qwen, dict.fromkeys(FEATURES, 0.0) | {"bias": bias}):
        output = qwen.embed(mixed, reasoning="always", output_all_embeddings=True)
    close(output.embeddings, output.all_embeddings[:, path])
    assert not torch.allclose(output.all_embeddings[:, 0], output.all_embeddings[:, 1])


def test_vectors_are_mixed_before_they_are_truncated(qwen, mixed, close):
    with second_look(qwen):
        whole = qwen.embed(mixed, reasoning="always")
        qwen.model.config.truncate_dim = 8
        short = qwen.embed(mixed, reasoning="always")
    close(short.second_look_weight, whole.second_look_weight)
    close(short.embeddings, normalize(whole.embeddings[:, :8], dim=-1))


def test_a_stopped_rationale_does_not_count(qwen, mixed):
    config = qwen.model.config
    with second_look(qwen):
        once = qwen.embed(mixed, reasoning="always", max_reasoning_tokens=4, max_reasoning_rounds=1)
        options = ReasoningOptions.of(config, None, "always", None, 4, 2)
        decoder = Decoder(qwen.model, across_batches=True)
        with torch.no_grad():
            read, context = read_prompts(qwen.model, qwen.batch(mixed), options)
            start_thinking(decoder, read.states, context)
            while not all(state.embeddings for state in read.states.values()):
                decoder.step()
            decoder.step()
            decoder.step()
            decoder.stop(list(read.states.values()))
            output = read.output(3, False)
    assert (output.num_reasoning_rounds == 1).any()
    stopped = output.num_reasoning_rounds == 1
    assert (output.num_reasoning_tokens > once.num_reasoning_tokens)[stopped].any()
    torch.testing.assert_close(output.second_look_weight[stopped], once.second_look_weight[stopped])


def test_rows_of_one_batch_may_look_again_or_not(qwen, mixed, close):
    config = qwen.model.config
    with second_look(qwen):
        options = [
            ReasoningOptions.of(config, None, "always", None, 4, 1, look) for look in (True, False, None, True, False)
        ]
        decoder = Decoder(qwen.model, across_batches=True)
        with torch.no_grad():
            read, context = read_prompts(qwen.model, qwen.batch(mixed), options)
            start_thinking(decoder, read.states, context)
            decoder.run()
        on, off = (
            qwen.embed(mixed, reasoning="always", max_reasoning_tokens=4, second_look=look) for look in (True, False)
        )
        output = read.output(2, False)
    looks = torch.tensor([True, False, True, True, False])
    close(output.embeddings, torch.where(looks[:, None], on.embeddings, off.embeddings))


def test_nothing_is_computed_where_it_is_off(qwen, mixed, monkeypatch):
    """The one place where log-probabilities come from isn't asked for them."""
    from mmemb_r1.modeling import decoding_mmemb_r1

    asked = []

    def noted(model: Any, hidden: Any, sampling: Any, rows: Any = ()) -> Any:
        asked.append(len(rows))
        return choose(model, hidden, sampling, rows)

    choose = decoding_mmemb_r1._next_tokens
    monkeypatch.setattr(decoding_mmemb_r1, "_next_tokens", noted)
    with second_look(qwen):
        qwen.embed(mixed, reasoning="always", second_look=False)
        assert asked and not any(asked)
        qwen.embed(mixed, reasoning="always")
        assert any(asked)


def test_an_empty_rationale_has_a_likelihood(looking, mixed):
    with looking.biased(looking.model.config.end_think_token_id):
        output = looking.embed(mixed, reasoning="always")
        assert output.num_reasoning_tokens.sum() == 0
        for row, value in enumerate(mixed):
            vector, _ = by_hand(looking, value, output, row, 1, 4)
            torch.testing.assert_close(output.embeddings[row], vector, atol=1e-5, rtol=0)


def test_the_formula():
    written = torch.tensor([likelihood([-1.0, -2.0], 8), likelihood([], 8)])
    direct, reasoned = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    features = second_look_features(written, direct, reasoned, torch.tensor([0.5, 1.0]))
    expected = [[-1.5, -2.0, 0.25, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, CERTAIN]]
    torch.testing.assert_close(features, torch.tensor(expected), atol=1e-4, rtol=0)
    weights = {"bias": 0.1, "mean_logp": 1.0, "least_logp": 2.0, "length": 3.0, "cosine": 4.0, "gate_logit": 5.0}
    logit = 0.1 - 1.5 - 4.0 + 0.75
    assert second_look_weight(weights, features)[0].item() == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-5)


def test_the_config_keeps_it(qwen, tmp_path):
    config = copy.deepcopy(qwen.model.config)
    assert config.second_look is None and config.repository_format == 1
    config.second_look = {name: 1 for name in reversed(SECOND_LOOK)}
    assert config.repository_format == 3
    config.save_pretrained(tmp_path)
    found = MMEmbR1Config.from_pretrained(tmp_path)
    assert found.second_look == dict.fromkeys(SECOND_LOOK, 1.0) and list(found.second_look) == list(SECOND_LOOK)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, "has to be a mapping of bias, mean_logp"),
        ({"bias": 0.0}, "has to be a mapping of bias, mean_logp"),
        (WEIGHTS | {"entropy": 1.0}, "has to be a mapping of bias, mean_logp"),
        (WEIGHTS | {"cosine": "1"}, "second_look.cosine=.* has to be a number"),
        (WEIGHTS | {"cosine": float("nan")}, "second_look.cosine=.* has to be a number"),
    ],
)
def test_weights_that_are_none_are_refused(qwen, value, message):
    config = copy.deepcopy(qwen.model.config)
    with pytest.raises(ValueError, match=message):
        config.second_look = value


def test_two_spaces_have_none(tmp_path, qwen):
    config = copy.deepcopy(qwen.model.config)
    config.second_look, config.spaces, config.reasoning = WEIGHTS, 2, "never"
    with pytest.raises(ValueError, match="a mixture says nothing"):
        config.save_pretrained(tmp_path)


def test_one_that_was_not_fitted_is_refused(qwen, mixed):
    with pytest.raises(ValueError, match="train gate --second-look"):
        qwen.embed(mixed, reasoning="always", second_look=True)
    with pytest.raises(ValueError, match="second_look='yes'"):
        qwen.embed(mixed, reasoning="always", second_look="yes")


def test_a_saved_model_has_it(qwen, mixed, tmp_path):
    model = copy.deepcopy(qwen.model)
    model.config.second_look = WEIGHTS
    model.save_pretrained(tmp_path)
    again = MMEmbR1Model.from_pretrained(tmp_path).eval()
    assert (tmp_path / "second_look_mmemb_r1.py").is_file()
    with torch.no_grad():
        expected, found = (one.embed(**qwen.batch(mixed), reasoning="always") for one in (model, again))
    assert torch.equal(found.second_look_weight, expected.second_look_weight)
