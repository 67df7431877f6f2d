"""What transformers' own tests ask of every model, asked of this one.

Saving and loading, initialisation, tied weights, resized vocabularies, activation checkpointing, attention
implementations, dtypes, device maps, outputs, generation and adapters. That a batch is its parts, and that the side of
the padding does not matter, is in test_modeling.py.

Some of the common checks can't hold; each has a test here of what holds in its place:

- Random ids as an input: a row without `<|embed|>` has no place to read an embedding at, which is an error.
- `inputs_embeds` in place of `input_ids`: the markers are found by their ids.
- `use_cache` and `position_ids` of `forward`, which runs complete sequences and computes positions itself; decoding
  from a cache is `embed`.
- `loss` and `logits`: `labels` give log-probabilities, of the labelled tokens alone.
- A bare backbone loaded from the composite's checkpoint: the backbone's prefix is not the composite's. The other way
  round it works, and `model.vlm` can be saved and loaded.
- `flex_attention` on every backbone: the backbone's own refusal is the model's.
- A graph without breaks (`fullgraph=True`, export): how many markers a row holds depends on its values. Compiled with
  breaks, the result is the same.
- A small model from the default configuration: that describes a full-size Qwen3-VL, and is built on `meta` here.
- Flash attention and DataParallel: they need a GPU, and nothing here runs them. A backbone without the first refuses
  by itself.

Masks of heads, chunked feed-forward layers, resized position embeddings, several outputs per `num_labels` and
encoder-decoders do not exist in this model.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from mmemb_r1 import MMEmbR1Config, MMEmbR1Model
from mmemb_r1.tiny import build_tiny_vlm

EVERY_HEAD = {
    "pooling": "attention",
    "embedding_dim": 16,
    "gate_hidden_size": 8,
    "gate_inputs": ["state", "words"],
}  # no weight is left out
SHARD = "50KB"  # a fraction of a tiny model
NOTHING_AMISS = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}


@pytest.fixture(scope="module")
def checkpoint(
    make_tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Path]]:
    """`checkpoint(family)`: a model with all heads, and the folder it is saved in by shards. Not to be changed."""

    @cache
    def build(family: str) -> tuple[Any, Path]:
        folder = tmp_path_factory.mktemp(family)
        tiny = make_tiny(family, **EVERY_HEAD)
        tiny.model.save_pretrained(folder, max_shard_size=SHARD)
        return tiny, folder

    return build


@pytest.fixture
def unset_memory_is_nan() -> Iterator[None]:
    """What torch allocates without a value is NaN, not whatever was there."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def untied(family: str) -> tuple[Any, Any]:
    """A backbone whose output embeddings are a tensor of their own, and its processor."""
    vlm, processor = build_tiny_vlm(family)
    vlm.config.tie_word_embeddings = vlm.config.get_text_config().tie_word_embeddings = False
    output = vlm.get_output_embeddings()
    output.weight = nn.Parameter(output.weight.detach().flip(0).clone())
    return vlm, processor


def head_names(model: MMEmbR1Model) -> set[str]:
    """Names of all weights that are not the backbone's."""
    return {name for name in model.state_dict() if not name.startswith("vlm.")}


def on_disk(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def assert_same_weights(actual: nn.Module, expected: nn.Module) -> None:
    one, other = actual.state_dict(), expected.state_dict()
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def tied(model: MMEmbR1Model) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def attention_of(model: nn.Module) -> set[str]:
    """The attention implementations of all parts that have one."""
    return {part.config._attn_implementation for part in model.modules() if hasattr(part, "config")}


@torch.no_grad()
def direct(model: MMEmbR1Model, batch: dict[str, Tensor]) -> Tensor:
    return model.embed(**batch, reasoning="never").embeddings


@torch.no_grad()
def thought(model: MMEmbR1Model, batch: dict[str, Tensor]) -> Tensor:
    return model.embed(**batch, reasoning="always").embeddings


# saving and loading


def test_shards_load_into_the_same_model(family, checkpoint, mixed, close):
    tiny, folder = checkpoint(family)
    files = sorted(file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".pt"))
    assert len(files) > 2
    assert all(name.endswith(f"-of-{len(files):05d}.safetensors") for name in files)
    loaded, info = MMEmbR1Model.from_pretrained(folder, output_loading_info=True)
    assert info == NOTHING_AMISS
    assert_same_weights(loaded, tiny.model)
    assert not loaded.training
    batch = tiny.batch(mixed)
    close(thought(loaded, batch), thought(tiny.model, batch))


def test_names_of_the_weights(family, checkpoint):
    """The backbone's own below `vlm.`, so that a checkpoint of the one tells how to load the other."""
    tiny, _ = checkpoint(family)
    names = set(tiny.model.state_dict())
    assert tiny.model.base_model_prefix == "vlm"
    assert names - head_names(tiny.model) == {f"vlm.{name}" for name in tiny.model.vlm.state_dict()}
    assert len({name.split(".")[0] for name in head_names(tiny.model)}) == 2


def test_a_bare_backbone_can_be_saved_and_loaded(family, checkpoint, tmp_path):
    tiny, _ = checkpoint(family)
    tiny.model.vlm.save_pretrained(tmp_path)
    assert_same_weights(AutoModelForImageTextToText.from_pretrained(tmp_path), tiny.model.vlm)
    model, info = MMEmbR1Model.from_pretrained(tmp_path, config=tiny.model.config, output_loading_info=True)
    assert info == NOTHING_AMISS | {"missing_keys": head_names(tiny.model)}
    assert_same_weights(model.vlm, tiny.model.vlm)


def test_the_composite_is_no_backbone(checkpoint):
    _, folder = checkpoint("qwen3_vl")
    with pytest.raises(ValueError, match="Unrecognized configuration class .*MMEmbR1Config"):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_missing_weights_are_drawn_and_no_others(checkpoint, unset_memory_is_nan, tmp_path):
    tiny, folder = checkpoint("qwen3_vl")
    weights = on_disk(folder)
    missing = head_names(tiny.model) | {next(name for name in weights if name.endswith("q_proj.weight"))}
    tiny.model.config.save_pretrained(tmp_path)
    kept = {name: value for name, value in weights.items() if name not in missing}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = MMEmbR1Model.from_pretrained(tmp_path, output_loading_info=True)
    assert info == NOTHING_AMISS | {"missing_keys": missing}
    for name, value in loaded.state_dict().items():
        assert value.isfinite().all(), name
        assert name in missing or torch.equal(value, tiny.model.state_dict()[name])
    assert not loaded.gate.output.weight.any()  # a fresh gate is a constant
    assert loaded.gate.output.bias.item() == tiny.model.config.gate_init_bias


def test_weights_of_another_shape(checkpoint):
    _, folder = checkpoint("qwen3_vl")
    with pytest.raises(ValueError, match="of another shape: embedding_head.projection.weight"):
        MMEmbR1Model.from_pretrained(folder, embedding_dim=8)
    loaded, info = MMEmbR1Model.from_pretrained(
        folder, embedding_dim=8, ignore_mismatched_sizes=True, output_loading_info=True
    )
    ((name, old, new),) = info.pop("mismatched_keys")
    assert name.endswith(".projection.weight")
    assert (old, new) == ((16, 32), (8, 32))
    assert loaded.state_dict()[name].std() > 0
    assert not any(info.values())


# initialisation


def test_every_weight_is_initialised(family, checkpoint, unset_memory_is_nan, tmp_path):
    """In both ways a model gets weights without a checkpoint's: `from_config`, and a checkpoint that holds none."""
    tiny, _ = checkpoint(family)
    tiny.model.config.save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    makers = (
        lambda: AutoModel.from_config(tiny.model.config),
        lambda: AutoModel.from_pretrained(tmp_path, output_loading_info=True)[0],
    )
    built, loaded = ([], [])
    for models, make in zip((built, loaded), makers, strict=True):
        for _ in range(2):
            torch.manual_seed(0)
            models.append(make())
        assert_same_weights(*models)
    other = loaded[0].state_dict()
    for name, value in built[0].state_dict().items():
        assert value.isfinite().all() and other[name].isfinite().all(), name
        if "vision_tower" in name:  # what these draw for a whole layer, transformers leaves out below a custom model
            continue
        # the two draw in another order: what is constant is equal, the rest has the same spread
        if (value == value.flatten()[0]).all():
            assert torch.equal(value, other[name]), name
        else:
            assert 0.5 < value.std() / other[name].std() < 2, name
    assert tied(built[0]) and tied(loaded[0])


def test_every_tensor_is_a_parameter_or_a_buffer(tiny):
    """Others would stay behind when a model moves."""
    for name, part in tiny.model.named_modules():
        assert not [key for key, value in vars(part).items() if isinstance(value, Tensor)], name


def test_a_model_can_be_built_without_memory(checkpoint):
    tiny, _ = checkpoint("qwen3_vl")
    with torch.device("meta"):
        model, default = MMEmbR1Model(tiny.model.config), MMEmbR1Model(MMEmbR1Config())
    assert model.state_dict().keys() == tiny.model.state_dict().keys()
    assert {weight.device.type for weight in [*model.parameters(), *default.parameters()]} == {"meta"}
    assert sum(weight.numel() for weight in default.parameters()) > 1e9


# embeddings of tokens


def test_tied_embeddings_are_one_tensor(family, checkpoint):
    tiny, folder = checkpoint(family)
    assert len(on_disk(folder)) == len(tiny.model.state_dict()) - 1
    loaded = MMEmbR1Model.from_pretrained(folder)
    assert tied(loaded)
    assert tied(loaded.to(torch.float64))
    loaded.resize_token_embeddings(loaded.config.get_text_config().vocab_size + 8)
    assert tied(loaded)


def test_untied_embeddings_stay_two(tmp_path):
    """Tied or not is the backbone's own setting."""
    model, processor = MMEmbR1Model.from_vlm(*untied("qwen3_vl"))
    assert not model.config.tie_word_embeddings
    model.save_pretrained(tmp_path)
    assert len(on_disk(tmp_path)) == len(model.state_dict())
    loaded = MMEmbR1Model.from_pretrained(tmp_path)
    assert_same_weights(loaded, model)
    rows = len(processor.tokenizer) + 8
    loaded.resize_token_embeddings(rows)
    layers = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert [len(layer.weight) for layer in layers] == [rows, rows]
    assert not torch.equal(*(layer.weight for layer in layers))


def test_the_vocabulary_can_be_resized(family, make_tiny, mixed, close, tmp_path):
    tiny = make_tiny(family)
    model, batch, size = tiny.model, tiny.batch(mixed), len(tiny.processor.tokenizer)
    vectors = thought(model, batch)
    for rows in (size + 13, size):
        layer = model.resize_token_embeddings(rows)
        assert layer is model.get_input_embeddings()
        assert len(layer.weight) == len(model.get_output_embeddings().weight) == rows
        assert model.config.get_text_config().vocab_size == model.vlm.config.get_text_config().vocab_size == rows
        close(thought(model, batch), vectors)
        last = torch.full_like(batch["input_ids"], -100)
        last[:, -1] = size - 1
        with torch.no_grad():
            model(**batch, labels=last)
    model.resize_token_embeddings(size + 13)
    model.save_pretrained(tmp_path)
    loaded = MMEmbR1Model.from_pretrained(tmp_path)
    assert_same_weights(loaded, model)
    close(thought(loaded, batch), vectors)


def test_embedding_layers_can_be_exchanged(make_tiny):
    model = make_tiny("qwen3_vl").model
    rows, width = model.get_input_embeddings().weight.shape
    entry, exit_ = nn.Embedding(rows, width), nn.Linear(width, rows, bias=False)
    model.set_input_embeddings(entry)
    model.set_output_embeddings(exit_)
    assert model.get_input_embeddings() is model.vlm.get_input_embeddings() is entry
    assert model.get_output_embeddings() is model.vlm.get_output_embeddings() is exit_


# training


def gradients(model: MMEmbR1Model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss that asks for everything that `forward` gives, and its gradients."""
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    model.zero_grad()
    output = model(**batch, labels=labels)
    loss = output.embeddings[..., 0].sum() + output.gate_logits.sum() - output.rationale_logps.mean()
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing_but_memory(family, reentrant, make_tiny, mixed):
    tiny = make_tiny(family, **EVERY_HEAD)
    model, batch = tiny.model.train(), tiny.batch(mixed)
    runs: Counter[str] = Counter()
    for name, part in model.vlm.get_decoder().named_modules():
        if name.endswith(".self_attn"):
            part.register_forward_hook(lambda *_, name=name: runs.update([name]))

    def run() -> tuple[Tensor, dict[str, Tensor], set[int]]:
        runs.clear()
        return *gradients(model, batch), set(runs.values())

    loss, expected, times = run()
    assert times == {1}
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # of transformers 5.19
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": reentrant})
    again, actual, times = run()
    assert times == {2}  # every layer is run again on the way back
    torch.testing.assert_close(again, loss)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    getattr(model, f"{kind}_checkpointing_disable")()
    assert run()[2] == {1}


def test_everything_that_is_read_gets_a_gradient(family, make_tiny, mixed):
    tiny = make_tiny(family, **EVERY_HEAD)
    _, found = gradients(tiny.model.train(), tiny.batch(mixed))
    # LLaVA reads a layer of its vision tower before the last norm
    left = {name for name, _ in tiny.model.named_parameters()} - set(found)
    assert all(tiny.family == "llava" and ".post_layernorm." in name for name in left), left
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_training_mode_gives_the_same_vectors(family, make_tiny, mixed, close):
    """No part drops out by default."""
    tiny = make_tiny(family)
    batch = tiny.batch(mixed)
    vectors = thought(tiny.model, batch)
    close(thought(tiny.model.train(), batch), vectors)


# attention


def test_attention_implementations_agree(family, checkpoint, mixed, close):
    tiny, folder = checkpoint(family)
    batch = tiny.batch(mixed)
    vectors = thought(tiny.model, batch)
    assert attention_of(tiny.model) == {"sdpa"}
    model = MMEmbR1Model.from_pretrained(folder, attn_implementation="eager")
    assert attention_of(model) == {"eager"}
    close(thought(model, batch), vectors)
    model.set_attn_implementation("sdpa")
    assert attention_of(model) == {"sdpa"}
    close(thought(model, batch), vectors)
    model.set_attn_implementation({"vlm_config": "eager"})
    assert attention_of(model.vlm) == {"eager"}
    close(thought(model, batch), vectors)


def test_the_backbones_refusal_is_the_models(make_tiny):
    model = make_tiny("qwen3_vl").model
    for name, message in (("flex_attention", "does not support .*flex_attention"), ("linear", "is not supported")):
        with pytest.raises(ValueError, match=message):
            model.set_attn_implementation(name)


@pytest.mark.slow
def test_flex_attention_agrees(make_tiny, mixed, close):
    tiny = make_tiny("llava")
    batch = tiny.batch(mixed)
    vectors = direct(tiny.model, batch)
    tiny.model.set_attn_implementation({"vlm_config": "flex_attention"})
    assert attention_of(tiny.model.vlm) == {"flex_attention"}
    close(direct(tiny.model, batch), vectors)


# dtypes and devices


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes(dtype, checkpoint, mixed, tmp_path):
    tiny, folder = checkpoint("qwen3_vl")
    batch, wanted = tiny.batch(mixed), getattr(torch, dtype)
    vectors = direct(tiny.model, batch)
    for options in ({"dtype": wanted}, {"dtype": dtype}, {"torch_dtype": wanted}):
        model = MMEmbR1Model.from_pretrained(folder, **options)
        assert {weight.dtype for weight in model.parameters()} == {wanted}
        assert model.dtype == model.config.dtype == model.config.vlm_config.dtype == wanted
    with torch.no_grad():
        output = model(**batch)
        thinking = model.embed(**batch, reasoning="always")
    assert output.last_hidden_state.dtype == wanted
    for value in (output.embeddings, output.gate_logits, thinking.embeddings, thinking.gate_prob):
        assert value.dtype == torch.float32
        assert value.isfinite().all()
    assert (direct(model, batch) * vectors).sum(dim=-1).min() > 0.99
    model.save_pretrained(tmp_path)
    assert MMEmbR1Model.from_pretrained(tmp_path, dtype="auto").dtype == wanted


@pytest.mark.parametrize("cast", [lambda model: model.half(), lambda model: model.to(torch.bfloat16)])
def test_a_model_that_is_cast_is_the_one_that_is_loaded_in_that_dtype(family, checkpoint, mixed, cast):
    """Rotary frequencies that were rounded would turn the 2,000th token by other angles (cosines off by 0.16)."""
    tiny, folder = checkpoint(family)
    model = cast(MMEmbR1Model.from_pretrained(folder))
    loaded = MMEmbR1Model.from_pretrained(folder, dtype=model.dtype)
    assert model.dtype in (torch.bfloat16, torch.float16)
    frequencies = {name: value for name, value in model.named_buffers() if name.endswith("inv_freq")}
    assert frequencies and {value.dtype for value in frequencies.values()} == {torch.float32}
    for name, value in loaded.named_buffers():
        if name in frequencies:
            assert torch.equal(frequencies[name], value), name
    batch = tiny.batch(mixed)
    assert torch.equal(direct(model, batch), direct(loaded, batch))


SPLIT = {
    "vlm.model.visual": "disk",
    "vlm.model.language_model.embed_tokens": "cpu",  # tied to the next: the two stay together
    "vlm.lm_head": "cpu",
    "vlm.model.language_model.rotary_emb": "cpu",
    "vlm.model.language_model.layers": "disk",
    "vlm.model.language_model.norm": "cpu",
}


@pytest.mark.parametrize(
    ("place", "memory"),
    [("cpu", None), ({"": "cpu"}, None), (SPLIT, None), ("auto", None), ("auto", 0.5)],
    ids=["cpu", "all on cpu", "split", "auto", "auto, half of the memory"],
)
def test_device_maps(place, memory, checkpoint, mixed, close, tmp_path):
    """Where the weights lie changes no vector, be it a disk."""
    tiny, folder = checkpoint("qwen3_vl")
    if isinstance(place, dict) and "" not in place:
        place = place | dict.fromkeys({name.split(".")[0] for name in head_names(tiny.model)}, "disk")
    limit = {"cpu": int(memory * tiny.model.get_memory_footprint())} if memory else None
    model = MMEmbR1Model.from_pretrained(folder, device_map=place, max_memory=limit, offload_folder=tmp_path)
    places = {weight.device.type for weight in model.parameters()}
    assert places == ({"cpu", "meta"} if memory or len(place) > 4 else {"cpu"})
    batch = tiny.batch(mixed)
    close(thought(model, batch), thought(tiny.model, batch))


# inputs and outputs


def test_signature(qwen):
    parameters = list(inspect.signature(qwen.model.forward).parameters)
    assert parameters[:2] == ["input_ids", "attention_mask"]
    assert qwen.model.main_input_name == "input_ids"


def test_two_calls_agree(tiny, mixed):
    batch = tiny.batch(mixed)
    with torch.no_grad():
        for call in (tiny.model, lambda **values: tiny.model.embed(**values, reasoning="always")):
            one, other = call(**batch), call(**batch)
            assert one.keys() == other.keys()
            for name in one:
                torch.testing.assert_close(one[name], other[name], msg=name)


@torch.no_grad()
def test_a_tuple_on_request(qwen, mixed, close):
    """A tuple holds the same values, in order, without those that are not there."""
    batch = qwen.batch(mixed)
    output = qwen.model(**batch)
    named = [output[name] for name in output]
    for values in (output.to_tuple(), qwen.model(**batch, return_dict=False)):
        assert isinstance(values, tuple)
        for one, other in zip(values, named, strict=True):
            close(one, other)
    assert output[0] is output.embeddings
    assert "rationale_logps" not in output


def test_hidden_states_and_attentions_on_request(make_tiny, mixed):
    tiny = make_tiny("qwen3_vl")
    batch = tiny.batch(mixed)
    plain = tiny.model(**batch)
    assert not {"hidden_states", "attentions", "loss", "logits"} & set(plain)
    tiny.model.set_attn_implementation("eager")  # the others keep no weights
    output = tiny.model(**batch, output_hidden_states=True, output_attentions=True)
    layers, shape = tiny.model.config.get_text_config().num_hidden_layers, plain.last_hidden_state.shape
    assert [states.shape for states in output.hidden_states] == [shape] * (layers + 1)
    torch.testing.assert_close(output.hidden_states[-1], output.last_hidden_state)
    heads = tiny.model.config.get_text_config().num_attention_heads
    assert [weights.shape for weights in output.attentions] == [(shape[0], heads, shape[1], shape[1])] * layers
    states = output.hidden_states[0]
    states.retain_grad()
    output.embeddings[..., 0].sum().backward()
    assert states.grad.any()


def test_ids_without_a_marker(qwen):
    ids = torch.randint(5, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    assert (ids != qwen.model.config.embed_token_id).all()
    for call in (qwen.model, qwen.model.embed):
        with pytest.raises(ValueError, match=r"Row 0 does not hold `<\|embed\|>` .* where an embedding is read"):
            call(input_ids=ids)


def test_arguments_that_forward_does_not_have(qwen):
    batch = qwen.batch(["Lima"])
    states = qwen.model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(TypeError, match="missing .*'input_ids'"):
        qwen.model(inputs_embeds=states)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        qwen.model(**batch, inputs_embeds=states)
    for name, value in (("use_cache", True), ("position_ids", torch.arange(states.shape[1])[None])):
        with pytest.raises((TypeError, ValueError), match=name):
            qwen.model(**batch, **{name: value})


# configuration


def test_configuration_survives_every_way_of_writing_it(tiny, tmp_path):
    config, ignored = tiny.model.config, {"transformers_version", "_name_or_path", "auto_map"}

    def values(one: Any) -> dict[str, Any]:
        return {name: value for name, value in one.to_dict().items() if name not in ignored}

    config.to_json_file(tmp_path / "alone.json")
    config.save_pretrained(tmp_path / "folder")
    copies = [
        MMEmbR1Config.from_dict(config.to_dict()),
        MMEmbR1Config.from_json_file(tmp_path / "alone.json"),
        MMEmbR1Config.from_pretrained(tmp_path / "folder"),
        MMEmbR1Config.from_pretrained(tmp_path, subfolder="folder"),
        AutoConfig.from_pretrained(tmp_path / "folder"),
    ]
    backbone = type(config.vlm_config)
    assert backbone.model_type == config.vlm_config.model_type == config.to_dict()["vlm_config"]["model_type"]
    for copy in copies:
        assert type(copy) is MMEmbR1Config
        assert type(copy.vlm_config) is backbone
        assert values(copy) == values(config)
    changed = MMEmbR1Config.from_pretrained(tmp_path / "folder", gate_threshold=0.25)
    assert values(changed) == values(config) | {"gate_threshold": 0.25}
    alone = backbone.from_dict(config.to_dict()["vlm_config"])
    assert type(alone.get_text_config()) is type(config.get_text_config())
    assert alone.get_text_config().to_dict() == config.get_text_config().to_dict()


def test_the_backbone_reads_the_composites_configuration(family, checkpoint):
    tiny, folder = checkpoint(family)
    for model in (tiny.model, MMEmbR1Model.from_pretrained(folder), AutoModel.from_config(tiny.model.config)):
        assert model.vlm.config is model.config.vlm_config
        assert model.vlm.config.get_text_config() is model.config.get_text_config()


# generation


def test_generation_repeats_itself_with_and_without_a_cache(tiny, mixed):
    batch = tiny.batch(mixed[:3])
    options = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}
    ids = tiny.model.generate(**batch, **options)
    assert ids.shape[1] == batch["input_ids"].shape[1] + 4
    assert torch.equal(tiny.model.generate(**batch, **options), ids)
    assert torch.equal(tiny.model.generate(**batch, **options, use_cache=False), ids)
    assert tiny.model.can_generate()


def test_generation_settings_are_saved_and_used(make_tiny, mixed, tmp_path):
    tiny = make_tiny("qwen3_vl")
    batch = tiny.batch(mixed[:1])
    settings = tiny.model.generation_config
    settings.max_new_tokens = settings.min_new_tokens = 3
    tiny.model.save_pretrained(tmp_path)
    loaded = MMEmbR1Model.from_pretrained(tmp_path)
    assert loaded.generation_config.to_dict() == settings.to_dict()
    for model in (tiny.model, loaded):
        assert model.generate(**batch).shape[1] == batch["input_ids"].shape[1] + 3
    loaded.generation_config.max_new_tokens = loaded.generation_config.min_new_tokens = 2
    assert loaded.generate(**batch).shape[1] == batch["input_ids"].shape[1] + 2


# adapters and compilation


def test_adapters_are_saved_loaded_switched_off_and_merged(make_tiny, mixed, close, tmp_path):
    """By transformers' and PEFT's own methods; what training does with adapters is in training/test_adapters.py."""
    peft = pytest.importorskip("peft")
    tiny, plain = make_tiny("qwen3_vl"), make_tiny("qwen3_vl")
    batch = tiny.batch(mixed)
    vectors = thought(plain.model, batch)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tiny.model.add_adapter(settings)
    adapted = thought(tiny.model, batch)
    assert (adapted - vectors).abs().max() > 1e-2
    tiny.model.save_pretrained(tmp_path)
    assert all(".lora_" in name for name in on_disk(tmp_path))
    loaded = make_tiny("qwen3_vl").model
    loaded.load_adapter(str(tmp_path))
    close(thought(loaded.eval(), batch), adapted)
    loaded.disable_adapters()
    close(thought(loaded, batch), vectors)
    merged = peft.PeftModel.from_pretrained(make_tiny("qwen3_vl").model, tmp_path).merge_and_unload()
    assert merged.state_dict().keys() == plain.model.state_dict().keys()
    close(thought(merged.eval(), batch), adapted)


@pytest.mark.slow
def test_compiled_with_graph_breaks(make_tiny, mixed, close):
    tiny = make_tiny("qwen3_vl")
    compiled = torch.compile(tiny.model, backend="eager")
    for batch in (tiny.batch(["Lima", "What is this?"]), tiny.batch(mixed[1:2])):
        with torch.no_grad():
            close(compiled(**batch).embeddings, tiny.model(**batch).embeddings)
