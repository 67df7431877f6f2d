"""What an engine gives is what the local model gives: head, gate, rounds and budgets are the model's own."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tests.engines.torch_engine import REFUSED, TorchEngine

from mmemb_r1 import MMEmbR1
from mmemb_r1.engines.served import FOLDER, save_served
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.tiny import FAMILIES

RNG = np.random.default_rng(0)
PICTURES = [Image.fromarray(RNG.integers(0, 255, (40, 60 + 20 * n, 3), dtype=np.uint8)) for n in range(2)]
INPUTS = [
    "Lima",
    "word " * 40,
    {"image": PICTURES[0]},
    {"image": PICTURES[1], "text": "which flag?"},
    {"image": PICTURES, "text": "the same?", "instruction": "Find it."},
    {"text": "Oslo", "instruction": "Find the capital."},
    "What does <think> mean?",
]
ROUNDS = {"max_reasoning_rounds": 2, "max_reasoning_tokens": 3}
WAYS = [
    {"reasoning": "never"},
    {"reasoning": "always"},
    {"reasoning": "always", **ROUNDS},
    {"reasoning": "auto", "gate_threshold": 0.5, **ROUNDS},
    {"task": "document"},
]


def assert_same(model: MMEmbR1, engine: TorchEngine, local: MMEmbR1) -> None:
    for way in WAYS:
        expected = local.encode(INPUTS, output_value=None, **way)
        model.engine = engine
        found = model.encode(INPUTS, output_value=None, batch_size=1, **way)  # and several chunks
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in theirs.items():
                np.testing.assert_allclose(
                    _without_filler(name, ours[name]), _without_filler(name, value), atol=2e-5, err_msg=f"{name} {way}"
                )


def _without_filler(name: str, value) -> np.ndarray:
    value = value.numpy()
    return value[value >= 0] if name == "rationale_ids" else value


@pytest.mark.parametrize(
    "family",
    ["qwen3_vl", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "qwen3_vl")],
)
def test_an_engine_gives_what_the_local_model_gives(thinking, family):
    local = thinking(family)
    model = MMEmbR1.from_model(local[0].model, local.processor)
    assert_same(model, TorchEngine(local), local)


WRITE_AROUND_PICTURES = {"gemma3", "idefics3", "internvl", "smolvlm"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gate_reads_the_same_words_or_the_model_is_refused(thinking, family):
    local = thinking(family, gate_inputs=["state", "words"])
    model = MMEmbR1.from_model(local[0].model, local.processor)
    if family in WRITE_AROUND_PICTURES:
        with pytest.raises(ValueError, match="writes tokens around pictures that an engine writes itself"):
            model.engine = TorchEngine(local)
        return
    expected = local.encode(INPUTS, output_value=None, reasoning="never")
    model.engine = TorchEngine(local)
    found = model.encode(INPUTS, output_value=None, reasoning="never")
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours["gate_prob"], theirs["gate_prob"], atol=2e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"embed_position": "before"},
        {"embed_state": "unnormed"},
        {"embedding_dim": 8, "truncate_dim": 6},
        {"gate_hidden_size": 4, "normalize": False},
        {"gate_inputs": ["state", "words"]},
        {"gate_inputs": ["words"], "gate_hidden_size": 4},
    ],
    ids=str,
)
def test_a_model_without_its_backbone_gives_the_same(thinking, tmp_path, config):
    local = thinking(**config)
    facts = save_served(local, tmp_path)
    engine = TorchEngine(local)
    model = MMEmbR1(str(tmp_path), engine=engine)
    assert sum(weight.numel() for weight in model.parameters()) < 3000
    assert_same(model, engine, local)
    from mmemb_r1.fingerprint import checkpoint_fingerprint

    assert checkpoint_fingerprint(*model) == checkpoint_fingerprint(*local) == facts["fingerprint"]
    model[0].model.config.max_text_tokens = 5
    assert checkpoint_fingerprint(*model) != facts["fingerprint"]


def test_an_error_names_the_input(thinking):
    model = thinking()
    model.engine = TorchEngine(model)
    for position, bad in ((0, {"image": "nothing.png"}), (9, f"please {REFUSED}"), (4, {"video": [PICTURES[0]] * 2})):
        inputs = [f"text {number}" for number in range(12)]
        inputs[position] = bad
        with pytest.raises(InputError) as error:
            model.encode(inputs, batch_size=1, reasoning="always")
        assert error.value.index == position


def test_a_rationale_that_the_engine_cuts_is_closed_and_counted(thinking):
    model = thinking(max_reasoning_tokens=50)
    expected = model.encode(["Lima"], reasoning="always", output_value=None)[0]
    longest = len(model[0].preprocess(["Lima"])["input_ids"][0]) + 4
    model.engine = TorchEngine(model, max_length=longest)
    found = model.encode(["Lima"], reasoning="always", output_value=None)[0]
    assert expected["num_reasoning_tokens"] > 3
    assert found["num_reasoning_tokens"] == 3
    assert found["num_forced_closings"] == 1
    assert found["rationale_ids"].tolist() == expected["rationale_ids"][:3].tolist()


def test_chunks_are_asked_for_whole_and_nothing_is_asked_that_is_not_needed(thinking):
    model = thinking()
    engine = model.engine = TorchEngine(model)
    model.encode([f"text {number}" for number in range(20)], batch_size=1, reasoning="never")
    assert engine.asked == [("states", 8), ("states", 8), ("states", 4)]


def test_the_cache_and_streams_keep_engines_apart(thinking, tmp_path):
    model = thinking()
    model.embedding_cache = tmp_path / "cache"
    before = model.encode(["Lima"], reasoning="never")
    engine = model.engine = TorchEngine(model)
    model.encode(["Lima"], reasoning="never")
    assert engine.asked
    engine.asked.clear()
    np.testing.assert_allclose(model.encode(["Lima"], reasoning="never"), before, atol=1e-5)
    assert not engine.asked  # this time it was in the cache
    model.encode_stream(["a", "b"], tmp_path / "vectors", reasoning="never")
    model.engine = None
    with pytest.raises(ValueError, match="engine"):
        model.encode_stream(["a", "b"], tmp_path / "vectors", reasoning="never")


def test_explain_evaluate_and_queries_ask_the_engine(thinking):
    model = thinking()
    expected = model.explain(INPUTS[:3], reasoning="always")
    engine = model.engine = TorchEngine(model)
    found = model.explain(INPUTS[:3], reasoning="always")
    assert [row["rationale"] for row in found] == [row["rationale"] for row in expected]
    assert engine.asked
    engine.asked.clear()
    model.encode_query("Lima")
    model.encode_document(["Lima"])
    assert len(engine.asked) >= 2


def test_what_a_model_without_backbone_cannot_do_is_refused(thinking, tmp_path):
    local = thinking()
    save_served(local, tmp_path / "made")
    with pytest.raises(ValueError, match="was exported for vLLM, and is loaded with an engine"):
        MMEmbR1(str(tmp_path / "made"))
    model = MMEmbR1(str(tmp_path / "made"), engine=TorchEngine(local))
    for act in (
        lambda: model.save(str(tmp_path / "saved")),
        lambda: model[0](model.preprocess(["Lima"])),
        lambda: model[0].model.embed(**local[0].preprocess(["Lima"])),
    ):
        with pytest.raises(RuntimeError, match="without its backbone"):
            act()
    with pytest.raises(ValueError, match="needs an engine"):
        model.engine = None
    with pytest.raises(ValueError, match="engine makes use of several devices"):
        model.start_multi_process_pool(["cpu", "cpu"])


def test_engines_and_models_that_do_not_fit_are_refused(thinking, tmp_path):
    from mmemb_r1.engines.checks import check_runs
    from mmemb_r1.engines.choice import engine_of

    with pytest.raises(ValueError, match="pooling='mean'"):
        model = thinking(pooling="mean")
        model.engine = TorchEngine(model)
    local = thinking()
    facts = save_served(local, tmp_path)
    check_runs(local[0], facts)
    other = thinking("qwen2_vl")
    with pytest.raises(ValueError, match="another checkpoint"):
        check_runs(other[0], facts)
    local.max_image_tokens = 20
    with pytest.raises(ValueError, match="max_image_tokens=20.*exported with None"):
        check_runs(local[0], facts)
    with pytest.raises(ValueError, match="'fast' is not known"):
        engine_of("fast", None)
    with pytest.raises(ValueError, match="needs the folder that `mmemb-r1 export vllm MODEL DIR` writes"):
        engine_of("vllm", None)
    assert engine_of("local", None) is None
    assert (tmp_path / FOLDER / "heads.safetensors").stat().st_size < 10_000
