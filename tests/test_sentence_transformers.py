"""The model as users of sentence-transformers know it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel

from mmemb_r1 import MMEmbR1, modeling
from mmemb_r1.model_card import validate_model_card, write_model_card
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.sentence_transformers import PROMPTS
from mmemb_r1.tiny import build_tiny_vlm


@pytest.fixture(scope="session")
def model(thinking: Callable[..., MMEmbR1]) -> MMEmbR1:
    """Not to be changed."""
    return thinking()


@pytest.fixture(scope="session")
def saved(model: MMEmbR1, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(str(folder))
    return folder


def picture(seed: int = 0, size: tuple[int, int] = (64, 64)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def inputs() -> list[Any]:
    return [
        "What is the capital of Peru?",
        picture(0),
        {"text": "Which is larger?", "image": [picture(1), picture(2, (100, 40))]},
        "Lima",
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": picture(3)}, {"type": "text", "text": "What is this?"}],
            }
        ],
    ]


def test_encode_gives_one_unit_vector_per_input(model, inputs):
    for reasoning in ("never", "always", "auto"):
        vectors = model.encode(inputs, reasoning=reasoning)
        assert (vectors.shape, vectors.dtype) == ((5, 32), np.float32)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert model.encode([]).shape[0] == 0


def test_batches_and_order_do_not_matter(model, inputs):
    expected = model.encode(inputs, reasoning="always", batch_size=1)
    for size in (2, 5, 32):
        np.testing.assert_allclose(model.encode(inputs, reasoning="always", batch_size=size), expected, atol=1e-4)
    np.testing.assert_allclose(model.encode(inputs[::-1], reasoning="always"), expected[::-1], atol=1e-4)


def test_one_input_is_one_vector(model, inputs):
    together = model.encode(inputs)
    for value, expected in zip(inputs, together, strict=True):
        np.testing.assert_allclose(model.encode(value), expected, atol=1e-4)
    message = {"role": "user", "content": "Lima"}
    np.testing.assert_allclose(model.encode(message), model.encode("Lima"), atol=1e-4)


def test_containers(model):
    words = ["Lima", "Peru", "Chad"]
    expected = model.encode(words)
    for container in (tuple(words), np.array(words), np.array(words, dtype=object)):
        np.testing.assert_allclose(model.encode(container), expected, atol=1e-4)


def test_reasoning_options_reach_the_model(model, inputs):
    never, always = (model.explain(inputs, reasoning=mode) for mode in ("never", "always"))
    assert not any(item["reasoned"] or item["num_reasoning_tokens"] or item["rationale"] for item in never)
    assert all(item["reasoned"] for item in always)
    assert max(item["num_reasoning_tokens"] for item in always) == 4
    longer = model.explain(inputs, reasoning="always", max_reasoning_tokens=6, max_reasoning_rounds=2)
    assert max(item["num_reasoning_tokens"] for item in longer) == 12
    assert {item["num_reasoning_rounds"] for item in longer} == {2}
    threshold = np.median([item["gate_prob"] for item in never])
    auto = model.explain(inputs, gate_threshold=threshold)
    assert [item["reasoned"] for item in auto] == [item["gate_prob"] >= threshold for item in never]
    assert 0 < sum(item["reasoned"] for item in auto) < len(inputs)


def test_unknown_options_are_an_error(model):
    with pytest.raises(ValueError, match="additional keyword arguments that this model does not use.*'resoning'"):
        model.encode(["a"], resoning="never")
    with pytest.raises(ValueError, match="reasoning='often' is not known; allowed: auto, always, never"):
        model.encode(["a"], reasoning="often")


def test_explain(model, inputs):
    items = model.explain(inputs, reasoning="always", max_reasoning_rounds=2)
    assert len(items) == len(inputs)
    np.testing.assert_allclose(
        [item["embedding"] for item in items],
        model.encode(inputs, reasoning="always", max_reasoning_rounds=2),
        atol=1e-4,
    )
    assert set(items[0]) == {
        "embedding",
        "gate_prob",
        "reasoned",
        "num_reasoning_tokens",
        "num_reasoning_rounds",
        "rationale",
    }
    for item in items:
        assert 0 <= item["gate_prob"] <= 1
        assert not any(token in item["rationale"] for token in ("<think>", "</think>", "<|embed|>"))
        assert item["rationale"]
    for value in ("Lima", inputs[4], {"text": "Lima"}):
        assert isinstance(model.explain(value), dict)
    rows = model.explain(inputs, reasoning="always", truncate_dim=8)
    assert rows[0]["embedding"].shape == (8,)


def test_rationales_are_the_text_that_was_thought(model):
    tokenizer = model.tokenizer
    wanted = tokenizer(" Peru", add_special_tokens=False)["input_ids"][-1]
    word = tokenizer.decode([wanted])

    def favour(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits + 1e4 * (torch.arange(logits.shape[-1]) == wanted)

    with model[0].model.get_output_embeddings().register_forward_hook(favour):
        item = model.explain("Lima", reasoning="always", max_reasoning_rounds=2, max_reasoning_tokens=3)
    assert item["rationale"] == "\n".join([(3 * word).strip()] * 2)
    assert item["num_reasoning_tokens"] == 6


def test_prompts_are_instructions(model, inputs):
    own = {"text": "Lima", "instruction": "Find it."}
    plain, prompted = model.encode(["Lima", own]), model.encode(["Lima", own], prompt="Represent this.")
    assert np.abs(plain[0] - prompted[0]).max() > 1e-3
    np.testing.assert_allclose(plain[1], prompted[1], atol=1e-4)
    np.testing.assert_allclose(
        model.encode({"text": "Lima", "instruction": "Represent this."}), prompted[0], atol=1e-4
    )


def test_queries_and_documents(model, inputs):
    queries, documents = model.encode_query(inputs, reasoning="always"), model.encode_document(["Lima", "Peru"])
    np.testing.assert_allclose(queries, model.encode(inputs, reasoning="always"), atol=1e-4)
    scores = model.similarity(queries, documents)
    np.testing.assert_allclose(scores, queries @ documents.T, atol=1e-5)
    assert model.similarity_fn_name == "cosine"


def test_named_prompts(tmp_path, thinking):
    model = thinking()
    model.prompts = {"query": "Find the answer.", "document": ""}
    np.testing.assert_allclose(
        model.encode_query("Lima"), model.encode("Lima", prompt="Find the answer.", task="query"), atol=1e-4
    )
    direct = model.encode("Lima", reasoning="never")
    np.testing.assert_allclose(model.encode_document("Lima"), direct, atol=1e-4)
    model.save_pretrained(str(tmp_path))
    again = MMEmbR1(str(tmp_path), device="cpu")
    np.testing.assert_allclose(again.encode_query("Lima"), model.encode_query("Lima"), atol=1e-4)


def test_truncation_and_output_formats(model, inputs):
    whole = model.encode(inputs)
    short = model.encode(inputs, truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(short, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True), atol=1e-4)
    tensors = model.encode(inputs, convert_to_tensor=True)
    assert isinstance(tensors, torch.Tensor)
    np.testing.assert_allclose(tensors, whole, atol=1e-4)
    assert model.encode(inputs, precision="binary").shape == (5, 4)
    assert model.get_embedding_dimension() == 32


def test_shortened_vectors_have_unit_norm_again(model, saved, inputs):
    whole = model.encode(inputs)
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode(inputs, truncate_dim=8), expected, atol=1e-5)
    np.testing.assert_allclose(
        model.encode_query(inputs[0], truncate_dim=8, reasoning="never"), expected[0], atol=1e-5
    )
    explained = model.explain(inputs, truncate_dim=8)
    np.testing.assert_allclose([item["embedding"] for item in explained], expected, atol=1e-5)
    short = MMEmbR1(str(saved), device="cpu", truncate_dim=8)
    np.testing.assert_allclose(short.encode(inputs), expected, atol=1e-5)
    np.testing.assert_allclose(short.explain(inputs[0])["embedding"], expected[0], atol=1e-5)
    sliced = model.encode(inputs, truncate_dim=8, normalize_embeddings=False)
    np.testing.assert_allclose(sliced, whole[:, :8], atol=1e-5)


def test_arguments_may_be_positions_and_old_names(model, saved, inputs):
    expected = model.encode(inputs, truncate_dim=8)
    before = (None, None, 32, False, "sentence_embedding", "float32", True, False, None)
    sliced = model.encode(inputs, truncate_dim=8, normalize_embeddings=False)
    np.testing.assert_allclose(model.encode(inputs, *before, False, 8), sliced, atol=1e-5)
    np.testing.assert_allclose(model.encode(inputs, *before, True, 8), expected, atol=1e-5)
    short = MMEmbR1(str(saved), device="cpu", truncate_dim=8)
    np.testing.assert_allclose(short.encode_query(inputs, *before, reasoning="never"), expected, atol=1e-5)
    np.testing.assert_allclose(short.encode(inputs, *before, False), sliced, atol=1e-5)
    np.testing.assert_allclose(model.encode(sentences=inputs), model.encode(inputs), atol=1e-5)
    with pytest.raises(ValueError, match="output_value='token_embeddings' is not known"):
        model.encode(inputs, None, None, 32, False, "token_embeddings")
    everything = model.encode(inputs, output_value=None, truncate_dim=8)
    np.testing.assert_allclose([item["sentence_embedding"] for item in everything], expected, atol=1e-5)


def test_plain_sentence_transformers_slices(model, saved, inputs):
    """The config's truncate_dim shortens before the norm is taken, whoever loads it."""
    expected = model.encode(inputs, truncate_dim=8)
    plain = SentenceTransformer(str(saved), trust_remote_code=True, device="cpu", truncate_dim=8)
    assert np.linalg.norm(plain.encode(inputs), axis=1).max() < 0.99
    np.testing.assert_allclose(plain.encode(inputs, normalize_embeddings=True), expected, atol=1e-5)
    options = {"device": "cpu", "config_kwargs": {"truncate_dim": 8}}
    for loaded in (SentenceTransformer(str(saved), trust_remote_code=True, **options), MMEmbR1(str(saved), **options)):
        np.testing.assert_allclose(loaded.encode(inputs), expected, atol=1e-5)


def test_processing_options_of_sentence_transformers_are_refused(model):
    with pytest.raises(ValueError, match="processing_kwargs=.* is not supported; set max_text_tokens"):
        model.encode("Lima", processing_kwargs={"text": {"max_length": 3}})


def test_vectors_that_are_not_normalised_stay_so_when_shortened(thinking):
    model = thinking(normalize=False)
    np.testing.assert_allclose(model.encode("Lima", truncate_dim=8), model.encode("Lima")[:8], atol=1e-5)


def test_documents_have_a_default_of_their_own(model, inputs):
    assert model[0].model.config.document_reasoning == "never"
    never, always = (model.encode(inputs, reasoning=mode) for mode in ("never", "always"))
    np.testing.assert_allclose(model.encode_document(inputs), never, atol=1e-5)
    np.testing.assert_allclose(model.encode_document(inputs, reasoning="always"), always, atol=1e-5)
    assert np.abs(never - always).max() > 1e-2
    explained = model.explain(inputs, task="document")
    assert not any(item["reasoned"] for item in explained)


def test_defaults_of_both_sides_are_saved(tmp_path, inputs, thinking):
    thinking(reasoning="never", document_reasoning="always").save_pretrained(str(tmp_path))
    model = MMEmbR1(str(tmp_path), device="cpu")
    plain = SentenceTransformer(modules=[model[0]], device="cpu")
    for given in (model, plain):
        for encode, mode in (
            (given.encode_query, "never"),
            (given.encode, "always"),  # so do programs that don't say what they embed
            (given.encode_document, "always"),
        ):
            np.testing.assert_allclose(encode(inputs), model.encode(inputs, reasoning=mode), atol=1e-5)


def test_instructions_by_name(model, saved):
    again = MMEmbR1(str(saved), device="cpu")
    assert again.prompts == model.prompts == PROMPTS, "a test has changed the shared model"
    assert {"classification", "question-answering", "retrieval", "grounding", "document-retrieval"} <= set(PROMPTS)
    for name, prompt in PROMPTS.items():
        task = {"task": "query"} if name == "query" else {}
        expected = model.encode({"text": "Lima", "instruction": prompt} if prompt else "Lima", **task)
        np.testing.assert_allclose(again.encode("Lima", prompt_name=name), expected, atol=1e-4)
    with pytest.raises(ValueError, match="Prompt name 'grunding' not found .*'grounding'"):
        model.encode("Lima", prompt_name="grunding")


def test_vectors_that_are_not_normalised(thinking):
    vectors = thinking(normalize=False, embedding_dim=16).encode(["Lima", "Peru"])
    assert vectors.shape == (2, 16)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).min() > 1e-2


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_errors_name_the_input_among_all(model, batch_size, place):
    """Sentence-transformers sorts by length before it makes batches; the index is still the caller's."""
    values: list[Any] = ["a", "a much longer text than the others", picture(), "b b"]
    values.insert(place, {"text": "c", "image": "nowhere.png"})
    with pytest.raises(
        InputError, match=f"^Input {place} can't be embedded: there is no image file 'nowhere.png'"
    ) as error:
        model.encode(values, batch_size=batch_size)
    assert error.value.index == place
    with pytest.raises(ValueError, match=f"Input {place} can't"):
        model.explain(tuple(values), batch_size=batch_size)


def test_errors_of_a_single_input(model):
    for value in ("", {"txt": "a"}, 3, [{"role": "user", "content": ""}]):
        with pytest.raises(InputError, match="^Input 0 can't be embedded"):
            model.encode(value)


def test_errors_from_the_processor_name_the_input(model, thinking):
    with pytest.raises(InputError, match="^Input 2 can't be embedded: .*aspect ratio"):
        model.encode(["a", picture(0), picture(0, (900, 2)), "a longer text"])
    llava = thinking("llava")
    clip = {"video": np.zeros((2, 64, 64, 3), np.uint8)}
    with pytest.raises(InputError, match="^Input 1 can't be embedded: this model's backbone takes no videos"):
        llava.encode(["a", clip, "a longer text"])
    # sentence-transformers' own guess at what a batch of one kind holds would refuse it without a place
    for values, place in (([clip], 0), (["a", "b", clip["video"]], 2), ([{**clip, "text": "a"}] * 2, 0)):
        with pytest.raises(InputError, match=f"^Input {place} can't be embedded: this model's backbone takes no"):
            llava.encode(values, batch_size=1)


def test_a_batch_alone_is_indexed_by_itself(model):
    with pytest.raises(InputError, match="^Input 1 can't be embedded") as error:
        model.preprocess(["a", ""])
    assert error.value.value == ""


def test_saved_repository(saved):
    names = {file.name for file in saved.iterdir()}
    modules = json.loads((saved / "modules.json").read_text())
    assert modules == [{"idx": 0, "name": "0", "path": "", "type": "sentence_mmemb_r1.MMEmbR1Module"}]
    config = json.loads((saved / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_mmemb_r1.MMEmbR1Config",
        "AutoModel": "modeling_mmemb_r1.MMEmbR1Model",
    }
    shipped = {file.name for file in Path(modeling.__file__).parent.glob("*.py")} - {"__init__.py"}
    assert shipped <= names
    assert {"model.safetensors", "config.json", "README.md", "config_sentence_transformers.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pyc")) for name in names)
    for name in shipped:
        assert (saved / name).read_text() == (Path(modeling.__file__).parent / name).read_text()


def test_the_card_of_what_was_saved(saved, tmp_path, thinking):
    text = (saved / "README.md").read_text(encoding="utf-8")
    validate_model_card(text, saved)
    assert "mmemb-r1" in text and f'MMEmbR1("{saved.name}")' in text
    thinking().save_pretrained(str(tmp_path / "named"), model_name="org/name")
    assert 'MMEmbR1("org/name")' in (tmp_path / "named" / "README.md").read_text(encoding="utf-8")


def test_the_card_of_what_was_loaded_and_saved_again(saved, tmp_path):
    """What somebody knows of it stays; what was measured and is not here goes; what has changed is told anew."""
    folder = tmp_path / "loaded"
    shutil.copytree(saved, folder)
    (folder / "training.json").write_text('{"steps": 7}', encoding="utf-8")
    write_model_card(folder, license="apache-2.0", datasets=["org/pairs"])
    assert "| steps | 7 |" in (folder / "README.md").read_text(encoding="utf-8")
    model = MMEmbR1(str(folder), device="cpu")
    model[0].model.config.gate_threshold = 0.9
    model.save_pretrained(str(tmp_path / "again"), model_name="org/again")
    text = (tmp_path / "again" / "README.md").read_text(encoding="utf-8")
    validate_model_card(text, tmp_path / "again")
    card = ModelCard(text)
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["org/pairs"])
    assert "| gate threshold | 0.9 |" in text and 'MMEmbR1("org/again")' in text and "| steps | 7 |" not in text


def test_a_card_that_somebody_wrote_stays(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "loaded")
    card = "---\nlicense: mit\n---\n\nMy own words.\n"
    (tmp_path / "loaded" / "README.md").write_text(card, encoding="utf-8")
    MMEmbR1(str(tmp_path / "loaded"), device="cpu").save_pretrained(str(tmp_path / "again"))
    assert (tmp_path / "again" / "README.md").read_text(encoding="utf-8") == card


def test_adapters_of_a_fresh_model_are_saved(thinking, tmp_path):
    model = thinking()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(str(tmp_path))
    names = {file.name for file in tmp_path.iterdir()}
    assert {"adapter_model.safetensors", "modules.json", "sentence_mmemb_r1.py", "README.md"} <= names
    assert "config.json" not in names


def changed(saved: Path, folder: Path, **fields: Any) -> Path:
    """A copy of a checkpoint with other fields in its config.json; `None` takes one out."""
    shutil.copytree(saved, folder)
    config = json.loads((folder / "config.json").read_text()) | fields
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def test_a_repository_of_an_older_version_loads(model, saved, tmp_path, inputs):
    """As 0.1.0.dev0 saved it: without what the config learnt since, and without files that its code did not have."""
    later = ("document_reasoning", "max_image_pixels", "max_video_frames", "repository_format")
    folder = changed(saved, tmp_path / "old", **dict.fromkeys(later))
    for name in ("pipeline_mmemb_r1.py", "remote_mmemb_r1.py"):
        (folder / name).unlink()
    loaded = MMEmbR1(str(folder), device="cpu")
    np.testing.assert_allclose(loaded.encode(inputs), model.encode(inputs), atol=1e-5)
    loaded.save_pretrained(str(tmp_path / "new"))
    assert {file.name for file in (tmp_path / "new").iterdir()} == {file.name for file in saved.iterdir()}


def test_old_names_of_weights(tmp_path, thinking):
    model = thinking(embedding_dim=16, pooling="attention")
    model.save_pretrained(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    old = {name.replace("embedding_head.", "head."): weight for name, weight in weights.items()}
    assert len(set(old) - set(weights)) == 2
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = MMEmbR1(str(tmp_path), device="cpu")
    np.testing.assert_allclose(loaded.encode(["Lima", "Peru"]), model.encode(["Lima", "Peru"]), atol=1e-5)
    loaded.save_pretrained(str(tmp_path / "again"))
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == set(weights)


def test_a_folder_without_a_config_is_refused(saved, tmp_path):
    """And no default model is built, which would need 50 GB."""
    shutil.copytree(saved, tmp_path / "cut")
    (tmp_path / "cut" / "config.json").unlink()
    with pytest.raises(ValueError, match="cut has no config.json; name a folder that save_pretrained wrote"):
        MMEmbR1(str(tmp_path / "cut"), device="cpu")


def test_a_repository_of_a_newer_version_says_what_to_upgrade(saved, tmp_path):
    folder = changed(saved, tmp_path / "newer", repository_format=4)
    message = "repository_format=4, and this code of mmemb-r1 reads up to 3: .*pip install -U mmemb-r1"
    with pytest.raises(ValueError, match=message):
        MMEmbR1(str(folder), device="cpu")
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(folder, trust_remote_code=False)


def test_older_transformers_are_refused(saved, tmp_path):
    folder = tmp_path / "demanding"
    shutil.copytree(saved, folder)
    path = folder / "config_sentence_transformers.json"
    settings = json.loads(path.read_text())
    assert settings["requirements"]["transformers"]["specifier"] == ">=5.19"
    settings["requirements"]["transformers"]["specifier"] = ">=99"
    path.write_text(json.dumps(settings))
    with pytest.raises(ImportError, match="(?s)transformers.*>=99"):
        MMEmbR1(str(folder), device="cpu")


def test_pickles_are_never_read(saved, tmp_path, thinking):
    folder = tmp_path / "pickled"
    shutil.copytree(saved, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    for load in (lambda: MMEmbR1(str(folder), device="cpu"), lambda: AutoModel.from_pretrained(folder)):
        with pytest.raises(OSError, match="model.safetensors"):
            load()
    with pytest.raises(ValueError, match="reads safetensors only"):
        AutoModel.from_pretrained(folder, use_safetensors=False)
    with pytest.raises(ValueError, match="saves safetensors only"):
        thinking().save_pretrained(str(tmp_path / "more"), safe_serialization=False)


def test_a_revision_of_the_code_is_of_no_interest_here(model, saved):
    """The package's own code is run."""
    loaded = MMEmbR1(str(saved), device="cpu", model_kwargs={"code_revision": "0" * 40})
    np.testing.assert_allclose(loaded.encode("Lima"), model.encode("Lima"), atol=1e-5)


def test_without_trust_the_code_of_a_repository_is_not_run(saved):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(saved), device="cpu")


def test_load_what_was_saved(model, saved, inputs):
    loaded = MMEmbR1(str(saved), device="cpu")
    for reasoning in ("never", "always"):
        np.testing.assert_allclose(
            loaded.encode(inputs, reasoning=reasoning), model.encode(inputs, reasoning=reasoning), atol=1e-5
        )
    assert loaded.similarity_fn_name == "cosine"
    assert type(loaded[0]) is type(model[0])
    half = MMEmbR1(str(saved), device="cpu", model_kwargs={"dtype": torch.bfloat16}, truncate_dim=8)
    vectors = half.encode(inputs, reasoning="always")
    assert (vectors.shape, vectors.dtype) == ((5, 8), np.float32)
    assert half[0].model.dtype == torch.bfloat16


def test_plain_sentence_transformers_wraps_the_module(model, inputs):
    plain = SentenceTransformer(modules=[model[0]], device="cpu")
    np.testing.assert_allclose(
        plain.encode(inputs, reasoning="always"), model.encode(inputs, reasoning="always"), atol=1e-5
    )


def test_other_modules_keep_their_place(saved, tmp_path, inputs, thinking):
    """A module of sentence-transformers behind ours is saved and loaded as usual."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    model = MMEmbR1(modules=[thinking(normalize=False)[0], Normalize()], device="cpu")
    model.save_pretrained(str(tmp_path))
    loaded = MMEmbR1(str(tmp_path), device="cpu")
    assert [type(module).__name__ for module in loaded] == ["MMEmbR1Module", "Normalize"]
    np.testing.assert_allclose(loaded.encode(inputs), model.encode(inputs), atol=1e-5)


def test_a_fresh_model_does_not_think():
    model = MMEmbR1.from_vlm(*build_tiny_vlm("smolvlm"), gate_threshold=0.3)
    assert model[0].model.config.gate_threshold == 0.3
    assert model.device.type == "cpu"
    assert not model.explain("Lima")["reasoned"]
    lower = MMEmbR1.from_vlm(*build_tiny_vlm("smolvlm"), gate_threshold=0.1)
    assert lower.explain("Lima", task="query")["reasoned"]
