"""A thinker that is not the embedder: whose rationales go where, who is asked, and what a failure does."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmemb_r1 import MMEmbR1
from mmemb_r1.embedding_cache import EmbeddingCache
from mmemb_r1.modeling.inputs_mmemb_r1 import EmptyText
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.rationale_tokens import forced_embeddings, rationale_ids, rationale_suffix
from mmemb_r1.stream import encode_stream, load_shards
from mmemb_r1.thinker import NoThought, ThinkerError, Thought, load_thinker, thinker_input

pytestmark = pytest.mark.usefixtures("one_thread")
RED, BLUE = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))
INPUTS = [
    "Lima", {"text": "Which city? " * 6, "image": RED}, RED, {"text": "b", "instruction": "Name it."}, BLUE,
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
]  # fmt: skip


class Says:
    """Write what a function says of an input, and remember what was asked."""

    def __init__(self, say: Callable[[dict[str, Any]], Any] | None = None, name: str = "says") -> None:
        self.definition = {"kind": name}
        self.say = say or (lambda value: f"it is {len(value.get('text', ''))}, so red")
        self.asked: list[dict[str, Any]] = []
        self.budgets: set[int] = set()

    def think(self, inputs: Iterable[dict[str, Any]], max_tokens: int) -> Iterator[tuple[int, Any]]:
        self.budgets.add(max_tokens)
        for number, value in enumerate(inputs):
            self.asked.append(value)
            said = self.say(value)
            yield number, Thought(said) if isinstance(said, str) else said


@pytest.fixture
def model(thinking: Callable[..., MMEmbR1]) -> MMEmbR1:
    return thinking(max_reasoning_tokens=12)


def said(thinker: Says, value: Any, prompt: str | None = None) -> str:
    return thinker.say(thinker_input(value, MediaOptions(), prompt))


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=2e-5, rtol=0)


# where a rationale goes


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_as_tokens_it_is_read_as_the_models_own(model, batch_size):
    model.thinker = thinker = Says()
    rows = model.explain(INPUTS, reasoning="always", batch_size=batch_size, prompt="Find it.")
    suffixes = [
        rationale_suffix(model.processor, model[0].model.config, said(thinker, value, "Find it.")) for value in INPUTS
    ]
    close([row["embedding"] for row in rows], forced_embeddings(model, INPUTS, suffixes, prompt="Find it.").last)
    assert [row["rationale"] for row in rows] == [said(thinker, value, "Find it.") for value in INPUTS]
    model.thinker = None
    direct = model.explain(INPUTS, reasoning="never", prompt="Find it.")
    close([row["gate_prob"] for row in rows], [row["gate_prob"] for row in direct])


def test_as_text_it_is_a_prompt_of_its_own(model):
    thinker = Says()
    model.set_thinker(thinker, "text")
    rows = model.explain(INPUTS, reasoning="always", batch_size=2, prompt="Find it.")
    model.thinker = None
    told = [said(thinker, value, "Find it.") for value in INPUTS]
    written = [
        f"Lima\n{told[0]}",
        {"text": f"{'Which city? ' * 6}\n{told[1]}", "image": RED},
        {"text": told[2], "image": RED},
        {"text": f"b\n{told[3]}", "instruction": "Name it."},
        {"text": told[4], "image": BLUE},
        [*INPUTS[5][:2], {"role": "user", "content": f"c\n{told[5]}"}],
    ]
    close([row["embedding"] for row in rows], model.encode(written, reasoning="never", prompt="Find it."))
    assert [row["rationale"] for row in rows] == told
    close(
        [row["gate_prob"] for row in rows],
        [row["gate_prob"] for row in model.explain(INPUTS, reasoning="never", prompt="Find it.")],
    )


def test_control_tokens_of_a_thinker_are_plain_text(model):
    for form in ("tokens", "text"):
        model.set_thinker(Says(lambda value: "</think> a <|embed|> b"), form)
        row = model.explain("Lima", reasoning="always", max_reasoning_tokens=64)
        ids = rationale_ids(model.processor, "</think> a <|embed|> b")
        assert row["num_reasoning_tokens"] == len(ids)
        config = model[0].model.config
        assert not {config.end_think_token_id, config.embed_token_id} & set(ids)


@pytest.mark.parametrize("form", ["tokens", "text"])
def test_the_budget_counts_tokens_of_the_embedder(model, form):
    long = "it is red and white and red again " * 4
    model.set_thinker(thinker := Says(lambda value: long), form)
    [row] = model.encode(["Lima"], reasoning="always", max_reasoning_tokens=9, output_value=None)
    assert thinker.budgets == {9}
    assert int(row["num_reasoning_tokens"]) <= 9
    assert int(row["num_forced_closings"]) == 1
    rationale = model.tokenizer.decode(row["rationale_ids"])
    assert long.startswith(rationale) and rationale
    [whole] = model.encode(["Lima"], reasoning="always", max_reasoning_tokens=200, output_value=None)
    assert int(whole["num_forced_closings"]) == 0
    assert model.tokenizer.decode(whole["rationale_ids"]) == long.strip()


def test_an_input_makes_room_for_its_rationale_and_not_the_other_way_round(model):
    model[0].model.config.max_text_tokens = 24
    long, rationale = "city of kings and of the sea " * 20, "so it is Lima"
    model.set_thinker(Says(lambda value: rationale), "text")
    rows = model.explain([long, {"text": long, "image": RED}], reasoning="always")
    model.thinker = None
    for row, rest in zip(rows, ({}, {"image": RED}), strict=True):
        tokenizer, found = model.tokenizer, []
        for end in range(1, 100):
            text = f"{long[:end]}\n{rationale}"
            if len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= 24:
                found.append(text)
        vectors = model.encode([{"text": text, **rest} for text in found[-12:]], reasoning="never")
        assert (vectors @ row["embedding"]).max() > 1 - 1e-5
    with pytest.raises(ValueError, match="max_reasoning_tokens=24 leaves no room for an input"):
        model.set_thinker(Says(), "text")
        model.encode(["a"], reasoning="always", max_reasoning_tokens=24)


def test_a_rationale_beyond_the_context_is_cut(model):
    model[0].model.config.vlm_config.text_config.max_position_embeddings = 40
    model.thinker = Says(lambda value: "red " * 60)
    [row] = model.encode(["Lima"], reasoning="always", max_reasoning_tokens=39, output_value=None)
    prompt = model.preprocess(["Lima"])["input_ids"].shape[1]
    assert prompt + int(row["num_reasoning_tokens"]) + 3 == 40
    assert int(row["num_forced_closings"]) == 1
    assert len(row["rationale_ids"][row["rationale_ids"] >= 0]) == int(row["num_reasoning_tokens"])


# who is asked


def test_the_gate_decides_who_is_asked(model):
    texts = [f"city {number}" for number in range(20)]
    direct = model.explain(texts, reasoning="never")
    probs = np.array([row["gate_prob"] for row in direct])
    threshold = float(np.median(probs))
    for form in ("tokens", "text"):
        model.set_thinker(thinker := Says(), form)
        rows = model.explain(texts, reasoning="auto", gate_threshold=threshold, batch_size=3)
        thinks = probs >= threshold
        assert [row["reasoned"] for row in rows] == thinks.tolist()
        assert sorted(value["text"] for value in thinker.asked) == sorted(np.array(texts)[thinks])
        always = model.explain(texts, reasoning="always")
        for row, one, other in zip(rows, direct, always, strict=True):
            close(row["embedding"], (other if row["reasoned"] else one)["embedding"])
            assert row["rationale"] == (other["rationale"] if row["reasoned"] else "")


def test_never_asks_nobody(model):
    expected = model.encode(INPUTS, reasoning="never")
    model.thinker = thinker = Says()
    close(model.encode(INPUTS, reasoning="never"), expected)
    close(model.encode_document(["a"]), model.encode(["a"], reasoning="never"))
    assert thinker.asked == []


def test_equal_inputs_are_asked_once_and_an_instruction_goes_along(model):
    model.thinker = thinker = Says()
    model.encode(["a", "a", {"text": "a"}], reasoning="always", prompt="Find it.")
    assert thinker.asked == [{"text": "a", "instruction": "Find it."}]


def test_answers_may_come_in_any_order_and_reading_goes_on_beside(model):
    class Later(Says):
        def think(self, inputs, max_tokens):
            asked = list(enumerate(inputs))
            yield from ((number, Thought(f"{value['text']} it is")) for number, value in reversed(asked))

    texts = [f"city {number}" for number in range(9)]
    model.thinker = Later()
    rows = model.explain(texts, reasoning="always", batch_size=2)
    assert [row["rationale"] for row in rows] == [f"{text} it is" for text in texts]


def test_one_round_is_thought(thinking):
    model = thinking(max_reasoning_rounds=3, max_reasoning_tokens=12)
    model.thinker = Says()
    assert model.explain("Lima", reasoning="always")["num_reasoning_rounds"] == 1
    with pytest.raises(ValueError, match="max_reasoning_rounds=2: a thinker writes one rationale of an input"):
        model.encode("Lima", reasoning="always", max_reasoning_rounds=2)


def test_hooks_would_not_see_it(model):
    model.thinker = Says()
    handle = model.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="with a thinker inputs don't think in these"):
        model.encode("Lima", reasoning="always")
    model.encode("Lima", reasoning="never")
    handle.remove()
    model.encode("Lima", reasoning="always")


def test_what_is_on_the_web_is_downloaded_by_the_embedder(monkeypatch):
    monkeypatch.setattr("mmemb_r1.thinker.open_image", lambda source, media: RED if media.allow_remote else None)
    address = "https://example.org/a.png"
    assert thinker_input({"image": address}, MediaOptions(allow_remote=True)) == {"image": [RED]}
    assert thinker_input({"text": EmptyText(), "image": "b.png"}, MediaOptions()) == {"image": ["b.png"]}
    assert thinker_input(INPUTS[5], MediaOptions()) == {"text": "user: a\nassistant: b\nuser: c"}


# failures


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "refused": (
        lambda value: NoThought("the server refused."),
        "has no rationale for it: the server refused. Correct",
    ),
    "blank": (lambda value: " \n", "its rationale is empty"),
}


@pytest.mark.parametrize("form", ["tokens", "text"])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_input_without_a_rationale_is_an_error_that_names_it(model, form, fault, tmp_path):
    say, told = FAULTS[fault]
    thinker = Says(lambda value: say(value) if value["text"] == "bad" else "so red")
    texts = ["a long text that is read first", "another one", "bad", "d", "e"]
    with EmbeddingCache(tmp_path / "cache") as cache:
        model.embedding_cache = cache
        model.set_thinker(thinker, form)
        with pytest.raises(ThinkerError, match=f"Input 2 can't be embedded: the thinker .*{told}.*It was: 'bad'"):
            model.encode(texts, reasoning="always")
        assert len(cache) == len(thinker.asked) - 1 > 0  # what was thought before is not asked again
        asked = [value["text"] for value in thinker.asked]
        thinker.asked.clear()
        model.encode([text for text in texts if text != "bad"], reasoning="always")
        assert not {value["text"] for value in thinker.asked} & set(asked)


class Wrong(Says):
    def __init__(self, answers: Callable[[Iterator[Any]], Iterable[tuple[Any, Any]]]) -> None:
        super().__init__()
        self.answers = answers

    def think(self, inputs, max_tokens):
        yield from self.answers(iter(inputs))


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (lambda inputs: ((0, Thought("a")) for _ in inputs), "Wrong answered input 0 twice"),
        (lambda inputs: ((7, Thought("a")) for _ in inputs), "Wrong answered input 7; it was asked about 1"),
        (lambda inputs: (("x", Thought("a")) for _ in inputs), "Wrong answered input 'x'"),
        (lambda inputs: ((0, "text") for _ in inputs), "Wrong answered 'text'; allowed: a Thought or a NoThought"),
        (lambda inputs: [(0, Thought("a")) for _ in [next(inputs)]], "it ended without a rationale for this input"),
        (lambda inputs: [], "it ended without a rationale for this input"),
    ],
)
def test_a_thinker_that_does_not_keep_to_the_protocol_is_told(model, answers, told):
    model.thinker = Wrong(answers)
    with pytest.raises(ValueError, match=told):
        model.encode(["a", "b", "c"], reasoning="always", batch_size=1)


def test_an_unreadable_input_is_told_as_ever(model):
    model.thinker = Says()
    with pytest.raises(ValueError, match=r"Input 1 can't be embedded: .*nowhere\.png"):
        model.encode(["a", {"image": "nowhere.png"}], reasoning="always")


def test_a_thinker_may_stop_to_read_what_does_not_think(model):
    texts = [f"city {number}" for number in range(8)]
    model.thinker = Wrong(lambda inputs: [])
    rows = model.explain(texts, reasoning="auto", gate_threshold=1.0, batch_size=2)
    assert not any(row["reasoned"] for row in rows)


def test_an_error_from_another_process_finds_its_input(model):
    """Of a call of several processes each knows its own part alone: the input is found by its content."""
    model.thinker = Says(lambda value: NoThought("refused."))
    with pytest.raises(ThinkerError) as raised:
        model.encode([{"text": "bad"}], reasoning="always")
    travelled = pickle.loads(pickle.dumps(raised.value))
    assert (travelled.index, travelled.value, travelled.key) == (0, None, raised.value.key)
    assert model._place_of(travelled, ["a", "b", "bad", "bad"], {}) == 2
    assert "Input 5 " in str(travelled.at(5)) and travelled.at(5).key == travelled.key


# what is kept


def test_the_cache_tells_thinkers_apart(model, tmp_path):
    red, blue = Says(lambda value: "so red", "red"), Says(lambda value: "so blue", "blue")
    with EmbeddingCache(tmp_path / "cache") as cache:
        model.embedding_cache = cache
        kept = {"own": model.encode("Lima", reasoning="always")}
        for name, thinker, form in (("red", red, "tokens"), ("text", red, "text"), ("blue", blue, "tokens")):
            model.set_thinker(thinker, form)
            kept[name] = model.encode("Lima", reasoning="always")
        assert len(cache) == 4
        vectors = np.stack(list(kept.values()))
        assert (vectors @ vectors.T + 10 * np.eye(4) > 1 - 1e-4).sum() == 4  # no two are the same
        for name, thinker, form in (("red", red, "tokens"), ("text", red, "text"), ("blue", blue, "tokens")):
            model.set_thinker(thinker, form)
            close(model.encode("Lima", reasoning="always"), kept[name])
        assert (len(red.asked), len(blue.asked), len(cache)) == (2, 1, 4)
        never = model.encode("Lima", reasoning="never")
        model.thinker = None
        close(model.encode("Lima", reasoning="never"), never)
        close(model.encode("Lima", reasoning="always"), kept["own"])
        assert len(cache) == 5  # directly, an input is one entry whoever could think


def test_a_stream_goes_on_and_is_of_one_thinker(model, tmp_path):
    texts = [f"city {number}" for number in range(10)]
    fails = Says(lambda value: NoThought("refused.") if value["text"] == "city 6" else "so red")
    model.thinker = fails
    options: dict[str, Any] = {"shard_size": 4, "reasoning": "always", "rationales": True}
    with pytest.raises(ThinkerError, match="Input 6 can't be embedded"):
        encode_stream(model, iter(texts), tmp_path / "stream", **options)
    model.thinker = Says(lambda value: "so blue", "another")
    with pytest.raises(ValueError, match="reasoning_options"):
        encode_stream(model, iter(texts), tmp_path / "stream", **options)
    model.thinker = works = Says(lambda value: "so red")
    summary = encode_stream(model, iter(texts), tmp_path / "stream", **options)
    assert (summary.rows, summary.reasoned, summary.skipped) == (10, 10, 1)
    assert sorted(value["text"] for value in works.asked) == [f"city {number}" for number in range(4, 10)]
    close(load_shards(tmp_path / "stream")[1], model.encode(texts, reasoning="always"))


# how one is found


def test_a_thinker_is_an_object_or_the_way_to_one(monkeypatch, tmp_path):
    (tmp_path / "my_thinkers.py").write_text(
        "from mmemb_r1.thinker import Thought\n\n\nclass Mine:\n    definition = {'kind': 'mine'}\n\n"
        "    def think(self, inputs, max_tokens):\n        for number, _ in enumerate(inputs):\n"
        "            yield number, Thought('so red')\n\n\nready = Mine()\n\n\ndef made():\n    return Mine()\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    for name in ("Mine", "made", "ready"):
        assert load_thinker(f"my_thinkers:{name}").definition == {"kind": "mine"}
    thinker = Says()
    assert load_thinker(thinker) is thinker


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nothing.yaml", "thinker 'nothing.yaml': there is no such file; allowed: a YAML file"),
        ("nothing:here", "'nothing:here' can't be imported"),
        ("fractions:Fraction", "allowed: a YAML file of a worker's keys"),
        (3, "thinker is 3; allowed"),
        ({"kind": "nobody", "model": "m"}, "its kind is 'nobody'; allowed: transformers, checkpoint, openai"),
        ({"model": "m"}, "the key 'kind' is missing"),
        ({"kind": "openai", "model": "m", "base_url": "http://x/v1", "samples": 3}, "a thinker writes one rationale"),
        ({"kind": "openai", "model": "m", "base_url": "http://x/v1", "api_key": "s"}, "'api_key' is not allowed"),
    ],
)
def test_what_is_no_thinker_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        load_thinker(given)


def test_a_definition_has_to_be_json():
    thinker = Says()
    thinker.definition = {"kind": torch.float32}
    with pytest.raises(ValueError, match="The thinker's definition is .*, which JSON can't hold"):
        load_thinker(thinker)


def test_a_file_that_is_wrong_is_named(tmp_path):
    path = tmp_path / "thinker.yaml"
    for content, told in (("- a", "it holds list"), ("kind: openai\nmodle: m", "the key 'modle' is not known")):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=f"thinker.yaml: .*{told}"):
            load_thinker(path)


def test_a_form_is_checked(model, tiny_checkpoint):
    with pytest.raises(ValueError, match="thinker_form='words' is not known; allowed: tokens, text"):
        model.set_thinker(Says(), "words")
    with pytest.raises(ValueError, match="thinker_form='text' is for the rationales of a thinker: give one"):
        MMEmbR1(str(tiny_checkpoint), device="cpu", thinker_form="text")
    loaded = MMEmbR1(str(tiny_checkpoint), device="cpu", thinker=Says(), thinker_form="text")
    assert loaded.thinking is not None and loaded.thinking.form == "text"
    assert model[0].model.config.thinker_form == "tokens"
