"""Rows of several batches think together: what each of them thinks and gets does not depend on it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.decoding_mmemb_r1 import Decoder, DecodingStatistics
from mmemb_r1.modeling.outputs_mmemb_r1 import MMEmbR1EmbedOutput
from mmemb_r1.modeling.scheduling_mmemb_r1 import ReasoningOptions, read_prompts, start_thinking
from mmemb_r1.tiny import build_tiny_vlm

LENGTHS = (1, 9, 3, 20, 2)  # of the rationales


@pytest.fixture
def closing(tiny) -> Iterator[None]:
    """Some states make the model close its rationale, so that lengths differ."""
    end, head = tiny.model.config.end_think_token_id, tiny.model.get_output_embeddings()
    direction = torch.randn(head.weight.shape[1], generator=torch.Generator().manual_seed(2))

    def close(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits + 1e4 * ((args[0] @ direction > 0)[:, None] & (torch.arange(logits.shape[-1]) == end))

    with head.register_forward_hook(close):
        yield


@torch.no_grad()
def scheduled(tiny: Any, batches: list[list[Any]], **options: Any) -> list[MMEmbR1EmbedOutput]:
    return list(tiny.model.embed_batches([tiny.batch(values) for values in batches], **options))


def rationales(outputs: list[MMEmbR1EmbedOutput]) -> list[list[int]]:
    return [[token for token in row if token >= 0] for output in outputs for row in output.rationale_ids.tolist()]


def require_equal(outputs: list[MMEmbR1EmbedOutput], expected: list[MMEmbR1EmbedOutput], close: Any) -> None:
    assert rationales(outputs) == rationales(expected)
    for name in ("embeddings", "gate_prob", "all_embeddings"):
        close(*(torch.cat([output[name] for output in which]) for which in (outputs, expected)))
    for name in ("reasoned", "num_reasoning_rounds", "num_reasoning_tokens", "num_forced_closings"):
        assert torch.equal(*(torch.cat([output[name] for output in which]) for which in (outputs, expected)))


@pytest.mark.parametrize("reasoning", ["always", "auto"])
def test_a_row_does_not_depend_on_the_schedule(tiny, mixed, closing, close, reasoning):
    options = {
        "reasoning": reasoning, "max_reasoning_tokens": 6, "max_reasoning_rounds": 2, "output_all_embeddings": True,
        "gate_threshold": tiny.threshold(mixed),
    }  # fmt: skip
    alone = [tiny.embed([value], **options) for value in mixed]
    assert len({len(ids) for ids in rationales(alone)}) > 1
    for batches in ([mixed], [mixed[:2], mixed[2:]], [[value] for value in mixed], [mixed[:1], mixed[1:4], mixed[4:]]):
        for size in (None, 1, 2, 3):
            require_equal(scheduled(tiny, batches, decode_batch_size=size, **options), alone, close)


@pytest.fixture
def caches(monkeypatch) -> list[str]:
    """Kinds of the caches that were decoded from, in order."""
    kinds: list[str] = []

    def noted(self: Decoder) -> None:
        kinds.append(type(self.context.cache).__name__)
        step(self)

    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", noted)
    return kinds


@pytest.mark.parametrize(
    "reason", [None, "one batch", "eager", pytest.param("compiled", marks=pytest.mark.slow), "windows"]
)
def test_nothing_is_padded_where_rows_of_batches_meet(make_tiny, mixed, close, caches, reason):
    """Elsewhere nothing would be saved, or the backbone does not let us."""
    tiny = make_tiny("gemma3" if reason == "windows" else "qwen3_vl")
    alone = [tiny.embed([value], reasoning="always", max_reasoning_tokens=5) for value in mixed]
    assert set(caches) == {"DynamicCache"}
    caches.clear()
    if reason == "eager":
        tiny.model.set_attn_implementation("eager")
    if reason == "compiled":
        tiny.model.compile_decoding(backend="eager")
    batches = [mixed] if reason == "one batch" else [mixed[:2], mixed[2:]]
    if reason == "one batch":
        outputs = [tiny.embed(mixed, reasoning="always", max_reasoning_tokens=5)]
    else:
        outputs = scheduled(tiny, batches, decode_batch_size=3, reasoning="always", max_reasoning_tokens=5)
    assert set(caches) == ({"RaggedCache"} if reason is None else {"DynamicCache"})
    assert rationales(outputs) == rationales(alone)
    close(*(torch.cat([output.embeddings for output in which]) for which in (outputs, alone)))


def test_attention_stays_what_it_was_for_everything_else(make_tiny, mixed, close, tmp_path):
    tiny = make_tiny("qwen3_vl")
    batch = tiny.batch(mixed)
    with torch.no_grad():
        before = tiny.model(**batch).embeddings
        scheduled(tiny, [mixed[:2], mixed[2:]], reasoning="always", max_reasoning_tokens=3)
        assert torch.equal(tiny.model(**batch).embeddings, before)
        tiny.model.set_attn_implementation("eager")
        close(tiny.model(**batch).embeddings, before)
        tiny.model.set_attn_implementation("sdpa")
        assert torch.equal(tiny.model(**batch).embeddings, before)
        scheduled(tiny, [mixed[:2], mixed[2:]], reasoning="always", max_reasoning_tokens=3)
    tiny.model.save_pretrained(tmp_path)
    assert "ragged" not in (tmp_path / "config.json").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_steps_give_the_same(make_tiny, mixed, close, backend):
    tiny = make_tiny("qwen3_vl")
    options = {"reasoning": "always", "max_reasoning_tokens": 6, "output_all_embeddings": True, "decode_batch_size": 3}
    batches, graphs = [mixed[:2], mixed[2:]], []
    expected = scheduled(tiny, batches, **options)

    def counted(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    tiny.model.compile_decoding(backend=counted if backend == "eager" else backend)
    require_equal(scheduled(tiny, batches, **options), expected, close)
    copied = copy.deepcopy(tiny)  # has weights of its own
    for parameter in tiny.model.vlm.parameters():
        parameter.data.zero_()
    require_equal(scheduled(copied, batches, **options), expected, close)
    assert bool(graphs) == (backend == "eager")


def test_a_spread_model_is_not_compiled(make_tiny):
    model = make_tiny("llava").model
    add_hook_to_module(model.vlm.base_model, AlignDevicesHook())
    with pytest.raises(ValueError, match="spread over devices"):
        model.compile_decoding()


def test_budgets_of_rows(qwen, mixed, close):
    token = qwen.processor.tokenizer.convert_tokens_to_ids("a")
    with qwen.biased(token), torch.no_grad():
        output = qwen.embed(mixed, reasoning="always", max_reasoning_tokens=LENGTHS)
        alone = [
            qwen.embed([value], reasoning="always", max_reasoning_tokens=length)
            for value, length in zip(mixed, LENGTHS, strict=True)
        ]
        batches = [{**qwen.batch([value]), "max_reasoning_tokens": n} for value, n in zip(mixed, LENGTHS, strict=True)]
        together = list(qwen.model.embed_batches(batches, reasoning="always"))
    assert output.num_reasoning_tokens.tolist() == list(LENGTHS)
    for embeddings in (output.embeddings, torch.cat([each.embeddings for each in together])):
        close(embeddings, torch.cat([each.embeddings for each in alone]))


def test_only_rows_that_think_take_part(qwen, mixed):
    """Row steps are those of `<think> r </think> <|embed|>`; batches are as full as they can be."""
    statistics = DecodingStatistics()
    with qwen.biased(qwen.processor.tokenizer.convert_tokens_to_ids("a")), torch.no_grad():
        qwen.model.embed(**qwen.batch(mixed), reasoning="always", max_reasoning_tokens=LENGTHS)
        list(qwen.model.embed_batches(
            [qwen.batch([value]) for value in mixed], reasoning="always", max_reasoning_tokens=5, statistics=statistics
        ))  # fmt: skip
    assert statistics == DecodingStatistics(steps=5 + 3, row_steps=5 * (5 + 3))


def test_room_is_made_before_more_is_read(qwen, mixed, monkeypatch):
    """No more rows think than are allowed, prompts are read one batch at a time, and results come as they are done."""
    read, sizes = [], []
    step = Decoder.step

    def counted(decoder: Decoder) -> None:
        sizes.append(len(decoder))
        step(decoder)

    def batches() -> Iterator[Any]:
        for number, value in enumerate(mixed):
            read.append(number)
            yield qwen.batch([value])

    monkeypatch.setattr(Decoder, "step", counted)
    with torch.no_grad():
        outputs = qwen.model.embed_batches(batches(), reasoning="always", decode_batch_size=2)
        assert read == []
        next(outputs)
        assert len(read) < len(mixed)
        assert len(list(outputs)) == len(mixed) - 1
    assert max(sizes) == 2


def test_nothing_is_decoded_without_need(qwen, mixed):
    statistics = DecodingStatistics()
    for options in ({"reasoning": "never"}, {"reasoning": "auto", "gate_threshold": 1.0}):
        list(qwen.model.embed_batches([qwen.batch(mixed)], statistics=statistics, **options))
    assert statistics == DecodingStatistics()
    assert list(qwen.model.embed_batches([])) == []


@pytest.mark.parametrize("window", [8, 32])
def test_sliding_windows(make_tiny, mixed, close, window):
    """Rows beside longer ones see as many tokens as alone: before and after the window is full."""
    tiny = make_tiny("gemma3")
    text = tiny.model.vlm.config.text_config
    text.sliding_window = window
    for layer in tiny.model.vlm.base_model.language_model.layers:
        layer.self_attn.sliding_window = window if layer.self_attn.is_sliding else None
    assert "sliding_attention" in text.layer_types
    options = {"reasoning": "always", "max_reasoning_tokens": 12, "output_all_embeddings": True}
    alone = [tiny.embed([value], **options) for value in mixed]
    lengths = [tiny.batch([value])["input_ids"].shape[1] for value in mixed]
    assert min(lengths) + 12 < max(lengths) + 12 and max(lengths) > window
    require_equal(scheduled(tiny, [[value] for value in mixed], decode_batch_size=3, **options), alone, close)


def test_recurrent_states_are_decoded_batch_by_batch(close, recurrent_vlm):
    """They can't be padded afterwards: batches don't mix, results are the same."""
    _, processor = build_tiny_vlm("qwen3_vl")
    model, _ = MMEmbR1Model.from_vlm(recurrent_vlm(vocab_size=400), processor)
    prompts = [[9, 8, 7, 6, 5], [11, 12, 13], [21, 22, 23, 24]]
    batches = [{"input_ids": torch.tensor([[*ids, model.config.embed_token_id]])} for ids in prompts]
    options: dict[str, Any] = {"reasoning": "always", "max_reasoning_tokens": 5, "output_all_embeddings": True}
    statistics = DecodingStatistics()
    with torch.no_grad():
        alone = [model.embed(**batch, **options) for batch in batches]
        outputs = list(model.embed_batches(batches, statistics=statistics, **options))
    require_equal(outputs, alone, close)
    assert statistics.steps == statistics.row_steps
    four = {
        "input_ids": torch.tensor([[*ids, model.config.embed_token_id] for ids in ([1, 2], [3, 4], [5, 6], [7, 8])])
    }
    with torch.no_grad():
        statistics = DecodingStatistics()
        list(model.embed_batches([four], statistics=statistics, decode_batch_size=4, **options))
    assert statistics.row_steps > 2 * statistics.steps  # as many as may stand together, not in parts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode_batch_size": 0}, "decode_batch_size=0 .* has to be one whole number of at least 1"),
        ({"max_reasoning_tokens": [4, 4]}, r"=\[4, 4\] are the budgets of 5 rows; pass one number"),
        ({"max_reasoning_tokens": [4, 4, 0, 4, 4]}, "max_reasoning_tokens=0"),
    ],
)
def test_bad_options(qwen, mixed, options, message):
    with pytest.raises(ValueError, match=message):
        qwen.embed(mixed, reasoning="always", **options)


def test_rows_of_one_batch_have_options_of_their_own(qwen, mixed, close):
    model = qwen.model
    given = [
        ("never", 0.5, 4, 1),
        ("always", 0.5, 3, 2),
        ("auto", 0.0, 5, 1),
        ("auto", 1.0, 5, 1),
        ("always", 0.5, 6, 1),
    ]
    assert len(mixed) == len(given)
    options = [ReasoningOptions.of(model.config, None, *one) for one in given]
    decoder = Decoder(model, across_batches=True)
    with torch.no_grad():
        read, context = read_prompts(model, qwen.batch(mixed), options)
        start_thinking(decoder, read.states, context)
        decoder.run()
    output = read.output(3, False)
    assert output.num_reasoning_rounds.tolist() == [0, 2, 1, 0, 1]
    for row, (value, (reasoning, threshold, tokens, rounds)) in enumerate(zip(mixed, given, strict=True)):
        alone = qwen.embed(
            [value], reasoning=reasoning, gate_threshold=threshold, max_reasoning_tokens=tokens,
            max_reasoning_rounds=rounds,
        )  # fmt: skip
        close(output.embeddings[row], alone.embeddings[0])
        assert rationales([output])[row] == rationales([alone])[0]


def test_rows_are_stopped_and_the_others_go_on(qwen, mixed, close):
    """A stopped row keeps the vector of its last whole rationale, or none, and what it cost."""
    model = qwen.model
    options = ReasoningOptions.of(model.config, None, "always", None, 4, 3)
    decoder = Decoder(model, across_batches=True)
    whole = qwen.embed(mixed, reasoning="always", max_reasoning_tokens=4, max_reasoning_rounds=3)
    first = qwen.embed(mixed, reasoning="always", max_reasoning_tokens=4, max_reasoning_rounds=1)
    with torch.no_grad():
        read, context = read_prompts(model, qwen.batch(mixed), options)
        start_thinking(decoder, read.states, context)
        decoder.step()
        decoder.stop([read.states[1]])
        while not read.states[0].embeddings:
            decoder.step()
        decoder.step()
        decoder.step()
        decoder.stop([read.states[0], read.states[3]])
        decoder.run()
    assert not read.states[1].embeddings and not read.states[1].rationale_ids(model.config)
    for row in (0, 3):
        assert len(read.states[row].embeddings) == 1
        close(read.states[row].embeddings[-1], first.embeddings[row])
        assert read.states[row].rationale_ids(model.config) == rationales([first])[row]
        assert read.states[row].num_tokens >= int(first.num_reasoning_tokens[row])
    for row in (2, 4):
        close(read.states[row].embeddings[-1], whole.embeddings[row])
