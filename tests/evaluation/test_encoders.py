from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from mmemb_r1.evaluation import Settings
from mmemb_r1.evaluation.encoders import BATCHES_AT_ONCE, embed_all, encoder_of, plain_fingerprint
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError

WORDS = ["[UNK]", "find", "lima", "paris", "rome", "where", "is"]
DIRECT = Settings(modes=("never",))


@pytest.fixture
def plain():
    """A sentence-transformers model: the mean of its words' vectors."""
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).normal(size=(len(WORDS), 6)).astype(np.float32)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")


def embed(model, inputs, side="query", prompt=None, settings=DIRECT, **options):
    encoder = encoder_of(model, settings)
    return embed_all(encoder, inputs, side=side, reasoning="never", batch_size=2, prompt=prompt, **options)


def test_any_model_of_sentence_transformers_embeds_both_sides(plain):
    plain.prompts = {"query": "find ", "document": ""}
    queries, documents = embed(plain, ["lima", "rome"]), embed(plain, ["lima", "rome"], side="document")
    np.testing.assert_array_equal(queries.embeddings, plain.encode(["find lima", "find rome"]))
    np.testing.assert_array_equal(documents.embeddings, plain.encode(["lima", "rome"]))
    assert queries.gate_prob is None and queries.rationales is None
    assert not queries.reasoned.any() and not queries.num_reasoning_tokens.any()
    assert queries.timed == 2 and queries.seconds_per_input > 0


def test_instructions_of_inputs_go_before_those_of_the_side(plain):
    inputs = [
        {"text": "lima", "instruction": "where is "},
        {"text": "rome"},
        {"text": "lima", "instruction": "where is "},
    ]
    embedded = embed(plain, inputs, prompt="find ")
    np.testing.assert_array_equal(embedded.embeddings, plain.encode(["where is lima", "find rome", "where is lima"]))


@pytest.mark.parametrize(("prompt", "given"), [("find", "find\n"), ("find: ", "find: "), ("find\n", "find\n")])
def test_a_prompt_does_not_run_into_the_text(prompt, given, plain, monkeypatch):
    seen = []
    monkeypatch.setattr(
        plain,
        "encode_query",
        lambda inputs, **options: seen.append(options.get("prompt")) or np.ones((len(inputs), 2)),
    )
    embed(plain, ["lima"], prompt=prompt)
    embed(plain, [{"text": "lima", "instruction": prompt}])
    embed(plain, ["lima"])
    assert seen == [given, given, None]


def test_a_prompt_that_is_a_message_of_its_own_stays_as_it_is(plain, monkeypatch):
    seen = []
    monkeypatch.setattr(type(plain), "modalities", ["text", "message"])
    monkeypatch.setattr(
        plain, "encode_query", lambda inputs, prompt, **options: seen.append(prompt) or np.ones((len(inputs), 2))
    )
    embed(plain, ["lima"], prompt="find")
    assert seen == ["find"]


def test_the_prompt_of_a_task_replaces_the_one_that_was_saved(plain):
    plain.prompts = {"query": "where is ", "document": ""}
    found = embed(plain, ["lima"], prompt="find").embeddings
    np.testing.assert_array_equal(found, plain.encode(["find lima"], prompt=""))


def test_pictures_in_bytes_are_opened_for_plain_models(plain, monkeypatch):
    seen = []
    monkeypatch.setattr(
        plain, "encode_query", lambda inputs, **options: seen.extend(inputs) or np.ones((len(inputs), 2))
    )
    file = io.BytesIO()
    Image.new("RGB", (4, 2), "red").save(file, "PNG")
    embed(
        plain,
        [{"image": file.getvalue(), "text": "red?"}, {"image": ["a.png", {"bytes": file.getvalue()}], "text": None}],
    )
    assert seen[0]["text"] == "red?" and seen[0]["image"].size == (4, 2)
    assert (
        set(seen[1]) == {"image"}
        and seen[1]["image"][0] == "a.png"
        and seen[1]["image"][1].getpixel((0, 0)) == (255, 0, 0)
    )


def test_plain_models_are_not_asked_to_think(plain):
    with pytest.raises(ValueError, match="no adaptive model, so it can't be asked to think: 'always' was asked"):
        encoder_of(plain, Settings(modes=("never", "always")))
    with pytest.raises(ValueError, match="'auto' was asked for, allowed for it is 'never' alone"):
        encoder_of(plain, Settings(modes=("never",), document_reasoning="auto"))


def test_plain_models_have_no_cache(plain, tmp_path):
    from mmemb_r1.embedding_cache import EmbeddingCache

    with pytest.raises(ValueError, match="of mmemb-r1 models, and this one is a SentenceTransformer"):
        encoder_of(plain, DIRECT, EmbeddingCache(tmp_path))


def test_a_checkpoint_of_ours_as_a_plain_model_is_refused(thinking):
    """Its `never` would be whatever its config says."""
    with pytest.raises(ValueError, match="load it as mmemb_r1.MMEmbR1"):
        encoder_of(SentenceTransformer(modules=[thinking()[0]], device="cpu"), DIRECT)


def test_a_plain_model_is_known_by_its_weights_and_settings(plain, tmp_path):
    first = plain_fingerprint(plain)
    plain.save(str(tmp_path / "saved"))
    assert plain_fingerprint(SentenceTransformer(str(tmp_path / "saved"), device="cpu")) == first
    with torch.no_grad():
        plain[0].embedding.weight[3, 3] += 1
    assert plain_fingerprint(plain) != first


def test_ours_are_embedded_with_the_prompts_that_they_saved(thinking):
    model = thinking()
    model.prompts = {"query": "Find the city.", "document": ""}
    expected = [model.encode(["Lima"], prompt=prompt, reasoning="never") for prompt in ("Find the city.", None)]
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    for side, vector in zip(("query", "document"), expected, strict=True):
        np.testing.assert_allclose(embed(model, ["Lima"], side=side).embeddings, vector, atol=1e-6)
    other = model.encode(["Lima"], prompt="Name it.", reasoning="never")
    np.testing.assert_allclose(embed(model, ["Lima"], prompt="Name it.").embeddings, other, atol=1e-6)


def test_options_of_reasoning_reach_the_model(thinking):
    model = thinking(max_reasoning_tokens=8)
    settings = Settings(modes=("always",), max_reasoning_tokens=2, batch_size=2)
    encoder = encoder_of(model, settings)
    embedded = embed_all(encoder, ["Lima", "Paris"], side="query", reasoning="always", batch_size=2)
    assert embedded.num_reasoning_tokens.max() <= 2 and embedded.num_reasoning_rounds.tolist() == [1, 1]
    assert encoder.reasoning_options() == {
        "gate_threshold": model[0].model.config.gate_threshold,
        "max_reasoning_tokens": 2,
        "max_reasoning_rounds": 1,
    }


def test_what_came_from_a_cache_is_not_timed(thinking, tmp_path):
    from mmemb_r1.embedding_cache import EmbeddingCache

    model = thinking()
    inputs = [f"city {row}" for row in range(4 * BATCHES_AT_ONCE)]
    with EmbeddingCache(tmp_path) as cache:
        encoder = encoder_of(model, DIRECT, cache)

        def again():
            return embed_all(encoder, inputs, side="query", reasoning="never", batch_size=2)

        first = embed_all(encoder, inputs[:3], side="query", reasoning="never", batch_size=2)
        assert first.timed == 3
        whole = again()
        assert whole.timed == len(inputs) - 3 and whole.seconds > 0
        assert again().timed == 0 and again().seconds_per_input is None
        np.testing.assert_array_equal(again().embeddings, whole.embeddings)
    assert model.embedding_cache is None, "the model's own is put back"


@pytest.mark.parametrize("cached", [False, True])
def test_what_is_computed_once_is_timed_once(cached, thinking, plain, oracle, tmp_path):
    from mmemb_r1.embedding_cache import EmbeddingCache

    picture = Image.new("RGB", (32, 32), "red")
    inputs = ["Lima", "Rome", "Lima", {"text": "Lima"}, {"image": picture}, {"image": picture.copy()}]
    with EmbeddingCache(tmp_path) as cache:
        encoder = encoder_of(thinking(), DIRECT, cache if cached else None)
        embedded = embed_all(encoder, inputs, side="query", reasoning="never", batch_size=2)
    assert embedded.timed == 3
    assert embedded.seconds_per_input == pytest.approx(embedded.seconds / 3)
    assert embed(plain, ["lima", "lima"]).timed == embed(oracle, [{"text": "Lima"}] * 2).timed == 2


def test_a_vector_that_is_not_finite_is_refused_by_its_id(oracle):
    explain = oracle.explain

    def broken(inputs, **options):
        rows = explain(inputs, **options)
        rows[-1]["embedding"][0] = np.nan
        return rows

    oracle.explain = broken
    inputs = [{"text": "Lima"}, {"text": "Rome"}]
    with pytest.raises(ValueError, match="the vector of the query 'second' holds NaN"):
        embed(oracle, inputs, ids=["first", "second"])
    with pytest.raises(ValueError, match="the vector of the document 1 holds NaN"):
        embed(oracle, inputs, side="document")


def test_an_input_that_cannot_be_embedded_is_named_by_its_number(thinking):
    inputs = ["fine"] * (2 * BATCHES_AT_ONCE + 5)
    inputs[2 * BATCHES_AT_ONCE + 3] = {"image": "missing.png"}
    with pytest.raises(InputError, match=f"{2 * BATCHES_AT_ONCE + 3}.*missing.png"):
        embed(thinking(), inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": ()}, "at least one is needed"),
        ({"modes": ("never", "never")}, "each once at most"),
        ({"modes": ("often",)}, "'often' is not known; allowed: never, always, auto"),
        ({"document_reasoning": "often"}, "'often' is not known"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)
