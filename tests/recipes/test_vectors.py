"""Converted stand-ins of every embedder give the vectors that its published code gives."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tests.recipes.conftest import NAMES
from tests.recipes.written import (
    NUMBERED_LIKE_TEXT,
    PROMPTS,
    direct_vector,
    loaded,
    reasoned_by_generate,
    video_vector,
)
from tokenizers.processors import TemplateProcessing

from mmemb_r1 import MMEmbR1
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import truncate_text
from mmemb_r1.recipes import convert, load_recipe
from mmemb_r1.thinker import Thought

pytestmark = pytest.mark.usefixtures("one_thread")
LONG = "What is the capital of Peru? " * 12


def pictures(*names):
    sizes = {"red": (224, 224), "blue": (160, 224), "tan": (448, 192)}
    made = []
    for name in names:
        picture = Image.new("RGB", sizes[name], name)
        picture.paste("white", (32, 32, 96, 96))
        made.append(picture)
    return made


INPUTS = [
    {"text": "Lima"},
    {"text": LONG},
    {"image": pictures("red")},
    {"image": pictures("tan"), "text": "What is this?"},
    {"image": pictures("blue", "red"), "text": "Which is larger?"},
    {"text": "Peru", "instruction": "Find the capital"},
    {"text": "Peru", "instruction": "Find the capital。"},
    {"image": pictures("blue"), "text": "at night", "instruction": "Find a picture like this"},
    {"image": pictures("red"), "instruction": "Find its twin!"},
]
EVERY_LOADER = '''
def vectors_of(folder, inputs):
    """Loader -> vectors of the inputs."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoProcessor, pipeline

    def messages(value):
        system = [{"role": "system", "content": [{"type": "text", "text": value.get("instruction")}]}]
        parts = [{"type": "image", "image": picture} for picture in value.get("image", [])]
        parts += [{"type": "text", "text": value["text"]}] if "text" in value else []
        return (system if "instruction" in value else []) + [{"role": "user", "content": parts}]

    vectors = {}
    sentence = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    vectors["SentenceTransformer"] = sentence.encode(inputs, reasoning="never")
    extractor = pipeline("feature-extraction", folder, trust_remote_code=True, device="cpu")
    vectors["pipeline"] = np.array([extractor(value, reasoning="never") for value in inputs])
    auto = AutoModel.from_pretrained(folder, trust_remote_code=True)
    batch = AutoProcessor.from_pretrained(folder, trust_remote_code=False).apply_chat_template(
        [messages(value) for value in inputs], tokenize=True, return_dict=True, return_tensors="pt",
        add_generation_prompt=True, processor_kwargs={"padding": True},
    )
    with torch.no_grad():
        vectors["AutoModel"] = auto.embed(**batch, reasoning="never").embeddings.numpy()
    return vectors
'''


@pytest.fixture(scope="module")
def saved(stand_in, tmp_path_factory):
    """`saved(recipe)`: the folder of the converted stand-in. Not to be changed."""
    made = {}

    def folder_of(recipe):
        if recipe not in made:
            converted = convert(str(stand_in(recipe)))
            assert converted.recipe.name == recipe
            made[recipe] = tmp_path_factory.mktemp("converted") / recipe
            converted.save(made[recipe])
        return made[recipe]

    return folder_of


def expected(recipe, folder, inputs):
    vlm, processor = loaded(recipe, folder)
    return np.stack([direct_vector(recipe, vlm, processor, value).numpy() for value in inputs])


def cut(processor, inputs, most):
    """Cut texts as the config's `max_text_tokens` says."""
    return [
        {**value, "text": truncate_text(processor.tokenizer, value["text"], most)} if "text" in value else value
        for value in inputs
    ]


@pytest.mark.parametrize(
    "recipe",
    [name if name == "qwen3-vl-embedding" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_direct_vectors_are_those_of_the_published_code(recipe, stand_in, saved):
    model = MMEmbR1(str(saved(recipe)), device="cpu")
    wanted = expected(recipe, stand_in(recipe), INPUTS)
    assert np.abs(wanted[:, None] - wanted[None]).max(axis=-1)[~np.eye(len(wanted), dtype=bool)].min() > 1e-3
    np.testing.assert_allclose(model.encode(INPUTS, reasoning="never"), wanted, atol=1e-5, rtol=0)

    model.max_seq_length = 7
    short = expected(recipe, stand_in(recipe), cut(model.processor, INPUTS, 7))
    assert np.abs(short[1] - wanted[1]).max() > 1e-3
    np.testing.assert_allclose(model.encode(INPUTS, reasoning="never"), short, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", NAMES)
def test_videos(recipe, stand_in, saved):
    frames = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)
    value = {"video": frames, "text": "What happens?"}
    vlm, processor = loaded(recipe, stand_in(recipe))
    (part,) = (part for part in to_conversations([value])[0][0]["content"] if part["type"] == "video")
    wanted = video_vector(recipe, vlm, processor, part["video"], part["metadata"], value["text"]).numpy()
    vector = MMEmbR1(str(saved(recipe)), device="cpu").encode(value, reasoning="never")
    np.testing.assert_allclose(vector, wanted, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", NAMES)
def test_all_loaders_give_them(recipe, stand_in, saved):
    wanted = expected(recipe, stand_in(recipe), INPUTS)
    scope = {"np": np, "torch": torch}
    exec(compile(EVERY_LOADER, "loaders", "exec"), scope)
    vectors = scope["vectors_of"](str(saved(recipe)), INPUTS)
    assert len(vectors) == 3
    for name, rows in vectors.items():
        np.testing.assert_allclose(rows, wanted, atol=1e-5, rtol=0, err_msg=name)


@pytest.fixture(scope="module")
def ending(stand_in, tmp_path_factory):
    """A UME-R1 with an output layer of its own, as the 7B has, that ends its rationale about the first input soon."""
    folder = tmp_path_factory.mktemp("ending") / "UME-R1-7B"
    vlm, processor = loaded("ume-r1", stand_in("ume-r1"))
    _, written = reasoned_by_generate(vlm, processor, INPUTS[0], [], 4)
    vlm.lm_head.weight = torch.nn.Parameter(vlm.lm_head.weight.detach().clone())
    vlm.config.tie_word_embeddings = vlm.config.text_config.tie_word_embeddings = False
    with torch.no_grad():
        end = processor.tokenizer.convert_tokens_to_ids("<gen_emb>")
        vlm.lm_head.weight[end] = 1.1 * vlm.lm_head.weight[written[2]]
    for part in (vlm, processor):
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("most", [5, pytest.param(24, marks=pytest.mark.slow)])
def test_ume_r1_thinks_as_generate_does(most, ending, tmp_path):
    """Text, both vectors and greedy tokens, of rationales that end by themselves and of others that are cut."""
    folder = ending
    convert(str(folder)).save(tmp_path / "model")
    model = MMEmbR1(str(tmp_path / "model"), device="cpu")
    config = model[0].model.config
    assert (config.spaces, config.reasoning, config.document_reasoning) == (2, "never", "never")
    vlm, processor = loaded("ume-r1", folder)
    inputs = INPUTS[:4]
    outputs = model.encode(inputs, reasoning="always", max_reasoning_tokens=most, output_value=None)
    lengths = []
    for output, value in zip(outputs, inputs, strict=True):
        vector, written = reasoned_by_generate(vlm, processor, value, config.suppressed_token_ids, most)
        got = [int(token) for token in output["rationale_ids"] if token >= 0]
        end = config.end_think_token_id
        assert (got[: got.index(end)] if end in got else got) == written
        lengths.append(len(written))
        np.testing.assert_allclose(output["sentence_embedding"].float().numpy(), vector.numpy(), atol=1e-5, rtol=0)
        direct = direct_vector("ume-r1", vlm, processor, value).numpy()
        np.testing.assert_allclose(model.encode(value), direct, atol=1e-5, rtol=0)
        assert np.abs(direct - vector.numpy()).max() > 1e-2
    assert min(lengths) < most == max(lengths)


PRE_NORM = """
source: a recipe of a user's own
recognise: [{model_type: qwen3_vl, names: ["eager*"]}]
prompt: {ending: "<|im_end|>\\n<|im_start|>assistant\\n"}
read: {position: before, state: STATE}
"""


@pytest.mark.parametrize("state", [pytest.param("normed", marks=pytest.mark.slow), "unnormed"])
def test_states_before_and_after_the_final_norm(state, stand_in, tmp_path):
    """By a recipe file: the last of a Qwen3-VL's `hidden_states` was the state before the norm in transformers 4."""
    file = tmp_path / "eager.yaml"
    file.write_text(PRE_NORM.replace("STATE", state), encoding="utf-8")
    folder = stand_in("qwen3-vl-embedding")
    converted = convert(str(folder), file)
    converted.save(tmp_path / "model")
    vlm, processor = loaded("qwen3-vl-embedding", folder)
    batch = processor(text=["<|im_start|>user\nLima<|im_end|>\n<|im_start|>assistant\n"], return_tensors="pt")
    if state == "unnormed":
        vlm.model.language_model.norm = torch.nn.Identity()
    with torch.no_grad():
        wanted = vlm.model(**batch).last_hidden_state[0, -1]
    vector = MMEmbR1(str(tmp_path / "model"), device="cpu").encode("Lima", reasoning="never")
    np.testing.assert_allclose(vector, torch.nn.functional.normalize(wanted, dim=0).numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("recipe", ["qwen3-vl-embedding", pytest.param("embed-rl", marks=pytest.mark.slow)])
def test_a_tokenizer_that_appends_a_token(recipe, stand_in, tmp_path, caplog):
    """Where the last token is read, that is the one that the tokenizer appends; at a marker it does not matter."""
    folder = tmp_path / NAMES[recipe]
    shutil.copytree(stand_in(recipe), folder)
    vlm, processor = loaded(recipe, folder)
    tokenizer = processor.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", tokenizer.pad_token_id)]
    )
    tokenizer.save_pretrained(folder)
    if recipe == "embed-rl":
        _, processor = loaded(recipe, stand_in(recipe))
    wanted = np.stack([direct_vector(recipe, vlm, processor, value).numpy() for value in INPUTS[:4]])
    convert(str(folder)).save(tmp_path / "model")
    assert "The tokenizer puts ['<|endoftext|>'] after every text" in caplog.text
    model = MMEmbR1(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(model.encode(INPUTS[:4], reasoning="never"), wanted, atol=1e-5, rtol=0)


DIRECT = [name for name in NAMES if name not in ("ume-r1", "rime", "qwen3-vl-embedding")]


@pytest.mark.parametrize(
    "recipe", ["qwen3-vl-embedding", *(pytest.param(name, marks=pytest.mark.slow) for name in DIRECT)]
)
def test_reasoned_vectors_of_a_direct_embedder_are_read_in_the_same_way(recipe, saved):
    """After `</think>` and the turn's end, at a second marker or before it: one more state of the same kind."""
    model = MMEmbR1(str(saved(recipe)), device="cpu")
    config, read = model[0].model.config, load_recipe(recipe).read
    values = [INPUTS[0], INPUTS[3]]
    outputs = model.encode(values, reasoning="always", max_reasoning_tokens=3, output_value=None)
    turn = "" if recipe == "vlm2vec-v2" else "<|im_end|>\n<|im_start|>assistant\n"
    closing = model.tokenizer(f"</think>{turn}{read.marker if read.position == 'marker' else ''}")["input_ids"]
    for output, value in zip(outputs, values, strict=True):
        written = [int(token) for token in output["rationale_ids"] if token >= 0]
        if config.end_think_token_id in written:
            written = written[: written.index(config.end_think_token_id)]
        assert len(written) == int(output["num_reasoning_tokens"])
        images = value.get("image", [])
        prompt = PROMPTS[recipe](value["text"], len(images), None) + ("<|embed|>" if read.position == "before" else "")
        batch = model.processor(text=[prompt + "<think>"], images=images or None, return_tensors="pt")
        tail = torch.tensor([[*written, *closing]])
        longer = {
            "input_ids": tail,
            "attention_mask": torch.ones_like(tail),
            "mm_token_type_ids": torch.zeros_like(tail),
        }
        batch = {name: torch.cat([row, longer[name]], dim=1) if name in longer else row for name, row in batch.items()}
        if recipe in NUMBERED_LIKE_TEXT:
            batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).expand(3, 1, -1)
        with torch.no_grad():
            state = model[0].model.vlm.base_model(**batch).last_hidden_state[0, -1]
        wanted = torch.nn.functional.normalize(state, dim=0).numpy()
        np.testing.assert_allclose(output["sentence_embedding"].float().numpy(), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("recipe", "form"), [("qwen3-vl-embedding", "text"), ("gme-qwen2-vl", "text"), ("ume-r1", "tokens")]
)
def test_a_thinkers_rationale_is_text_where_the_embedder_never_learnt_to_think(recipe, form, stand_in):
    """As text, the vector is what the published code gives for the text with the rationale after it."""
    said = {"text": "What is this?\nIt is red, so it is Peru.", "image": pictures("red"), "instruction": "Find it."}
    model = convert(str(stand_in(recipe)), recipe).model
    assert model[0].model.config.thinker_form == form
    model.thinker = Says("It is red, so it is Peru.")
    assert model.thinking.form == form
    model.set_thinker(model.thinker, "text")
    vector = model.encode({**said, "text": "What is this?"}, reasoning="always")
    expected = direct_vector(recipe, *loaded(recipe, stand_in(recipe)), said)
    np.testing.assert_allclose(vector, expected.numpy(), atol=1e-4)


class Says:
    def __init__(self, text):
        self.definition = {"kind": "says", "text": text}

    def think(self, inputs, max_tokens):
        return ((number, Thought(self.definition["text"])) for number, _ in enumerate(inputs))
