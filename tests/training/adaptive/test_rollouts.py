from __future__ import annotations

import copy

import pytest
import torch
from PIL import Image

from mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.decoding_mmemb_r1 import prefill
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.rationale_tokens import append_tokens
from mmemb_r1.tiny import FAMILIES, build_tiny_vlm
from mmemb_r1.training.adaptive.forward import PolicyForward
from mmemb_r1.training.adaptive.rollouts import as_columns, embed_after, loss_mask, read_group, roll_out

BUDGET, THOUGHTS = 5, 3


def prompts(processor):
    inputs = [{"image": Image.new("RGB", (64, 64), "red"), "text": "color?"}, {"text": "say blue"}]
    return dict(render(processor, to_conversations(inputs)))


def rolled(model, batch, rounds=1, temperature=1.0, num_direct=0):
    generator = torch.Generator().manual_seed(3)
    return roll_out(
        model,
        batch,
        THOUGHTS,
        num_direct=num_direct,
        max_tokens=BUDGET,
        max_rounds=rounds,
        temperature=temperature,
        generator=generator,
    )


def whole(model, processor, batch, group):
    """The prompts again for each rollout, with what was thought, as a trainer reads them."""
    rows = torch.arange(len(batch["input_ids"])).repeat_interleave(THOUGHTS)
    per_token = {key: value[rows] for key, value in batch.items() if value.shape == batch["input_ids"].shape}
    pictures = {key: torch.cat([value] * THOUGHTS) for key, value in batch.items() if key not in per_token}
    return append_tokens({**per_token, **pictures}, group.rationales, processor.tokenizer.pad_token_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_embed_as_whole_sequences_do(family):
    model, processor = MMEmbR1Model.from_vlm(*build_tiny_vlm(family))
    batch = prompts(processor)
    group = rolled(model, batch)
    with torch.no_grad():
        output = model(**whole(model, processor, batch, group))
    torch.testing.assert_close(group.reasoned, output.embeddings[:, -1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        group.direct.repeat_interleave(THOUGHTS, dim=0), output.embeddings[:, 0], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        group.gate_logits.repeat_interleave(THOUGHTS), output.gate_logits[:, 0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_another_model_reads_what_was_thought(pooling, rounds):
    model, processor = MMEmbR1Model.from_vlm(*build_tiny_vlm("qwen3_vl"), pooling=pooling, gate_init_bias=1.0)
    batch = prompts(processor)
    group = rolled(model, batch, rounds)
    media = {key: value for key, value in batch.items() if key not in ("input_ids", "attention_mask")}
    with torch.no_grad():
        context = prefill(model.vlm, model.embedding_head, batch["input_ids"], batch["attention_mask"], True, **media)
    rows = torch.arange(2).repeat_interleave(THOUGHTS)
    read = embed_after(copy.deepcopy(model), context, rows, group.rationales)
    for found, expected in zip(read_group(model, batch, group), (group.direct, group.reasoned), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read, group.reasoned, rtol=1e-4, atol=1e-4)


def test_a_group_reads_its_prompt_and_pictures_once(vivid, processor):
    batch, seen = prompts(processor), []
    vivid.vlm.base_model.visual.register_forward_hook(lambda *_: seen.append("pictures"))
    vivid.vlm.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    rolled(vivid, batch)
    assert seen.count("pictures") == 1
    assert seen[0] == tuple(batch["input_ids"].shape)
    assert {shape[1] for shape in seen[2:]} == {1}  # everything else is a token at a time


def test_rollouts_of_a_prompt_differ(vivid, processor):
    group = rolled(vivid, prompts(processor))
    assert len({tuple(thought) for thought in group.rationales[:THOUGHTS]}) > 1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rounds", [1, 2])
def test_log_probabilities_are_those_that_were_drawn_from(vivid, processor, temperature, rounds):
    """By hand: the gate's sigmoid for decisions, a masked softmax for tokens, one token at a time."""
    batch = prompts(processor)
    vivid.config.suppressed_token_ids = [*vivid.config.suppressed_token_ids, 40, 41]
    group = rolled(vivid, batch, rounds, temperature)
    config, eos = vivid.config, processor.tokenizer.eos_token_id
    ends = [[*thought, eos] for thought in group.rationales]
    inputs = whole(vivid, processor, batch, group._replace(rationales=ends))
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    starts = inputs["attention_mask"].sum(dim=1) - torch.tensor([len(end) for end in ends])
    for row, start in enumerate(starts.tolist()):
        labels[row, :start] = -100
    policy = PolicyForward(vivid, config, temperature)
    with torch.no_grad():
        found = policy(labels=labels, fused_lm_head=True, **inputs)
        hidden = vivid(**inputs).last_hidden_state
    banned = set(config.suppressed_token_ids) | set(range(config.rationale_vocab_size, 10**6))
    allowed = [i for i in range(vivid.get_output_embeddings().weight.shape[0]) if i not in banned]
    decisions = 0
    for row, (start, end) in enumerate(zip(starts.tolist(), ends, strict=True)):
        for place, token in enumerate(end):
            state, found_here = hidden[row, start + place - 1], found.log_probs[row, start + place]
            before = inputs["input_ids"][row, start + place - 1]
            if before == config.embed_token_id:
                p = (vivid.gate(state) / temperature).sigmoid()
                expected = (p if token == config.think_token_id else 1 - p).log()
                decisions += 1
            elif token == config.embed_token_id:
                expected = torch.tensor(0.0)
            else:
                logits = vivid.get_output_embeddings()(state) / temperature
                expected = logits[token] - logits[allowed].logsumexp(0)
            torch.testing.assert_close(found_here, expected, rtol=1e-3, atol=1e-4)
    assert decisions >= 2 * len(ends)  # the first, and the last of each
    assert len(policy.outputs) == 1


def test_entropies(vivid, processor):
    batch = prompts(processor)
    with torch.no_grad():
        vivid.get_output_embeddings().weight.zero_()  # every token is as likely as any other
        vivid.gate.output.weight.zero_()
        vivid.gate.output.bias.zero_()
    group = rolled(vivid, batch)
    inputs = whole(vivid, processor, batch, group)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    lengths = torch.tensor([len(thought) for thought in group.rationales])
    for row, start in enumerate((inputs["attention_mask"].sum(dim=1) - lengths).tolist()):
        labels[row, :start] = -100
    found = PolicyForward(vivid, vivid.config, 1.0)(labels=labels, **inputs)
    size = min(vivid.get_output_embeddings().weight.shape[0], vivid.config.rationale_vocab_size)
    free = torch.tensor(float(size - len(vivid.config.suppressed_token_ids)))
    start = int((inputs["attention_mask"].sum(dim=1) - lengths)[0])
    assert found.entropy[0, start].item() == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-5)
    assert found.entropy[0, start + 1].item() == pytest.approx(free.log().item(), rel=1e-5)
    assert not found.entropy[0, :start].any()


def test_what_was_forced_carries_no_loss(model):
    think, end, embed = model.config.think_token_id, model.config.end_think_token_id, model.config.embed_token_id
    ended = [think, 40, 41, end, embed]
    spent = [think, 40, 41, 42, end, embed]
    assert loss_mask([], model.config, 3, 1) == [1]
    assert loss_mask(ended, model.config, 3, 1) == [1, 1, 1, 1, 0, 0]  # the last end is forced: one round is allowed
    assert loss_mask(spent, model.config, 3, 1) == [1, 1, 1, 1, 0, 0, 0]
    assert loss_mask(ended, model.config, 3, 2) == [1, 1, 1, 1, 0, 1]  # it might have gone on thinking
    assert loss_mask(ended + spent, model.config, 3, 2) == [1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0]


def test_columns_stand_in_the_order_of_groups(vivid, processor):
    group = rolled(vivid, prompts(processor), num_direct=1)
    eos = processor.tokenizer.eos_token_id
    columns = as_columns(group, vivid.config, eos, BUDGET, 1)
    assert columns["reasoned"] == [False, True, True, True] * 2
    thoughts = [ids[:-1] for ids in columns["completion_ids"] if len(ids) > 1]
    assert thoughts == group.rationales
    assert columns["completion_ids"][0] == columns["completion_ids"][4] == [eos]
    assert columns["num_reasoning_tokens"][1:4] == group.num_tokens[:3].tolist()
    assert columns["truncated"][1:4] == [bool(n) for n in group.num_forced[:3].tolist()]
    assert [len(mask) for mask in columns["env_mask"]] == [len(ids) for ids in columns["completion_ids"]]
    assert columns["reasoning_budget"] == [BUDGET] * 8
