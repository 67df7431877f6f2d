"""Which recipe a checkpoint is for, and that an embedder of no known recipe is not taken for a chat model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tests.recipes.conftest import NAMES, POOLING

from mmemb_r1.cli import main
from mmemb_r1.recipes import convert, find_recipe, load_recipe
from mmemb_r1.tiny import build_tiny_vlm


@pytest.mark.parametrize("recipe", NAMES)
def test_each_is_recognised_as_itself(recipe, stand_in):
    found = find_recipe(str(stand_in(recipe)))
    assert found is not None and found.name == recipe


def test_a_folder_of_the_hubs_cache(stand_in, tmp_path):
    folder = tmp_path / "models--Qwen--Qwen3-VL-Embedding-2B" / "snapshots" / "9f2f7e71"
    shutil.copytree(stand_in("qwen3-vl-embedding"), folder)
    assert find_recipe(str(folder)).name == "qwen3-vl-embedding"


def test_a_file_that_only_one_embedder_has(stand_in, tmp_path):
    shutil.copytree(stand_in("qwen3-vl-embedding"), tmp_path / "copy")
    (tmp_path / "copy" / "scripts").mkdir()
    (tmp_path / "copy" / "scripts" / "qwen3_vl_embedding.py").touch()
    assert find_recipe(str(tmp_path / "copy")).name == "qwen3-vl-embedding"


@pytest.fixture
def chat_model(tmp_path):
    """A vision-language model that is no embedder."""
    for part in build_tiny_vlm("qwen3_vl"):
        part.save_pretrained(tmp_path / "Qwen3-VL-2B-Instruct")
    return tmp_path / "Qwen3-VL-2B-Instruct"


def test_a_chat_model_has_no_recipe(chat_model):
    assert find_recipe(str(chat_model)) is None
    with pytest.raises(ValueError, match="no known embedder: it has no vectors to keep"):
        convert(str(chat_model))


def test_what_is_no_vision_language_model_is_left_to_others(tmp_path, tiny_checkpoint):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (tmp_path / "modules.json").write_text(json.dumps(POOLING), encoding="utf-8")
    assert find_recipe(str(tmp_path)) is None
    assert find_recipe(str(tiny_checkpoint)) is None


SIGNS = {
    "README.md": ("---\ntags: [sentence-transformers]\n---\n", "its README.md has the tag sentence-transformers"),
    "modules.json": (json.dumps(POOLING), "its modules.json pools states"),
    "sparse_info.json": ("{}", "it has the file sparse_info.json"),
    "config.json": ({"auto_map": {"AutoModel": "m.FooEmbedding"}}, "names code for embedding, m.FooEmbedding"),
}


@pytest.mark.parametrize("name", SIGNS)
def test_an_embedder_of_no_known_recipe_is_refused(name, chat_model):
    content, reason = SIGNS[name]
    file = chat_model / name
    if isinstance(content, dict):
        content = json.dumps(json.loads(file.read_text(encoding="utf-8")) | content)
    file.write_text(content, encoding="utf-8")
    with pytest.raises(
        ValueError, match=f"{reason}.*--recipe with one of embed-rl, .*file of your own; or --recipe none"
    ):
        find_recipe(str(chat_model))
    assert find_recipe(str(chat_model), "none") is None
    assert find_recipe(str(chat_model), "gme-qwen2-vl").name == "gme-qwen2-vl"


def test_a_known_token_in_another_model_is_refused(chat_model):
    _, processor = build_tiny_vlm("qwen3_vl")
    processor.tokenizer.add_tokens(["<disc_emb>"])
    processor.save_pretrained(chat_model)
    with pytest.raises(ValueError, match="its tokenizer has <disc_emb>"):
        find_recipe(str(chat_model))


def test_a_name_is_a_sign(chat_model):
    chat_model = chat_model.rename(chat_model.with_name("my-embedder"))
    with pytest.raises(ValueError, match="my-embedder seems to be a trained embedder .its name says so"):
        find_recipe(str(chat_model))


def test_a_recipe_whose_token_is_not_there(chat_model):
    with pytest.raises(ValueError, match=r"embed-rl needs the token '<emb>' \(read.marker\).*for another checkpoint"):
        convert(str(chat_model), "embed-rl")


def test_a_recipe_for_adapters_needs_adapters(chat_model):
    with pytest.raises(ValueError, match="has no adapter_config.json, and the recipe vlm2vec-v2 says loading: lora"):
        convert(str(chat_model), "vlm2vec-v2")


def test_adapters_of_no_known_recipe(stand_in, tmp_path, chat_model):
    """Also where a config lies beside them; but not beside complete weights."""
    folder = tmp_path / "my-adapters"
    shutil.copytree(stand_in("vlm2vec-v2"), folder)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(chat_model / name, folder)
    with pytest.raises(ValueError, match="my-adapters seems to be a trained embedder .it has an adapter_config.json"):
        find_recipe(str(folder))
    assert convert(str(folder), "vlm2vec-v2").proof.holds
    shutil.copy(chat_model / "model.safetensors", folder)
    with pytest.raises(ValueError, match="holds adapters beside complete weights"):
        find_recipe(str(folder))


def test_a_base_model_is_for_adapters(stand_in, capsys, tmp_path, chat_model):
    with pytest.raises(ValueError, match="--base x is for adapters; .* has none"):
        convert(str(stand_in("ume-r1")), base="x")
    assert main(["init", "--vlm", str(chat_model), "--base", "x", "--output", str(tmp_path / "out")]) == 2
    assert "--base x is for adapters" in capsys.readouterr().err


def test_a_checkpoint_without_language_model_head(stand_in, tmp_path, caplog):
    """As an embedder may be published that was not tied; nothing of it is left to chance."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "Qwen3-VL-Embedding-8B"
    shutil.copytree(stand_in("qwen3-vl-embedding"), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    assert not [name for name in weights if name.startswith("lm_head")]
    bare = {name.removeprefix("model."): weight for name, weight in weights.items()}  # as the base class saves it
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    vlm = convert(str(folder)).model[0].model.vlm
    assert "has no language-model head; it gets the input embeddings" in caplog.text
    rows = len(vlm.get_output_embeddings().weight) - 3  # but for the control tokens
    assert torch.equal(vlm.get_output_embeddings().weight[:rows], vlm.get_input_embeddings().weight[:rows])


def test_adapters_that_do_not_fit_their_base(stand_in, tmp_path):
    folder, base = tmp_path / "VLM2Vec-V2.0", tmp_path / "base"
    shutil.copytree(stand_in("vlm2vec-v2"), folder)
    for part in build_tiny_vlm("qwen2_vl", num_layers=1):
        part.save_pretrained(base)
    with pytest.raises(ValueError, match="The adapters of .* do not fit .*base: 14 weights have no place"):
        convert(str(folder), base=str(base))


def test_weights_that_do_not_fit_are_refused(stand_in, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "gme-Qwen2-VL-2B-Instruct"
    shutil.copytree(stand_in("gme-qwen2-vl"), folder)
    weights = load_file(folder / "model.safetensors")
    norm = next(name for name in weights if name.endswith("layers.0.input_layernorm.weight"))
    save_file({**weights, "latent.weight": weights[norm].clone()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="1 of its weights are not of the model, the first is latent.weight"):
        convert(str(folder))
    del weights[norm]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="1 of its weights are missing"):
        convert(str(folder))


def test_fields_that_would_change_the_vectors_are_refused(stand_in):
    for name, value in {"pooling": "mean", "embed_position": "marker"}.items():
        with pytest.raises(ValueError, match=f"{name}='{value}' would change the vectors"):
            convert(str(stand_in("qwen3-vl-embedding")), **{name: value})


def test_limits_of_a_user_are_kept(stand_in):
    recipe = load_recipe("qwen3-vl-embedding")
    converted = convert(str(stand_in(recipe.name)), recipe, truncate_dim=8, max_text_tokens=5, max_image_tokens=4)
    config = converted.model[0].model.config
    assert converted.proof.holds
    assert (config.truncate_dim, config.max_text_tokens, config.max_image_tokens) == (8, 5, 4)
    assert config.matryoshka_dims == []  # the recipe's are of larger ones: hidden size 32
    assert converted.model.encode("Lima").shape == (8,)


DAMAGED = {  # file -> what it holds; `None`: it is removed
    "weights cut off": {"model.safetensors": "junk"},
    "pointer": {"model.safetensors": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"},
    "index": {"model.safetensors": None, "model.safetensors.index.json": "{"},
    "config": {"config.json": "[]"},
    "tokenizer": {"tokenizer.json": "{}"},
    "part of a tokenizer": {"tokenizer.json": '{"version": "1.0", "added_tokens": [], "model": {"type": "none"}}'},
    "no tokenizer": {"tokenizer.json": None, "tokenizer_config.json": None},
    "adapters": {"model.safetensors": None, "adapter_config.json": "[]"},
    "adapters cut off": {"model.safetensors": None, "adapter_config.json": "{"},
    "pickle": {"model.safetensors": None, "pytorch_model.bin": "junk"},
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_files_are_told_with_the_checkpoint(what, stand_in, tmp_path, capsys):
    folder = tmp_path / "Qwen3-VL-Embedding-2B"
    shutil.copytree(stand_in("qwen3-vl-embedding"), folder)
    for name, content in DAMAGED[what].items():
        (folder / name).unlink() if content is None else (folder / name).write_text(content, encoding="utf-8")
    for recipe in ([], ["--recipe", "none"]):
        assert main(["init", "--vlm", str(folder), "--output", str(tmp_path / "model"), *recipe]) == 2
        assert str(folder) in capsys.readouterr().err.rpartition("error: ")[2]
        assert not (tmp_path / "model").exists()


def test_adapters_that_are_damaged(stand_in, tmp_path):
    folder = tmp_path / "VLM2Vec-V2.0"
    shutil.copytree(stand_in("vlm2vec-v2"), folder)
    (folder / "adapter_model.safetensors").write_text("junk", encoding="utf-8")
    with pytest.raises(ValueError, match=r"VLM2Vec-V2.0 can't be loaded: .* damaged, .*Download it again"):
        convert(str(folder), "vlm2vec-v2")


def test_a_card_in_another_encoding(chat_model):
    (chat_model / "README.md").write_bytes("---\ntags: [sentence-similarity]\n---\ncaf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match="its README.md has the tag sentence-similarity"):
        find_recipe(str(chat_model))
