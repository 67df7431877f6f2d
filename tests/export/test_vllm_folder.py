"""The folder for vLLM is a plain model of its family that gives our states and rationales. vLLM itself: tests/vllm."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main
from mmemb_r1.engines.boundaries import BOUNDARY
from mmemb_r1.export import export_vllm, vllm_folder
from mmemb_r1.fingerprint import checkpoint_fingerprint
from mmemb_r1.modeling.backbones_mmemb_r1 import model_inputs
from mmemb_r1.tiny import build_tiny_vlm

pytestmark = pytest.mark.usefixtures("one_thread")

BUDGET = 6
PADDING = 40  # rows of the vocabulary without a token
CHATS = [
    [{"role": "user", "content": [{"type": "text", "text": "What is the capital of Peru?"}]}],
    [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (300, 160), "navy")}]}],
    [
        {"role": "system", "content": [{"type": "text", "text": "Find it."}]},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": Image.new("RGB", (64, 64), "red")},
                {"type": "text", "text": "this flag"},
            ],
        },
    ],
]


@pytest.fixture(scope="module")
def padded(thinking):
    """`padded(family, **config)`: a model that thinks, over a vocabulary that has more rows than tokens."""

    def make(family, **config):
        vlm, processor = build_tiny_vlm(family)
        rows = len(processor.tokenizer) + 3 + PADDING
        vlm.resize_token_embeddings(rows, mean_resizing=False)
        with torch.no_grad():
            for parameter in vlm.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(8)
            vlm.get_output_embeddings().weight[-PADDING:] *= 4  # they would win if they were allowed to
        model = MMEmbR1.from_vlm(vlm, processor, max_reasoning_tokens=BUDGET, **config)
        assert len(model.tokenizer) == rows - PADDING
        return model

    return make


def render(processor, chat):
    return processor.apply_chat_template(
        [chat], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )


@pytest.mark.parametrize(
    ("family", "limit"),
    [
        ("qwen3_vl", 2),
        ("internvl", None),
        *[pytest.param(f, None, marks=pytest.mark.slow) for f in ("gemma3", "llava")],
    ],
)
@torch.inference_mode()
def test_a_plain_model_of_its_family_gives_states_and_rationales(family, limit, padded, tmp_path):
    model = padded(family, max_image_tokens=limit)
    inner, config = model[0].model, model[0].model.config
    facts = export_vllm(model, tmp_path / "vllm")
    vlm = AutoModelForImageTextToText.from_pretrained(tmp_path / "vllm")
    processor = AutoProcessor.from_pretrained(tmp_path / "vllm")
    assert type(vlm) is type(inner.vlm) and type(processor) is type(model.processor)
    if limit is not None:  # which is kept by the processor's own settings
        sizes = [render(some, CHATS[1])["input_ids"].shape[1] for some in (model.processor, processor)]
        assert sizes[1] < sizes[0]
    written = set()
    for chat in CHATS:
        ours, theirs = model_inputs(model.preprocess([chat])), dict(render(processor, chat))
        assert theirs["input_ids"].tolist() == ours["input_ids"].tolist()
        state = vlm.base_model(**theirs).last_hidden_state[:, -1]
        torch.testing.assert_close(state, inner(**ours).last_hidden_state[:, -1], atol=1e-6, rtol=1e-6)

        opening = torch.tensor([config.opening_ids])
        begun = {name: theirs[name] for name in theirs if name not in ("mm_token_type_ids", "token_type_ids")}
        begun["input_ids"] = torch.cat([theirs["input_ids"], opening], dim=1)
        begun["attention_mask"] = torch.ones_like(begun["input_ids"])
        for name in theirs.keys() - begun.keys():
            begun[name] = torch.nn.functional.pad(theirs[name], (0, opening.shape[1]))
        whole = vlm.generate(
            **begun,
            max_new_tokens=BUDGET,
            do_sample=False,
            eos_token_id=config.end_think_token_id,
            suppress_tokens=config.suppressed_token_ids,
        )
        (ids,) = inner.embed(**ours, reasoning="always").rationale_ids.tolist()
        new = whole[0, begun["input_ids"].shape[1] :].tolist()
        assert [id_ for id_ in new if id_ != config.end_think_token_id] == [id_ for id_ in ids if id_ >= 0]
        written.add(tuple(new))
    assert len(written) == len(CHATS)
    with torch.no_grad():
        probe = facts["probe"]
        state = vlm.base_model(input_ids=torch.tensor([probe["token_ids"]])).last_hidden_state[0, -1]
    torch.testing.assert_close(state, torch.tensor(probe["state"]), atol=1e-6, rtol=1e-6)


def test_the_vocabulary_is_cut_to_its_tokens(padded, tmp_path):
    model = padded("qwen3_vl")
    vlm, count = model[0].model.vlm, len(model.tokenizer)
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    export_vllm(model, tmp_path / "vllm")
    tensors = load_file(tmp_path / "vllm/model.safetensors")
    sizes = {name: tensor.shape[0] for name, tensor in tensors.items() if "embed_tokens" in name or "lm_head" in name}
    assert list(sizes.values()) == [count]  # tied
    config = json.loads((tmp_path / "vllm/config.json").read_text(encoding="utf-8"))
    assert config["text_config"]["vocab_size"] == count and config["architectures"] == [type(vlm).__name__]
    # what is in memory stays as it was
    assert vlm.config.get_text_config().vocab_size == count + PADDING
    after = vlm.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()) and after.keys() == before.keys()


def test_an_untied_head_is_cut_as_well(padded, tmp_path):
    model = padded("qwen3_vl")
    vlm, count = model[0].model.vlm, len(model.tokenizer)
    vlm.set_output_embeddings(torch.nn.Linear(32, count + PADDING, bias=False))
    vlm.config.tie_word_embeddings = vlm.config.text_config.tie_word_embeddings = False
    export_vllm(model, tmp_path / "vllm")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "vllm")
    assert torch.equal(loaded.get_output_embeddings().weight, vlm.get_output_embeddings().weight[:count])
    assert torch.equal(loaded.get_input_embeddings().weight, vlm.get_input_embeddings().weight[:count])


def test_a_vocabulary_that_rationales_may_hold_whole_stays_whole(padded, tmp_path):
    model = padded("qwen3_vl")
    model[0].model.config.rationale_vocab_size = None
    export_vllm(model, tmp_path / "vllm")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "vllm")
    assert loaded.get_input_embeddings().weight.shape[0] == len(model.tokenizer) + PADDING


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_the_template_is_ours_and_goes_on_after_the_marker(family, thinking, tmp_path):
    model = thinking(family)
    export_vllm(model, tmp_path / "vllm")
    processor = AutoProcessor.from_pretrained(tmp_path / "vllm")
    for chat in CHATS:
        texts = [
            some.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **variables)
            for some, variables in (
                (model.processor, {}),
                (processor, {}),
                (processor, {"mmemb_r1_then": "<think> It is"}),
                (model.processor, {"embed": False}),
                (processor, {"embed": False}),
            )
        ]
        assert texts[0].endswith("<|embed|>") and texts[1] == texts[0]
        assert texts[2] == texts[0] + "<think> It is"
        assert texts[4] == texts[3] != texts[0]


def test_prompts_can_be_asked_for_without_the_marker_where_states_are_read_before_it(thinking, tmp_path):
    model = thinking(embed_position="before")
    export_vllm(model, tmp_path / "vllm")
    processor = AutoProcessor.from_pretrained(tmp_path / "vllm")
    for chat in CHATS:
        whole = model.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for variables, text in (
            ({}, whole),
            ({"mmemb_r1_cut": True}, whole.removesuffix("<|embed|>")),
            ({"mmemb_r1_cut": False, "mmemb_r1_then": "<think>"}, whole + "<think>"),
        ):
            assert processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **variables) == text


def test_texts_are_cut_where_a_client_says_so(thinking, tmp_path):
    model = thinking()
    export_vllm(model, tmp_path / "vllm")
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "vllm").tokenizer
    assert len(tokenizer(BOUNDARY.join("capital"), add_special_tokens=False)["input_ids"]) == len("capital")
    for text in ("What is the capital of Peru?", "<think> It is </think><|embed|>"):
        assert tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"]


def test_requests_inherit_no_settings_of_sampling(thinking, tmp_path):
    model = thinking()
    eos = model.tokenizer.eos_token_id
    model[0].model.vlm.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_k=20, repetition_penalty=1.05, eos_token_id=eos
    )
    export_vllm(model, tmp_path / "vllm")
    kept = json.loads((tmp_path / "vllm/generation_config.json").read_text(encoding="utf-8"))
    kept.pop("transformers_version")
    assert {name for name, value in kept.items() if value is not None} <= {"eos_token_id", "_from_model_config"}
    assert kept["eos_token_id"] == eos


def test_the_readme_names_the_model_and_starts_it(tiny_checkpoint, tmp_path):
    model = MMEmbR1(str(tiny_checkpoint), device="cpu", model_kwargs={"dtype": "bfloat16"})
    model._model_card_text = "---\nlicense: mit\nlibrary_name: mmemb-r1\n---\n# A model"
    facts = export_vllm(model, tmp_path / "vllm")
    text = (tmp_path / "vllm/README.md").read_text(encoding="utf-8")
    assert "license: mit\n" in text and "Its licence: mit." in text
    assert f"`{facts['fingerprint']}`" in text and facts["fingerprint"] == checkpoint_fingerprint(model[0])
    lines = [line for line in text.splitlines() if line.startswith("vllm serve DIR")]
    assert [f"--served-model-name {tiny_checkpoint.name} " in line for line in lines] == [True, True]
    assert [" --runner pooling --convert embed " in line for line in lines] == [True, False]
    weights = load_file(tmp_path / "vllm/model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert not [*(tmp_path / "vllm").rglob("*.py"), *(tmp_path / "vllm").rglob("*.bin")]


def test_what_vllm_cannot_run_is_refused(thinking, tmp_path):
    def refused(model, message):
        with pytest.raises(ValueError, match=message):
            export_vllm(model, tmp_path / "refused")
        assert not list(tmp_path.iterdir())

    refused(thinking(pooling="mean"), "pooling='mean' needs the states of all tokens")
    refused(thinking(pooling="attention"), "pooling='attention' needs the states of all tokens")
    model = thinking()
    model[0].model.config.vlm_config.sequential_positions = True
    refused(model, "numbers the tokens of pictures like text")
    model = thinking()
    model.append(torch.nn.Identity())
    refused(model, "a module Identity after the adaptive one")
    model = thinking()
    model[0].model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    refused(model, "adapters are not merged")
    model = thinking()
    model[0].model.hf_quantizer = object()
    refused(model, "weights are quantised")
    model = thinking()
    model.tokenizer.add_tokens(["<|later|>"])
    refused(model, r"ids up to \d+, and rationale_vocab_size=\d+ lets rationales hold those below")


def test_half_an_export_is_none(thinking, tmp_path, monkeypatch):
    def fails(*args):
        raise OSError("the disk is gone")

    monkeypatch.setattr(vllm_folder, "save_served", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        export_vllm(thinking(), tmp_path / "vllm")
    assert not list(tmp_path.iterdir())
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm/notes.txt").touch()
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        export_vllm(thinking(), tmp_path / "vllm")


def test_the_command(tiny_checkpoint, tmp_path, capsys, new_modes):
    command = ["export", "vllm", str(tiny_checkpoint), str(tmp_path / "vllm"), "--device", "cpu", "--name", "flags"]
    assert main(command) == 0
    told = capsys.readouterr().out
    facts = json.loads((tmp_path / "vllm/mmemb_r1/export.json").read_text(encoding="utf-8"))
    assert f"fingerprint {facts['fingerprint']}" in told and "README.md says how vLLM serves it" in told
    assert "--served-model-name flags" in (tmp_path / "vllm/README.md").read_text(encoding="utf-8")
    new_modes(tmp_path / "vllm")
    assert main(command) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
