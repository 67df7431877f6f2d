"""The direct path as a plain folder of sentence-transformers has the vectors of `reasoning="never"`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
import torch
import transformers
from jinja2 import TemplateError
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main
from mmemb_r1.export import direct, export_direct
from mmemb_r1.modeling.backbones_mmemb_r1 import last_norm
from mmemb_r1.tiny import FAMILIES

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(colour, size=(80, 64), mode="RGB"):
    made = Image.new(mode, size, colour)
    ImageDraw.Draw(made).ellipse((8, 8, 40, 50), fill="yellow")
    return made


@pytest.fixture(scope="module")
def model(thinking):
    return thinking(max_image_tokens=8)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "direct"
    model.prompts = {**model.prompts, "query": "Find what is asked for."}
    proof = export_direct(model, folder)
    assert proof.holds and proof.largest < 1e-6 and len(proof.direct) == 10
    return folder


@pytest.fixture(scope="module")
def plain(exported):
    return SentenceTransformer(str(exported), device="cpu")


def chat(*parts, role="user"):
    kinds = {str: "text", Image.Image: "image"}
    return [{"role": role, "content": [{"type": kinds[type(part)], kinds[type(part)]: part} for part in parts]}]


RED, WIDE = picture("red"), picture("navy", (300, 64))
INPUTS = {
    "texts": ["Lima", "What is the capital of Peru?", "?"],
    "pictures": [RED, WIDE],
    "kinds in one call": ["Lima", RED, {"image": WIDE, "text": "What is this?"}, {"text": "Peru"}],
    "text before its picture": [{"text": "What is this?", "image": RED}],
    "two pictures": [{"text": "Which is larger?", "image": [RED, WIDE]}],
    "other modes": [picture("red", mode=mode) for mode in ("RGBA", "LA", "L", "CMYK")],
    "transparent": [picture((255, 0, 0, 90), mode="RGBA"), picture((0, 0), mode="LA")],
    "control strings": ["<|im_end|>", "a <|image_pad|> b <think>", "<|embed|><|embed|>"],
    "chats": [chat("Lima"), chat(RED, "What is this?")],
    "a chat that mixes": [chat("Between", RED, "and", WIDE, "which?")],
    "halves of a control string": [chat("<|im_", "end|> Lima")],
    "a chat of strings": [[{"role": "system", "content": "Find <think> it."}, {"role": "user", "content": "Peru"}]],
    "turns": [[*chat("Peru?"), *chat("Lima", role="assistant"), *chat(RED, "And this?")]],
}  # fmt: skip


OLDER = pytest.mark.xfail(
    Version(transformers.__version__) < Version("5.20"), reason="it shows what lies below transparency", strict=True
)


@pytest.mark.parametrize("name", [pytest.param(name, marks=OLDER if name == "transparent" else ()) for name in INPUTS])
def test_vectors_are_those_of_the_direct_path(name, model, plain):
    ours, theirs = model.encode(INPUTS[name], reasoning="never"), plain.encode(INPUTS[name])
    np.testing.assert_allclose(theirs, ours, atol=1e-6, rtol=0)
    lone = [plain.encode([value])[0] for value in INPUTS[name]]
    np.testing.assert_allclose(lone, ours, atol=1e-6, rtol=0)


def test_the_inputs_are_told_apart(model):
    vectors = np.concatenate([model.encode(some, reasoning="never") for some in INPUTS.values()])
    far = np.abs(vectors[:, None] - vectors[None]).max(axis=-1)
    assert np.median(far) > 0.01


def test_prompts_are_instructions(model, plain):
    for ours, theirs in (
        (model.encode_query(["Peru", RED], reasoning="never"), plain.encode_query(["Peru", RED])),
        (model.encode_document(["Peru"], reasoning="never"), plain.encode_document(["Peru"])),
        (model.encode(["Peru"], prompt="Find it", reasoning="never"), plain.encode(["Peru"], prompt="Find it")),
    ):
        np.testing.assert_allclose(theirs, ours, atol=1e-6, rtol=0)
    assert np.abs(plain.encode_query(["Peru"]) - plain.encode_document(["Peru"])).max() > 1e-3
    assert plain.prompts == model.prompts and plain.similarity_fn_name == model.similarity_fn_name


def test_the_folder_holds_nothing_of_this_package(exported):
    assert not [*exported.rglob("*.py"), *exported.rglob("*.bin")]
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3VLForConditionalGeneration"] and "auto_map" not in config
    kinds = [entry["type"] for entry in json.loads((exported / "modules.json").read_text(encoding="utf-8"))]
    assert kinds == [f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")]


@pytest.mark.slow
def test_it_loads_where_the_package_is_not(exported, plain):
    code = (
        "import json, sys; sys.modules['mmemb_r1'] = None; from sentence_transformers import SentenceTransformer;"
        f"print(json.dumps(SentenceTransformer({str(exported)!r}, device='cpu').encode(['Lima']).tolist()))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose(json.loads(told.splitlines()[-1]), plain.encode(["Lima"]), atol=1e-6)


def test_videos_are_refused(plain):
    frames = np.zeros((4, 3, 32, 32), np.uint8)
    with pytest.raises(ValueError, match="'video' is not supported.*Supported modalities: text, image, message"):
        plain.encode([frames])
    with pytest.raises(TemplateError, match="takes no videos, pass frames as pictures"):
        plain.encode([[{"role": "user", "content": [{"type": "video", "video": frames}]}]])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_the_card_says_how_to_open_transparent_pictures(mode, model, plain, tmp_path):
    card = files("mmemb_r1.export").joinpath("card.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "def on_white" in block)
    names: dict = {}
    exec(code, names)
    made = picture((255, 0, 0, 90), mode="RGBA").convert(mode)
    exif = made.getexif()
    exif[0x0112] = 6  # lies on its side
    made.save(tmp_path / "picture.png", exif=exif)
    ours = model.encode([str(tmp_path / "picture.png")], reasoning="never")
    np.testing.assert_allclose(plain.encode([names["on_white"](tmp_path / "picture.png")]), ours, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("family", "fields", "kept"),
    [
        ("qwen3_vl", {"embed_position": "before", "pooling": "mean"}, 32),
        ("qwen3_vl", {"embed_position": "before", "embed_state": "unnormed"}, 32),
        ("qwen3_vl", {"embedding_dim": 16, "truncate_dim": 8}, 8),
        pytest.param("qwen3_vl", {"embedding_dim": 16, "normalize": False}, 16, marks=pytest.mark.slow),
        pytest.param("qwen2_vl", {"truncate_dim": 8, "pooling": "mean"}, 8, marks=pytest.mark.slow),
        pytest.param("gemma3", {"embed_state": "unnormed"}, 32, marks=pytest.mark.slow),
        *[pytest.param(family, {}, 32, marks=pytest.mark.slow) for family in FAMILIES],
    ],
)
def test_ways_to_read_a_vector(family, fields, kept, thinking, tmp_path):
    model = thinking(family, **fields)
    if "embed_state" in fields:
        weight = next(last_norm(model[0].model.vlm).parameters())
        with torch.no_grad():
            weight.uniform_(0.3, 2, generator=torch.Generator().manual_seed(0))
        before = weight.clone()
    assert export_direct(model, tmp_path / "direct").largest < (5e-6 if family == "internvl" else 1e-6)
    if "embed_state" in fields:
        assert torch.equal(weight, before)
    plain = SentenceTransformer(str(tmp_path / "direct"), device="cpu")
    assert plain.get_embedding_dimension() == kept
    assert np.allclose(np.linalg.norm(plain.encode(["Lima"]), axis=1), 1) == fields.get("normalize", True)


@pytest.mark.slow
def test_a_shortened_model_and_later_modules_are_kept(thinking, tmp_path):
    model = thinking()
    model.append(Dense(8, 4))
    model[0].model.config.truncate_dim = 8
    model.save_pretrained(str(tmp_path / "checkpoint"))
    model = MMEmbR1(str(tmp_path / "checkpoint"), device="cpu")
    assert export_direct(model, tmp_path / "direct").largest < 1e-6
    plain = SentenceTransformer(str(tmp_path / "direct"), device="cpu")
    assert [type(module).__name__ for module in plain] == ["Transformer", "Pooling", "Dense", "Normalize", "Dense"]

    short = thinking()
    short.truncate_dim = 8
    assert export_direct(short, tmp_path / "short").largest < 1e-6
    assert SentenceTransformer(str(tmp_path / "short"), device="cpu").encode(["Lima"]).shape == (1, 8)


def test_weights_keep_their_dtype_and_a_card_its_facts(tiny_checkpoint, tmp_path):
    model = MMEmbR1(str(tiny_checkpoint), device="cpu", model_kwargs={"dtype": "bfloat16"})
    model._model_card_text = "---\nlicense: mit\nlibrary_name: mmemb-r1\n---\n# A model"
    assert export_direct(model, tmp_path / "direct").dtype == "bfloat16"
    assert {weight.dtype for weight in load_file(tmp_path / "direct/model.safetensors").values()} == {torch.bfloat16}
    card = (tmp_path / "direct/README.md").read_text(encoding="utf-8")
    assert "license: mit\n" in card and "library_name: sentence-transformers\n" in card


def test_what_a_plain_folder_cannot_say_is_refused(thinking, tmp_path):
    def refused(model, message):
        with pytest.raises(ValueError, match=message):
            export_direct(model, tmp_path / "refused")
        assert not list(tmp_path.iterdir())

    refused(thinking(pooling="attention"), "pooling='attention' has no counterpart.*allowed: last, mean")
    model = thinking()
    model[0].model.config.vlm_config.sequential_positions = True
    refused(model, "numbers the tokens of pictures like text")
    model = thinking()
    model.append(torch.nn.Identity())
    refused(model, "The module Identity is not sentence-transformers' own")
    model = thinking()
    model[0].model.add_adapter(LoraConfig(target_modules=["q_proj"]))  # as a folder of adapters alone is loaded
    refused(model, "adapters are not merged")
    model = thinking()
    model[0].model = get_peft_model(model[0].model, LoraConfig(target_modules=["q_proj"]))
    refused(model, "adapters are not merged")
    model = thinking()
    model[0].model.hf_quantizer = object()
    refused(model, "weights are quantised")


def test_other_vectors_are_not_written(thinking, tmp_path, monkeypatch):
    model, made = thinking(), direct._plain_processor

    def without_marker(model):
        processor = made(model)
        processor.chat_template = processor.chat_template.replace("mmemb_r1_exported[:]", "mmemb_r1_exported[:-9]")
        return processor

    monkeypatch.setattr(direct, "_plain_processor", without_marker)
    with pytest.raises(ValueError, match="does not give the vectors of this checkpoint.*Nothing is written"):
        export_direct(model, tmp_path / "direct")
    assert not list(tmp_path.iterdir())
    assert not export_direct(model, tmp_path / "direct", force=True).holds
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        export_direct(model, tmp_path / "direct")


def test_the_command(tiny_checkpoint, tmp_path, capsys):
    assert main(["export", "direct", str(tiny_checkpoint), str(tmp_path / "direct"), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert 'compared with reasoning="never": largest difference' in told and "on 10 inputs in float32" in told
    assert SentenceTransformer(str(tmp_path / "direct"), device="cpu").encode(["Lima"]).shape == (1, 32)
    assert main(["export", "direct", str(tiny_checkpoint), str(tmp_path / "direct"), "--device", "cpu"]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
