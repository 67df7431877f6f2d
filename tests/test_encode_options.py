"""What else sentence-transformers' `encode` takes, and how a model may be loaded for it.

Batches, inputs, errors, truncation, prompts of queries and documents, and the options of thinking are in
test_sentence_transformers.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

from mmemb_r1 import MMEmbR1, MMEmbR1Config
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module
from mmemb_r1.tiny import build_tiny_vlm

pytestmark = pytest.mark.usefixtures("one_thread")
ALWAYS = {"reasoning": "always", "max_reasoning_tokens": 4}


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> MMEmbR1:
    """Not to be changed."""
    return MMEmbR1(str(tiny_checkpoint), device="cpu")


@pytest.fixture(scope="module")
def inputs() -> list[Any]:
    pictures = [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue")]
    return [
        "What is the capital of Peru?",
        pictures[0],
        {"text": "Which is larger?", "image": pictures[1:]},
        "Lima",
        {"text": "Chad", "instruction": "Find the flag."},
    ]


@pytest.fixture(scope="module")
def vectors(model: MMEmbR1, inputs: list[Any]) -> np.ndarray:
    """`(5, 32)` embeddings of the inputs after thinking."""
    return model.encode(inputs, **ALWAYS)


def assert_close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


# what comes out


def test_float32_is_what_the_model_gives(model, inputs, vectors):
    again = model.encode(inputs, precision="float32", **ALWAYS)
    assert again.dtype == np.float32
    assert_close(again, vectors)
    assert np.abs(vectors - model.encode(inputs, reasoning="never")).max() > 1e-3  # the options were passed on


@pytest.mark.parametrize(("precision", "dtype", "lowest"), [("int8", np.int8, -128), ("uint8", np.uint8, 0)])
def test_bytes_split_the_range_of_each_dimension(precision, dtype, lowest, model, inputs, vectors):
    codes = model.encode(inputs, precision=precision, **ALWAYS)
    assert (codes.shape, codes.dtype) == (vectors.shape, dtype)
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    step = (high - low) / 255
    assert np.all(np.abs(low + (codes.astype(int) - lowest) * step - vectors) <= 1.01 * step)
    assert codes.min() == lowest
    assert codes.max() == lowest + 255


def test_bits_are_the_signs(model, inputs, vectors):
    unsigned, signed = (model.encode(inputs, precision=name, **ALWAYS) for name in ("ubinary", "binary"))
    assert (unsigned.dtype, signed.dtype) == (np.uint8, np.int8)
    assert unsigned.shape == signed.shape == (5, 32 / 8)
    np.testing.assert_array_equal(np.unpackbits(unsigned, axis=1), vectors > 0)
    np.testing.assert_array_equal(signed.astype(int) + 128, unsigned)


def test_an_unknown_precision_is_an_error(model):
    with pytest.raises(ValueError, match="precision='int4' is not known; allowed: float32, int8"):
        model.encode(["Lima"], precision="int4")


def test_normalisation_on_request(inputs):
    model = MMEmbR1.from_vlm(*build_tiny_vlm("qwen3_vl"), normalize=False)
    plain = model.encode(inputs, **ALWAYS)
    unit = model.encode(inputs, normalize_embeddings=True, **ALWAYS)
    norms = np.linalg.norm(plain, axis=1, keepdims=True)
    assert np.abs(norms - 1).min() > 1e-2
    assert_close(unit, plain / norms)


def test_containers_of_the_result(model, inputs, vectors):
    tensors = model.encode(inputs, convert_to_tensor=True, **ALWAYS)
    rows = model.encode(inputs, convert_to_numpy=False, **ALWAYS)
    assert isinstance(tensors, torch.Tensor)
    assert isinstance(rows, list)
    assert {type(row) for row in rows} == {torch.Tensor}
    assert_close(tensors, vectors)
    assert_close(torch.stack(rows), vectors)
    bits = model.encode(inputs, convert_to_tensor=True, precision="ubinary", **ALWAYS)
    assert bits.dtype == torch.uint8
    np.testing.assert_array_equal(np.unpackbits(bits.numpy(), axis=1), vectors > 0)


@pytest.mark.parametrize("row", range(5))
def test_a_single_input_has_no_batch_dimension(row, model, inputs, vectors):
    assert_close(model.encode(inputs[row], **ALWAYS), vectors[row])
    assert_close(model.encode(inputs[row : row + 1], **ALWAYS), vectors[row : row + 1])
    tensor = model.encode(inputs[row], convert_to_tensor=True, **ALWAYS)
    assert tensor.shape == (32,)
    assert model.encode(inputs[row], precision="binary", **ALWAYS).shape == (4,)


def test_nothing_in_is_nothing_out(model):
    for empty in ([], ()):
        for options in ({}, {"convert_to_tensor": True}, {"convert_to_numpy": False}, {"precision": "binary"}):
            assert len(model.encode(empty, **options, **ALWAYS)) == 0
        assert model.encode(empty, output_value=None) == []
        assert model.explain(empty) == []


def test_everything_on_request_is_one_dict_per_input(model, inputs, vectors):
    """What is told of an input is its own, not the batch's."""
    rows = model.encode(inputs, output_value=None, **ALWAYS)
    assert [type(row) for row in rows] == [dict] * len(inputs)
    assert_close(torch.stack([row["sentence_embedding"] for row in rows]), vectors)
    for value, row in zip(inputs, rows, strict=True):
        alone = model.encode(value, output_value=None, **ALWAYS)
        assert row.keys() == alone.keys()
        for name in ("reasoned", "num_reasoning_rounds", "num_reasoning_tokens", "num_forced_closings"):
            assert row[name].shape == ()
            assert row[name] == alone[name], name
        assert row["gate_prob"] == pytest.approx(alone["gate_prob"].item(), abs=1e-5)
        thought, again = (each["rationale_ids"] for each in (row, alone))
        assert thought[thought >= 0].tolist() == again[again >= 0].tolist()
    assert all(row["reasoned"] for row in rows)


@pytest.mark.parametrize("value", ["token_embeddings", "sentence"])
def test_other_values_are_refused(value, model):
    """There is one vector per input; the states of its tokens are what `model[0].model(...)` returns."""
    with pytest.raises(ValueError, match=f"output_value='{value}'.* allowed: sentence_embedding"):
        model.encode(["Lima"], output_value=value)


@pytest.mark.parametrize("name", ["cosine", "dot"])
def test_pairwise_similarities_are_the_diagonal(name, tiny_checkpoint, vectors):
    model = MMEmbR1(str(tiny_checkpoint), device="cpu", similarity_fn_name=name)
    assert model.similarity_fn_name == name
    other = vectors[::-1].copy()
    pairwise = model.similarity_pairwise(vectors, other)
    assert_close(pairwise, (vectors * other).sum(axis=1))  # they are unit vectors
    assert_close(pairwise, np.diagonal(model.similarity(vectors, other)))


# prompts


def test_named_and_default_prompts(tiny_checkpoint, model):
    prompts = {"find": "Find the answer.", "same": "Find the same."}
    chosen = MMEmbR1(str(tiny_checkpoint), device="cpu", prompts=prompts, default_prompt_name="same")
    expected = {text: model.encode("Lima", prompt=text, **ALWAYS) for text in prompts.values()}
    assert np.abs(np.subtract(*expected.values())).max() > 1e-4
    assert_close(chosen.encode("Lima", prompt_name="find", **ALWAYS), expected["Find the answer."])
    assert_close(chosen.encode("Lima", **ALWAYS), expected["Find the same."])
    assert_close(chosen.encode("Lima", prompt="Find the answer.", **ALWAYS), expected["Find the answer."])
    with pytest.raises(ValueError, match="Prompt name 'lose' not found .*'find', 'same'"):
        chosen.encode("Lima", prompt_name="lose")


# how a model is loaded


@pytest.mark.parametrize(
    "options",
    [
        {"attn_implementation": "eager"},
        {"attn_implementation": {"vlm_config": "eager"}},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"device_map": "auto"},
        {"dtype": "auto"},
        {"dtype": "float16"},
        {"dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_options_of_the_model(options, tiny_checkpoint, model, inputs):
    """Half precision aside, they change no vector; what comes out is float32 always."""
    loaded = MMEmbR1(str(tiny_checkpoint), model_kwargs=options)
    half = options.get("dtype") not in (None, "auto")
    loaded.to("cpu")
    dtype = {"float16": torch.float16}.get(options.get("dtype"), options.get("dtype")) if half else torch.float32
    assert {weight.dtype for weight in loaded.parameters()} == {dtype}
    attention = loaded[0].model.vlm.config.get_text_config()._attn_implementation
    assert attention == ("eager" if "attn_implementation" in options else "sdpa")
    assert loaded[0].model.device.type == "cpu"
    output = loaded.encode(inputs, reasoning="never", convert_to_tensor=True)
    assert output.dtype == torch.float32
    expected = model.encode(inputs, reasoning="never", convert_to_tensor=True)
    assert (output * expected).sum(dim=-1).min() > (0.99 if half else 1 - 1e-5)
    if not half:
        assert_close(loaded.encode(inputs, **ALWAYS), model.encode(inputs, **ALWAYS))


def test_options_of_the_configuration(tiny_checkpoint, inputs, vectors):
    loaded = MMEmbR1(str(tiny_checkpoint), device="cpu", config_kwargs=ALWAYS)
    assert_close(loaded.encode_query(inputs), vectors)
    assert all(item["reasoned"] for item in loaded.explain(inputs, task="query"))


# adapters


@pytest.fixture(scope="module")
def adapted(tiny_checkpoint: Path) -> MMEmbR1:
    """A loaded model with adapters that change it."""
    peft = pytest.importorskip("peft")
    model = MMEmbR1(str(tiny_checkpoint), device="cpu")
    torch.manual_seed(0)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.mul_(4)
    return model


def test_adapters_are_saved_alone_and_loaded_onto_the_model(adapted, tiny_checkpoint, inputs, vectors, tmp_path):
    wanted = adapted.encode(inputs, **ALWAYS)
    assert np.abs(wanted - vectors).max() > 1e-2
    adapted.save_pretrained(str(tmp_path))
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "model.safetensors").exists()
    onto = MMEmbR1(str(tiny_checkpoint), device="cpu")
    onto.load_adapter(str(tmp_path))
    assert_close(onto.encode(inputs, **ALWAYS), wanted)
    onto.disable_adapters()
    assert_close(onto.encode(inputs, **ALWAYS), vectors)
    onto.enable_adapters()
    assert_close(onto.encode(inputs, **ALWAYS), wanted)


def test_a_folder_with_adapters_loads_with_the_model_that_they_belong_to(
    adapted, inputs, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    adapted.save_pretrained(str(tmp_path))
    read: list[MMEmbR1Config] = []
    original = MMEmbR1Config.from_pretrained.__func__

    def checked(cls: type, *args: Any, **kwargs: Any) -> Any:
        """A folder without a configuration must not stand for the default one: that is a full-size model."""
        read.append(original(cls, *args, **kwargs))
        config = read[-1][0] if isinstance(read[-1], tuple) else read[-1]
        assert config.hidden_size == adapted[0].model.config.hidden_size
        return read[-1]

    monkeypatch.setattr(MMEmbR1Config, "from_pretrained", classmethod(checked))
    loaded = MMEmbR1(str(tmp_path), device="cpu")
    assert read
    assert loaded.active_adapters() == adapted.active_adapters()
    assert_close(loaded.encode(inputs, **ALWAYS), adapted.encode(inputs, **ALWAYS))


# several processes


@pytest.fixture(scope="module")
def pool(model: MMEmbR1) -> Any:
    processes = model.start_multi_process_pool(["cpu", "cpu"])
    yield processes
    model.stop_multi_process_pool(processes)


@pytest.mark.slow
def test_a_pool_of_processes_gives_the_same(model, pool, inputs, vectors):
    """Whatever is asked for: the options of thinking reach every process."""
    for size in (1, 2, 5):
        assert_close(model.encode(inputs, pool=pool, chunk_size=size, **ALWAYS), vectors)
    assert_close(model.encode(inputs, pool=pool, reasoning="never"), model.encode(inputs, reasoning="never"))
    bits = model.encode(inputs, pool=pool, chunk_size=2, precision="ubinary", **ALWAYS)
    np.testing.assert_array_equal(np.unpackbits(bits, axis=1), vectors > 0)
    short, alone = (model.encode(inputs, truncate_dim=8, **options, **ALWAYS) for options in ({"pool": pool}, {}))
    assert_close(short, alone)
    there, here = (model.explain(inputs, **options, **ALWAYS) for options in ({"pool": pool, "chunk_size": 2}, {}))
    assert [item["rationale"] for item in there] == [item["rationale"] for item in here]
    assert_close([item["embedding"] for item in there], vectors)
    assert len(model.encode([], pool=pool)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 3, 5])
def test_errors_of_a_pool_name_the_input_among_all(place, model, pool, inputs):
    values = [*inputs[:place], {"text": "c", "image": "nowhere.png"}, *inputs[place:]]
    for size in (2, 6):
        with pytest.raises(ValueError, match=f"^Input {place} can't be embedded: there is no image file"):
            model.encode(values, pool=pool, chunk_size=size)


@pytest.mark.slow
def test_what_a_pool_cannot_be_handed_is_refused_and_not_waited_for(model, pool, inputs, tmp_path):
    """A queue drops what it can't pickle; the call then waited for its result without end."""
    path = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(path)
    with path.open("rb") as file:
        alone = model.encode([{"image": file}], reasoning="never")
        with pytest.raises(InputError, match=r"^Input 2 can't be embedded: it can't be handed to another process"):
            model.encode([*inputs[:2], {"image": file}, "Lima"], pool=pool)
    assert_close(model.encode([{"image": str(path)}], pool=pool, reasoning="never"), alone)  # the pool is as before


@pytest.mark.slow
def test_a_list_of_devices_is_a_pool_for_one_call(model, inputs, vectors):
    assert_close(model.encode(inputs, device=["cpu", "cpu"], chunk_size=2, **ALWAYS), vectors)


# what is refused

WRONG = [
    ("batch_size", (0, -1, 1.5, "8", True, float("nan"), 10**400)),
    ("decode_batch_size", (0, "8", True)),
    ("max_batch_tokens", (0, 2.0, "many")),
    ("truncate_dim", (0, -3, 10**6, 8.0, "8", True)),
    ("normalize_embeddings", ("no", 0, 1)),
    ("convert_to_tensor", ("yes",)),
    ("show_progress_bar", ("no",)),
    ("allow_remote_media", ("false", 1)),
    ("reasoning", ("often", True)),
    ("gate_threshold", (-0.1, 2, float("nan"), "0.5", True, 10**400)),
    ("max_reasoning_tokens", (0, 1.5, True, "4", 10**9)),
    ("max_reasoning_rounds", (0, 1.0, "2", 10**9)),
    ("task", ("documents", "doc", "", 3)),
    ("prompt", (3,)),
    ("prompt_name", (3,)),
    ("device", ("nonsense", "cuda:99")),
]


@pytest.mark.parametrize(("name", "values"), WRONG)
def test_every_door_refuses_what_an_option_cannot_be(name, values, model, tmp_path):
    from mmemb_r1.stream import encode_stream

    doors = [
        lambda **options: model.encode(["Lima"], **options),
        lambda **options: model.encode_query("Lima", **options),
        lambda **options: model.encode_document(["Lima"], **options),
        lambda **options: model.explain(["Lima"], **options),
        lambda **options: encode_stream(model, ["Lima"], tmp_path / "shards", **options),
    ]
    if name == "task":
        doors = [doors[0], *doors[3:]]  # the others say which it is
    for value in values:
        for door in doors:
            with pytest.raises(ValueError, match=f"{name}[= ]|can't be truncated to"):
                door(**{"reasoning": "never", name: value})
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize(("name", "values"), [row for row in WRONG if row[0] in MMEmbR1Module.forward_kwargs])
def test_so_do_plain_sentence_transformers(name, values, model):
    plain = SentenceTransformer(modules=[model[0]], device="cpu")
    for value in values:
        with pytest.raises(ValueError, match=f"{name}="):
            plain.encode(["Lima"], **{"reasoning": "never", name: value})


def test_numbers_of_numpy_are_numbers(model):
    options = {"batch_size": np.int64(2), "truncate_dim": np.int32(8), "normalize_embeddings": np.bool_(True)}
    thinking = {"max_reasoning_tokens": np.int16(4), "gate_threshold": np.float32(0.5), "reasoning": "always"}
    texts = ["Lima", "Quito", "La Paz"]
    plain = model.encode(texts, batch_size=2, truncate_dim=8, **ALWAYS)
    assert_close(model.encode(texts, **options, **thinking), plain)


def test_rounds_end_with_the_context(thinking):
    """However many rounds are allowed, a row begins no more than the model's context holds."""
    model = thinking(max_reasoning_tokens=2)
    model[0].model.config.get_text_config().max_position_embeddings = 40
    explained = model.explain("Lima", reasoning="always", max_reasoning_rounds=40)
    assert 5 <= explained["num_reasoning_rounds"] <= 14
    with pytest.raises(ValueError, match="max_reasoning_rounds=41 is more than the model's context of 40 tokens"):
        model.encode("Lima", reasoning="always", max_reasoning_rounds=41)


def test_limits_that_are_set_later_are_checked(tiny_checkpoint):
    model = MMEmbR1(str(tiny_checkpoint), device="cpu")
    with pytest.raises(ValueError, match="max_text_tokens=0"):
        model.max_seq_length = 0
    model.truncate_dim = -3
    with pytest.raises(ValueError, match="truncate_dim=-3"):
        model.encode("Lima")
    with pytest.raises(ValueError, match="truncate_dim=0"):
        MMEmbR1(str(tiny_checkpoint), device="cpu", truncate_dim=0)
    model.truncate_dim = None
    model[0].model.config.truncate_dim = 8
    assert model.encode("Lima").shape == (model.get_embedding_dimension(),) == (8,)


# what a plain `encode` does


def test_what_is_not_said_to_be_a_query_is_embedded_as_documents_are(thinking, inputs):
    """LlamaIndex, Haystack and LanceDB embed documents with a plain `encode`."""
    model = thinking(reasoning="always", document_reasoning="never")
    plain = SentenceTransformer(modules=[model[0]], prompts={"query": "", "document": ""}, device="cpu")
    direct, reasoned = (model.encode(inputs, reasoning=mode) for mode in ("never", "always"))
    for host in (model, plain):
        assert_close(host.encode(inputs), direct)
        assert_close(host.encode(inputs, prompt_name="document"), direct)
        assert_close(host.encode_document(inputs), direct)
        assert_close(host.encode_query(inputs), reasoned)
        assert_close(host.encode(inputs, task="query"), reasoned)
    assert_close(model.encode(inputs, prompt_name="query"), reasoned)
    assert not any(item["reasoned"] for item in model.explain(inputs))


# threads, hooks, hosts


def test_threads_get_what_one_gets(thinking):
    """Fast tokenizers keep the padding of a call until the next: what threads render must not mix."""
    model = thinking()
    batches = [[f"text {number}", "word " * (40 * number), "x " * number] for number in range(1, 7)]
    alone = [model[0].preprocess(batch)["input_ids"] for batch in batches]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: model[0].preprocess(batches[number % 6])["input_ids"], range(600)))
    assert all(torch.equal(ids, alone[number % 6]) for number, ids in enumerate(found))


@pytest.mark.slow
def test_a_pool_serves_one_call_at_a_time(model, pool):
    lists = [[f"list {number} text {row}" for row in range(9 + number)] for number in range(4)]
    alone = [model.encode(texts, reasoning="never") for texts in lists]
    with ThreadPoolExecutor(4) as threads:
        together = list(
            threads.map(lambda texts: model.encode(texts, pool=pool, chunk_size=2, reasoning="never"), lists * 3)
        )
    for number, vectors in enumerate(together):
        assert_close(vectors, alone[number % 4])


def test_a_pool_whose_results_are_left_over_is_refused(model, monkeypatch):
    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    pool: dict[str, Any] = {"processes": []}
    monkeypatch.setattr(SentenceTransformer, "_multi_process", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.encode(["Lima"], pool=pool)
    with pytest.raises(RuntimeError, match="A call with this pool was interrupted.* start a new one"):
        model.encode(["Lima"], pool=pool)


def test_hooks_and_compiled_models_are_called(tiny_checkpoint, inputs, vectors):
    model, seen = MMEmbR1(str(tiny_checkpoint), device="cpu"), []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(len(output["sentence_embedding"])))
    assert_close(model.encode(inputs, batch_size=2, **ALWAYS), vectors)
    assert sorted(seen) == [1, 2, 2]
    handle.remove()
    assert_close(model.encode(inputs, **ALWAYS), vectors)
    assert len(seen) == 3
    before = model[0].register_forward_pre_hook(lambda module, args: seen.append(args))
    model.encode(inputs, batch_size=2, **ALWAYS)
    assert len(seen) == 6
    before.remove()
    calls: list[Any] = []
    model._compiled_call_impl = lambda *args, **options: calls.append(args) or model._call_impl(*args, **options)
    assert_close(model.encode(inputs, **ALWAYS), vectors)
    assert len(calls) == 1


def test_hosts_that_look_at_the_type_see_a_sentence_transformer(model, tmp_path, monkeypatch):
    """BERTopic and KeyBERT take another model, silently, for a class whose module is not called so."""
    assert "sentence_transformers" in str(type(model))
    assert isinstance(model, SentenceTransformer)
    monkeypatch.chdir(tmp_path)
    assert model.save(None) is None
    assert not list(tmp_path.iterdir())
