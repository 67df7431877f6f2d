"""Where vectors are read and what surrounds a rationale, in other layouts than our own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModel

from mmemb_r1 import MMEmbR1Config, MMEmbR1Model
from mmemb_r1.modeling.backbones_mmemb_r1 import model_inputs
from mmemb_r1.modeling.decoding_mmemb_r1 import Sampling
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.paths_mmemb_r1 import chosen_places, reading_places, round_ids, suffix_of_ids
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.modeling.tokens_mmemb_r1 import Controls
from mmemb_r1.rationale_tokens import append_tokens
from mmemb_r1.tiny import build_tiny_vlm

UME = Controls(
    marker="<disc_emb>", opening="\nThink first, and end in <gen_emb>.\n", end="<gen_emb>", reasoned_marker=None
)
LAYOUTS: dict[str, tuple[Controls, dict[str, Any]]] = {
    "our own": (Controls(), {}),
    "read before the marker": (Controls(closing="\nassistant\n"), {"embed_position": "before"}),
    "a token that is there": (Controls.at("<|endoftext|>"), {}),
    "an end that is the place": (UME, {"max_reasoning_rounds": 1}),
    "two markers": (Controls("<a>", "So <b>, <b>:", "</r>", " then <b> ", "<b>"), {"embed_position": "before"}),
}
TWO_ROUNDS = [name for name in LAYOUTS if name != "an end that is the place"]


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@torch.no_grad()
def built(layout: str, family: str = "qwen3_vl", **config: Any) -> tuple[MMEmbR1Model, Any]:
    """A model of a layout; its weights are as large as trained ones, and its norm's are not all 1."""
    vlm, processor = build_tiny_vlm(family)
    for parameter in vlm.parameters():
        if parameter.ndim > 1:
            parameter.mul_(8)
    controls, fields = LAYOUTS[layout]
    if controls.marker == "<|endoftext|>":
        processor.tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"})
        vlm.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(1)
    vlm.get_decoder().norm.weight.uniform_(0.5, 2, generator=generator)
    model, processor = MMEmbR1Model.from_vlm(vlm, processor, controls, max_reasoning_tokens=5, **{**fields, **config})
    model.gate.output.weight.normal_(generator=generator)
    return model, processor


def batch_of(processor: Any, inputs: list[Any]) -> dict[str, Any]:
    return dict(render(processor, to_conversations(inputs)))


def appended(batch: dict[str, Any], row: int, ids: list[int]) -> dict[str, Any]:
    """One row without padding, and ids after it."""
    keep = batch["attention_mask"][row].bool()
    return {
        "input_ids": torch.cat([batch["input_ids"][row][keep], torch.tensor(ids, dtype=torch.long)])[None],
        "attention_mask": torch.ones(1, int(keep.sum()) + len(ids), dtype=torch.long),
    }


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


TEXTS = ["What is the capital of Peru?", "A dog.", "The largest is 7, and the smallest of them all is 2."]


@pytest.mark.parametrize(("layout", "rounds"), [*((name, 1) for name in LAYOUTS), *((name, 2) for name in TWO_ROUNDS)])
def test_decoding_gives_what_one_pass_over_the_whole_gives(layout, rounds, close):
    model, processor = built(layout)
    config, batch = model.config, batch_of(processor, TEXTS)
    sampling = Sampling(do_sample=True, temperature=3.0, generator=torch.Generator().manual_seed(3))
    options = {"reasoning": "always", "max_reasoning_rounds": rounds, "output_all_embeddings": True}
    output = model.embed(**batch, **options, sampling=sampling)
    direct = model.embed(**batch, reasoning="never")
    assert len({tuple(ids) for ids in output.rationale_ids.tolist()}) == len(TEXTS)
    for row in range(len(TEXTS)):
        ids = [token for token in output.rationale_ids[row].tolist() if token >= 0]
        assert sum(map(len, round_ids(config, ids))) == output.num_reasoning_tokens[row]
        whole = model(**appended(batch, row, suffix_of_ids(config, ids)))
        assert whole.path_mask.tolist() == [[True] * (1 + rounds)]
        close(whole.embeddings[0], output.all_embeddings[row])
        close(whole.embeddings[0, 0], direct.embeddings[row])
        assert whole.gate_logits[0, 0].sigmoid() == pytest.approx(output.gate_prob[row].item(), abs=1e-5)


@pytest.mark.parametrize("decode_batch_size", [None, 1, 4])
def test_rows_of_several_batches_think_together_in_every_layout(layout, decode_batch_size, close):
    """Also where a part of what opens a rationale was read with the prompts, of which each batch has other padding."""
    model, processor = built(layout)
    rounds = 2 if layout in TWO_ROUNDS else 1
    options = {"reasoning": "always", "max_reasoning_rounds": rounds, "output_all_embeddings": True}
    batches = [batch_of(processor, TEXTS), batch_of(processor, ["x y z " * 20, "hello"])]
    together = model.embed_batches(batches, decode_batch_size=decode_batch_size, **options)
    for batch, output in zip(batches, together, strict=True):
        alone = model.embed(**batch, **options)
        assert torch.equal(alone.rationale_ids, output.rationale_ids)
        close(alone.all_embeddings, output.all_embeddings)


@pytest.mark.parametrize("layout", ["read before the marker", "an end that is the place"])
def test_pictures_and_every_family(layout, family, mixed, close):
    """What opens a rationale is read with the prompts of a batch: token types, masks and positions go with it."""
    model, processor = built(layout, family)
    batch = batch_of(processor, mixed)
    output = model.embed(**batch, reasoning="always", output_all_embeddings=True)
    direct = model.embed(**batch, reasoning="never")
    close(direct.embeddings, output.all_embeddings[:, 0])
    for row, value in enumerate(mixed):
        ids = [token for token in output.rationale_ids[row].tolist() if token >= 0]
        suffix = suffix_of_ids(model.config, ids)
        whole = append_tokens(model_inputs(batch_of(processor, [value])), [suffix], pad_token_id=0)
        close(model(**whole).embeddings[0], output.all_embeddings[row])


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_every_pooling_reads_before_the_marker(pooling, close):
    model, processor = built("read before the marker", pooling=pooling)
    batch = batch_of(processor, TEXTS)
    output = model.embed(**batch, reasoning="always", output_all_embeddings=True)
    for row in range(len(TEXTS)):
        ids = [token for token in output.rationale_ids[row].tolist() if token >= 0]
        whole = model(**appended(batch, row, suffix_of_ids(model.config, ids)))
        close(whole.embeddings[0], output.all_embeddings[row])
        one = appended(batch, row, [])
        hidden = model(**one).last_hidden_state[:, :-1]  # without the marker
        pooled = model.embedding_head.pool(hidden, torch.ones(hidden.shape[:2]))
        close(model.embedding_head(pooled.mean)[0], output.all_embeddings[row, 0])


@pytest.mark.parametrize("layout", ["our own", "an end that is the place"])
def test_the_greedy_rationale_and_both_vectors_are_those_of_a_plain_loop(layout, close):
    """Of transformers' own `generate`, without anything of this package but the prompt."""
    model, processor = built(layout)
    config, batch = model.config, batch_of(processor, TEXTS)
    output = model.embed(**batch, reasoning="always")
    for row in range(len(TEXTS)):
        start = appended(batch, row, config.opening_ids)
        banned = [
            *config.suppressed_token_ids,
            *range(config.rationale_vocab_size, model.vlm.config.text_config.vocab_size),
        ]
        written = model.vlm.generate(
            **start, do_sample=False, max_new_tokens=config.max_reasoning_tokens, suppress_tokens=banned,
            eos_token_id=config.end_think_token_id, pad_token_id=0,
        )[0, start["input_ids"].shape[1] :].tolist()  # fmt: skip
        written = [token for token in written if token != config.end_think_token_id]
        assert written == [token for token in output.rationale_ids[row].tolist() if token >= 0]
        end = [config.end_think_token_id, *config.closing_ids]
        states = model.vlm.model(**appended(batch, row, [*config.opening_ids, *written, *end])).last_hidden_state[0]
        close(torch.nn.functional.normalize(states[-1], dim=0), output.embeddings[row])
        at = int(batch["attention_mask"][row].sum()) - 1
        direct = torch.nn.functional.normalize(states[at], dim=0)
        close(direct, model.embed(**batch, reasoning="never").embeddings[row])


def test_a_vector_before_a_new_marker_is_the_one_that_the_backbone_had(close):
    vlm, processor = build_tiny_vlm("qwen3_vl")
    prompts = [processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in
               to_conversations(TEXTS)]  # fmt: skip
    states = [
        vlm.model(**processor(text=[prompt], return_tensors="pt")).last_hidden_state[0, -1].detach()
        for prompt in prompts
    ]
    model, processor = MMEmbR1Model.from_vlm(vlm, processor, embed_position="before")
    batch = batch_of(processor, TEXTS)
    before = model.embed(**batch, reasoning="never")
    close(before.embeddings, torch.nn.functional.normalize(torch.stack(states), dim=-1))
    with torch.no_grad():
        model.get_input_embeddings().weight[model.config.embed_token_id].normal_()
    after = model.embed(**batch, reasoning="never")
    assert torch.equal(before.embeddings, after.embeddings)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "gemma3"])
def test_states_before_the_last_norm(family, close):
    """Read by a hook at the norm; for Gemma, whose norm adds 1 to its weight, too."""
    plain, processor = built("our own", family)
    model, _ = built("our own", family, embed_state="unnormed")
    batch, seen = batch_of(processor, TEXTS), []
    hook = model.vlm.get_decoder().norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    direct = model.embed(**batch, reasoning="never").embeddings
    hook.remove()
    close(direct, torch.nn.functional.normalize(seen[0][:, -1], dim=-1))
    assert (direct - plain.embed(**batch, reasoning="never").embeddings).abs().max() > 0.01
    output = model.embed(**batch, reasoning="always")
    ids = [token for token in output.rationale_ids[0].tolist() if token >= 0]
    close(model(**appended(batch, 0, suffix_of_ids(model.config, ids))).embeddings[0, -1], output.embeddings[0])


def test_ways_to_read_that_cannot_be():
    vlm, processor = build_tiny_vlm("qwen3_vl")
    vlm.get_decoder().norm = torch.nn.LayerNorm(vlm.config.text_config.hidden_size)
    with pytest.raises(ValueError, match="ends in LayerNorm, and only what an RMSNorm does can be undone"):
        MMEmbR1Model.from_vlm(vlm, processor, embed_state="unnormed")
    for fields in ({"pooling": "mean"}, {"normalize": False}):
        with pytest.raises(
            ValueError, match='"unnormed" gives the direction .* needs pooling="last" and normalize=True'
        ):
            MMEmbR1Config(embed_state="unnormed", **fields)
    config = MMEmbR1Config(embed_state="unnormed")
    with pytest.raises(ValueError, match="needs pooling"):
        config.normalize = False
    with pytest.raises(ValueError, match=r"embed_token_id=7 stands among opening_token_ids or before the last"):
        MMEmbR1Config(embed_token_id=7, closing_token_ids=[7, 8])
    for opening in ([], [5, 9]):
        with pytest.raises(ValueError, match="has to be at least one id, of which the last does not end a rationale"):
            MMEmbR1Config(end_think_token_id=9, opening_token_ids=opening)
    with pytest.raises(
        ValueError, match="'a long marker' is [0-9]+ tokens for this tokenizer; a marker has to be one"
    ):
        split, processor = build_tiny_vlm("qwen3_vl")
        processor.tokenizer.add_tokens = lambda *args, **kwargs: 0
        MMEmbR1Model.from_vlm(split, processor, Controls.at("a long marker"))


def test_two_spaces_have_one_round():
    with pytest.raises(
        ValueError, match="max_reasoning_rounds=2: this model's reasoned vectors are of a space of their"
    ):
        MMEmbR1Config(spaces=2, max_reasoning_rounds=2)
    model, processor = built("an end that is the place", spaces=2)
    with pytest.raises(ValueError, match="where no further rationale begins; allowed: 1"):
        model.embed(**batch_of(processor, TEXTS), reasoning="always", max_reasoning_rounds=2)


def test_defaults_of_two_spaces_agree_however_they_are_set(tmp_path):
    """Else queries and documents would be of two spaces without a word, or a checkpoint could not be loaded again."""
    config = MMEmbR1Config(spaces=2, reasoning="never")
    config.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="reasoning='always' for queries and document_reasoning='never'"):
        MMEmbR1Config.from_pretrained(tmp_path / "model", reasoning="always")
    both = MMEmbR1Config.from_pretrained(tmp_path / "model", reasoning="always", document_reasoning="always")
    assert (both.reasoning, both.document_reasoning) == ("always", "always")
    config.reasoning = "always"
    with pytest.raises(ValueError, match="both have to be the same"):
        config.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()
    config.document_reasoning = "always"
    config.save_pretrained(tmp_path / "again")
    assert MMEmbR1Config.from_pretrained(tmp_path / "again").reasoning == "always"


def test_a_text_of_a_user_holds_no_marker(layout):
    """Tokens that a tokenizer had are special from then on: what is written like them is plain text."""
    model, processor = built(layout)
    controls = LAYOUTS[layout][0]
    text = "Say " + " and ".join(controls.tokens) + "."
    ids = batch_of(processor, [text])["input_ids"][0]
    assert ids[-1] == model.config.embed_token_id
    own = {model.config.embed_token_id, model.config.end_think_token_id, *model.config.closing_ids[-1:]}
    assert sum(int(token) in own for token in ids) == 1


def test_a_layout_is_saved_and_loaded(layout, tmp_path, close):
    model, processor = built(layout)
    batch = batch_of(processor, TEXTS)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    for reasoning in ("never", "always"):
        before, after = (one.embed(**batch, reasoning=reasoning) for one in (model, loaded))
        close(before.embeddings, after.embeddings)
        assert torch.equal(before.rationale_ids, after.rationale_ids)
    # code from before these fields would read another vector without a word
    assert loaded.config.repository_format == (1 if layout in ("our own", "a token that is there") else 2)
    model.vlm.config.sequential_positions = True
    assert MMEmbR1Config(vlm_config=model.vlm.config).repository_format == 2


def by_hand(config: Any, row: list[int], start: int) -> tuple[list[bool], list[bool]]:
    """Places and chosen tokens of one row, whose marker is at `start`, by reading it from left to right."""
    places, chosen = [False] * len(row), [False] * len(row)
    places[start] = True
    at = start + 1
    while row[at : at + len(config.opening_ids)] == config.opening_ids:
        at += len(config.opening_ids)
        while row[at] != config.end_think_token_id:
            chosen[at] = True
            at += 1
        chosen[at] = True
        at += len(config.closing_ids)
        places[at] = True
        at += 1
    return places, chosen


@pytest.mark.parametrize("rounds", [0, 1, 3])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_places_are_those_that_are_found_from_left_to_right(layout, rounds, padding):
    """Also where the padding is the marker itself, and where a prompt holds the end of a rationale before it."""
    model, processor = built(layout)
    config = model.config
    pad = config.embed_token_id
    prompts = [[50, 51, pad], [config.end_think_token_id, 60, 61, 62, 63, pad]]
    rows, expected = [], []
    for prompt, count in zip(prompts, (rounds, max(rounds - 1, 0)), strict=True):
        row = [*prompt, *(token for number in range(count) for token in suffix_of_ids(config, [70 + number] * number))]
        rows.append(row)
        expected.append(by_hand(config, [*row, 0], len(prompt) - 1))
    width = max(map(len, rows)) + 2
    fill = [width - len(row) for row in rows]
    before = [n if padding == "left" else 0 for n in fill]
    ids = torch.tensor([[pad] * b + row + [pad] * (n - b) for row, n, b in zip(rows, fill, before, strict=True)])
    mask = torch.tensor(
        [[0] * b + [1] * len(row) + [0] * (n - b) for row, n, b in zip(rows, fill, before, strict=True)]
    )
    places = reading_places(config, ids, mask)
    chosen = chosen_places(config, places)
    for row, (here, words) in enumerate(expected):
        kept = mask[row].bool()
        assert places[row][kept].tolist() == here[:-1]
        assert chosen[row][kept].tolist() == words[:-1]
    assert not (places | chosen)[~mask.bool()].any()
    # what follows prompts that were read before
    tails = [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
    if rounds > 1:
        tail = torch.tensor([tails[0]])
        found = reading_places(config, tail, torch.ones_like(tail), read=True)
        assert found[0].tolist() == expected[0][0][len(prompts[0]) : -1]
