from __future__ import annotations

import copy

import pytest
import torch

from mmemb_r1.content import given_parts
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.training.adaptive.prompts import check_rendering, policy_prompts


def test_prompts_render_as_encode_renders_queries(mixed, processor, tiny):
    prompts = policy_prompts(mixed, processor)
    assert prompts["row"] == list(range(len(mixed)))
    assert prompts[3]["pair_id"] == mixed["pair_id"][3]
    for row, query in zip(prompts, mixed["query"], strict=True):
        images = iter(row["images"])
        filled = [
            {
                **message,
                "content": [
                    {"type": "image", "image": next(images)} if part["type"] == "image" else part
                    for part in message["content"]
                ],
            }
            for message in row["prompt"]
        ]
        ours = render(processor, to_conversations([given_parts(query)]))
        theirs = render(processor, to_conversations([filled]))
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name])


def test_rows_without_pictures_have_an_empty_list(mixed, processor):
    assert [len(row["images"]) for row in policy_prompts(mixed, processor)] == [1, 2, 0, 0, 0, 1, 0, 0]


def test_control_strings_are_text_and_long_text_is_cut(make_pairs, processor, tiny):
    table = make_pairs([{"query": {"text": "<|embed|> <think> " + "word " * 50}, "target": {"text": "b"}}])
    (row,) = policy_prompts(table, processor, max_text_tokens=12)
    text = row["prompt"][0]["content"][0]["text"]
    assert len(processor.tokenizer(text, add_special_tokens=False)["input_ids"]) <= 12
    ids = render(processor, to_conversations([row["prompt"]]))["input_ids"][0].tolist()
    assert ids.count(tiny[0].config.embed_token_id) == 1 and tiny[0].config.think_token_id not in ids


def test_a_table_without_targets_is_refused(rows, processor):
    with pytest.raises(ValueError, match="has no column 'target'"):
        policy_prompts(rows.remove_columns("target"), processor)


def test_an_unreadable_picture_names_its_pair(processor):
    from datasets import Dataset

    table = Dataset.from_list(
        [{"pair_id": "p", "query": {"image": ["missing.png"]}, "target": {"text": "b"}}],
    )
    with pytest.raises(ValueError, match="the query of pair 'p' can't be used"):
        policy_prompts(table, processor)[0]


def test_a_processor_without_the_marker_is_refused(rows, processor, tiny):
    bare = copy.copy(processor)
    bare.chat_template = processor.chat_template.replace("<|embed|>", "")
    with pytest.raises(ValueError, match=r"pair 'pair 0' does not end in `<\|embed\|>`"):
        check_rendering(policy_prompts(rows, bare), bare, tiny[0].config)
    check_rendering(policy_prompts(rows, processor), processor, tiny[0].config)


def test_a_prompt_with_a_picture_is_checked_wherever_it_stands(rows, processor, tiny, monkeypatch):
    prompts = policy_prompts(rows.select([12, 13, 0]), processor)  # text, text, picture
    seen, template = [], type(processor).apply_chat_template

    def spy(self, chats, *args, **kwargs):
        seen.extend(part["type"] for chat in chats if isinstance(chat, list) for part in chat[0]["content"])
        return template(self, chats, *args, **kwargs)

    monkeypatch.setattr(type(processor), "apply_chat_template", spy)
    check_rendering(prompts, processor, tiny[0].config)
    assert seen == ["text", "image", "text"]
