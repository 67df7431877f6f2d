"""Rationales from a model on this machine: drawn alike in any company, and an input that fails fails alone."""

from __future__ import annotations

import json
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training.rationales import transformers_worker
from mmemb_r1.training.rationales.prompting import load_style, request_conversation
from mmemb_r1.training.rationales.sampling import Continuation, draw_continuations
from mmemb_r1.training.rationales.transformers_worker import TransformersWorker
from mmemb_r1.training.rationales.worker import Failure, Rationale, RationaleRequest, WorkerError

pytestmark = pytest.mark.usefixtures("one_thread")


def save(folder: Path, family: str = "qwen3_vl", **changes: Any) -> Path:
    vlm, processor = build_tiny_vlm(family)
    with torch.no_grad():
        for parameter in vlm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)  # nearly uniform distributions would hide what they depend on
    for name, value in changes.items():
        setattr(vlm.generation_config, name, value)
    vlm.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def styles(tmp_path_factory) -> dict[str, str]:
    """Short ones: the tiny tokenizer makes hundreds of tokens of the real ones."""
    folder = tmp_path_factory.mktemp("styles")
    for kind in ("answer", "reasoning"):
        (folder / f"{kind}.txt").write_text(f"# rationale: {kind}\nDescribe it.", encoding="utf-8")
    return {kind: str(folder / f"{kind}.txt") for kind in ("answer", "reasoning")}


@pytest.fixture
def make(qwen, styles):
    """`make(**keys)`: a worker of the tiny model."""

    def make_worker(**keys: Any) -> TransformersWorker:
        defaults = {"name": "tiny", "model": str(qwen), "style": styles["answer"], "max_tokens": 8, "device": "cpu"}
        return TransformersWorker(**(defaults | keys))

    return make_worker


def request(seed: int, seeds: tuple[int, ...] = (1, 2, 3), **parts: Any) -> RationaleRequest:
    return RationaleRequest({"text": f"What is number {seed}?", **parts}, "query", seeds)


@pytest.fixture
def requests(squares) -> list[RationaleRequest]:
    return [
        request(0, image=squares[:2]),
        request(1, seeds=(5,)),
        request(2, image=squares[2], instruction="Name the color."),
        request(3, image=squares[0]),
    ]


def test_rationales_are_drawn_per_seed(make, requests):
    drawn = make().draw(requests)
    assert [len(answers) for answers in drawn] == [3, 1, 3, 3]
    for answers in drawn:
        for answer in answers:
            assert isinstance(answer, Rationale)
            assert answer.num_tokens <= 8
            assert answer.finish_reason == ("length" if answer.num_tokens == 8 else "stop")
        assert len({answer.text for answer in answers}) == len(answers)


def test_company_does_not_matter(make, requests):
    """The same input and seed give the same rationale, alone or in a batch, in any order and number."""
    expected = make().draw(requests)
    for batch_size in (1, 2, 3):
        assert make(batch_size=batch_size).draw(requests) == expected
    assert [make().draw([one])[0] for one in requests] == expected
    assert make().draw(requests[::-1]) == expected[::-1]
    one_each = [RationaleRequest(requests[0].input, "query", (seed,)) for seed in requests[0].seeds]
    assert [answers[0] for answers in make().draw(one_each)] == expected[0]


def test_sides_and_seeds(make, requests):
    target = RationaleRequest(requests[0].input, "target", requests[0].seeds)
    assert make().draw([target]) == make().draw(requests[:1])
    other = RationaleRequest(requests[0].input, "query", (11, 12, 13))
    assert not {answer.text for answer in make().draw([other])[0]} & {
        answer.text for answer in make().draw(requests[:1])[0]
    }


def test_the_prompt_is_read_once(make, requests, monkeypatch):
    """Each picture goes through the vision model once, however many rationales there are."""
    worker = make()
    vlm = worker._loaded[0]
    patches, rows = [], []
    vision, forward = type(vlm.model.visual).forward, type(vlm).forward
    monkeypatch.setattr(
        type(vlm.model.visual),
        "forward",
        lambda self, pixels, *args, **kw: patches.append(len(pixels)) or vision(self, pixels, *args, **kw),
    )
    monkeypatch.setattr(
        type(vlm), "forward", lambda self, **kw: rows.append(kw["input_ids"].shape) or forward(self, **kw)
    )
    worker.draw(requests)
    pictures = render(worker._processor, [request_conversation(worker._style, one) for one in requests])
    assert patches == [len(pictures["pixel_values"])]
    assert rows[0][0] == len(requests) and all(shape[1] == 1 for shape in rows[1:])
    assert rows[1][0] == 10


def test_greedy_is_what_transformers_generates(make, requests):
    worker = make(temperature=0, max_tokens=12)
    vlm, processor = worker._loaded
    for one, answers in zip(requests, worker.draw(requests), strict=True):
        batch = render(processor, [request_conversation(worker._style, one)])
        ids = vlm.generate(**batch, do_sample=False, max_new_tokens=12)[0, batch["input_ids"].shape[1] :]
        said = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert {answer.text for answer in answers} == {said}


def test_what_does_not_fit_into_memory_together_is_drawn_alone(make, requests, monkeypatch):
    expected = make().draw(requests[:3])
    real = transformers_worker.draw_continuations

    def cramped(vlm, prefix, seeds, **options):
        if len(seeds) > len(requests[0].seeds) or seeds[0] == requests[1].seeds[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(vlm, prefix, seeds, **options)

    monkeypatch.setattr(transformers_worker, "draw_continuations", cramped)
    drawn = make(batch_size=3).draw(requests[:3])
    assert [drawn[0], drawn[2]] == [expected[0], expected[2]]
    assert drawn[1] and all("does not fit into the GPU's memory" in failure.reason for failure in drawn[1])


def test_an_unreadable_input_fails_alone(make, requests, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    bad = [request(7, image=str(broken)), request(8, image=str(tmp_path / "none.png")), request(9, video=b"no video")]
    mixed = [bad[0], requests[0], bad[1], requests[1], bad[2]]
    drawn = make(batch_size=3).draw(mixed)
    assert [drawn[1], drawn[3]] == make().draw(requests[:2])
    for place, reason in (
        (0, "its image '.*broken.png' can't be read"),
        (2, "there is no image file .*none.png"),
        (4, "video"),
    ):
        assert len(drawn[place]) == 3
        for answer in drawn[place]:
            assert isinstance(answer, Failure)
            assert re.search(reason, answer.reason)
    assert [len(answers) for answers in make().draw(bad)] == [3, 3, 3]


def test_an_input_that_the_model_does_not_take_fails_alone(make, requests, tmp_path, squares):
    worker = make(model=str(save(tmp_path, "llava")))
    drawn = worker.draw([request(0), request(1, video=squares), request(2, image=squares[0])])
    assert [type(answers[0]) for answers in drawn] == [Rationale, Failure, Rationale]
    assert "takes no videos; pass frames as images" in drawn[1][0].reason
    assert drawn[::2] == worker.draw([request(0), request(2, image=squares[0])])


def test_inputs_that_do_not_go_together_go_apart(make, tmp_path, squares):
    """SmolVLM's processor takes pictures and videos, but not in one call."""
    worker = make(model=str(save(tmp_path, "smolvlm")))
    clip = [Image.fromarray(np.full((64, 64, 3), 60 * frame, dtype=np.uint8)) for frame in range(4)]
    together = [request(0, image=squares[0]), request(1, video=clip), request(2)]
    assert worker.draw(together) == [worker.draw([one])[0] for one in together]
    assert all(isinstance(answer, Rationale) for answers in worker.draw(together) for answer in answers)


def said(monkeypatch: pytest.MonkeyPatch, worker: TransformersWorker, text: str, ended: bool = True) -> Any:
    """The answer to a request whose continuation is `text`."""
    ids = worker._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(
        transformers_worker,
        "draw_continuations",
        lambda vlm, prefix, seeds, **_: [Continuation(ids, ended)] * len(seeds),
    )
    [[answer]] = worker.draw([request(0, seeds=(1,))])
    return answer


def with_special_tags(folder: Path, model: Path, opened: str = "") -> str:
    """The model with a tokenizer to which the tags are special, and a template that begins the answer."""
    vlm, processor = build_tiny_vlm("qwen3_vl")
    vlm.resize_token_embeddings(len(processor.tokenizer) + 2)
    processor.tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    processor.chat_template += f"{{{{- {opened!r} -}}}}"
    vlm.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("special", [False, True], ids=["plain tags", "special tags"])
def test_reasoning_and_answers_are_told_apart(make, styles, qwen, tmp_path, monkeypatch, special):
    model = with_special_tags(tmp_path, qwen) if special else str(qwen)
    thinker, speaker = make(model=model, style=styles["reasoning"]), make(model=model)
    text = "<think>It is red.</think> Peru<|im_start|><|endoftext|>"
    reasoning, answer = said(monkeypatch, thinker, text), said(monkeypatch, speaker, text)
    assert (reasoning.text, answer.text) == ("It is red.", "Peru")
    assert reasoning.num_tokens == answer.num_tokens == len(thinker._processor.tokenizer(text)["input_ids"])
    assert said(monkeypatch, thinker, "<think>It is r", ended=False).text == "It is r"
    assert said(monkeypatch, thinker, "<think>It is r", ended=False).finish_reason == "length"


def test_reasoning_that_the_prompt_has_opened(make, styles, qwen, tmp_path, monkeypatch):
    """Cut before its closing tag, nothing in what was said tells that it is one."""
    model = with_special_tags(tmp_path, qwen, opened="<think>\n")
    thinker, speaker = make(model=model, style=styles["reasoning"]), make(model=model)
    assert said(monkeypatch, thinker, "It is red.</think> Peru").text == "It is red."
    assert said(monkeypatch, speaker, "It is red.</think> Peru").text == "Peru"
    assert said(monkeypatch, thinker, "It is r", ended=False).text == "It is r"
    cut = said(monkeypatch, speaker, "It is r", ended=False)
    assert isinstance(cut, Failure)
    assert "reasoning without an answer (finish_reason 'length'); raise `max_tokens`" in cut.reason


def test_nothing_said_is_a_failure(make, styles, monkeypatch):
    assert said(monkeypatch, make(), "<|im_start|>") == Failure("the model's output is empty (finish_reason 'stop').")
    thinker = make(style=styles["reasoning"])
    assert said(monkeypatch, thinker, "<think> </think> Peru") == Failure(
        "the model's reasoning is empty (finish_reason 'stop'); is thinking switched on in this model?"
    )


def test_all_end_tokens_end_a_rationale(make, tmp_path, monkeypatch):
    """Those of the generation config, one or several, and the tokenizer's."""
    drawn = []

    def record(*args: Any, **kwargs: Any) -> list[Continuation]:
        drawn.append(draw_continuations(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(transformers_worker, "draw_continuations", record)
    worker = make()
    worker.draw([request(0, seeds=(1,))])
    whole, end = drawn[0][0].token_ids, worker._processor.tokenizer.eos_token_id
    assert worker._end_ids == {end}
    other = make(model=str(save(tmp_path, eos_token_id=[whole[-1], 3])))
    assert other._end_ids == {whole[-1], 3, end}
    [[ended]] = other.draw([request(0, seeds=(1,))])
    assert drawn[1] == [Continuation(whole[: whole.index(whole[-1])], True)]
    assert (ended.finish_reason, ended.num_tokens) == ("stop", whole.index(whole[-1]))


def test_a_closed_worker_holds_no_model_and_draws_again(make, requests):
    worker = make()
    worker.close()  # nothing was loaded
    drawn = worker.draw(requests[1:2])
    vlm = weakref.ref(worker._loaded[0])
    worker.close()
    assert vlm() is None
    assert worker.draw(requests[1:2]) == drawn


def test_a_checkpoint_can_be_a_worker(make, tiny_checkpoint, requests):
    drawn = make(model=str(tiny_checkpoint)).draw(requests)
    assert all(isinstance(answer, Rationale) for answers in drawn for answer in answers)


def test_the_real_styles(make, requests):
    for style in ("instruct", "thinking"):
        assert isinstance(make(style=style).draw(requests[:1])[0][0], Rationale | Failure)


def test_definition(make, styles):
    worker = make()
    assert json.loads(json.dumps(worker.definition)) == worker.definition
    assert make(batch_size=1, device=None, name="other", num_samples=9).definition == worker.definition
    for change in (
        {"model": "m"}, {"style": styles["reasoning"]}, {"max_tokens": 9}, {"temperature": 1}, {"top_p": 0.5},
        {"dtype": "bfloat16"},
    ):  # fmt: skip
        assert make(**change).definition != worker.definition
    assert worker.definition["style"] == load_style(styles["answer"]).definition


def test_a_missing_model_stops_the_run_when_it_is_needed(make, tmp_path):
    worker = make(model=str(tmp_path / "nowhere"))
    with pytest.raises(WorkerError, match="Worker 'tiny': `model` can't be used. There is no folder .*nowhere"):
        worker.draw([request(0)])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "", "a folder or an ID"),
        ("model", None, "a folder or an ID"),
        ("num_samples", 0, "a whole number from 1 on"),
        ("max_tokens", 1.5, "a whole number from 1 on"),
        ("batch_size", True, "a whole number from 1 on"),
        ("temperature", -0.1, "from 0"),
        ("temperature", float("nan"), "from 0"),
        ("top_p", 0, "more than 0, up to 1"),
        ("top_p", 1.1, "more than 0, up to 1"),
        ("top_p", "0.9", "more than 0, up to 1"),
        ("dtype", "int4", "auto, float32"),
        ("device", "abacus", "a device of torch"),
    ],
)
def test_wrong_keys_are_named(make, key, value, message):
    with pytest.raises(ValueError, match=f"Worker 'tiny': `{key}` is .*; allowed: .*{message}"):
        make(**{key: value})


def test_an_unknown_style_is_named(make):
    with pytest.raises(ValueError, match="Worker 'tiny': `style` can't be used.*Allowed: instruct, thinking"):
        make(style="poetic")


def test_pictures_may_be_made_smaller(make, tmp_path):
    asked = [request(1, image=Image.effect_noise((256, 256), 60).convert("RGB"))]
    plain, small = make(), make(max_image_tokens=1)
    lengths = [worker._prompts([worker._conversation(asked[0])])["input_ids"].shape[1] for worker in (plain, small)]
    assert lengths[0] == lengths[1] + 3
    assert plain.draw(asked) != small.draw(asked)
    assert "max_image_tokens" not in plain.definition and small.definition["max_image_tokens"] == 1
    with pytest.raises(ValueError, match="`max_image_tokens` is 0; allowed: a whole number from 1 on, or null"):
        make(max_image_tokens=0)
    with pytest.raises(WorkerError, match="Worker 'tiny': `model` can't be used. max_image_tokens=1: this model's"):
        make(model=str(save(tmp_path / "gemma", "gemma3")), max_image_tokens=1).draw(asked)
