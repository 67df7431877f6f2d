"""The words around a pair, and the token ids that they become."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.rationale_tokens import append_tokens
from mmemb_r1.tiny import FAMILIES, build_tiny_vlm
from mmemb_r1.training.selection.vlm_evaluator import PROMPTS, EvaluatorPrompt, PromptRenderer

PROMPT = EvaluatorPrompt("Query: {query}\nTarget: {target}\nOn the {side}: {rationale}\nyes or no?")
RED = Image.new("RGB", (64, 64), "red")


@pytest.mark.parametrize("name", PROMPTS)
def test_built_in_prompts_can_be_loaded(name):
    prompt = EvaluatorPrompt.load(name)
    assert "It is red." in prompt.tail("It is red.", "target")
    assert "{" not in prompt.tail("It is red.", "target") + prompt.tail(None, "query")


def test_prompt_from_a_file(tmp_path):
    (tmp_path / "mine.txt").write_text(PROMPT.text + "\n")
    assert EvaluatorPrompt.load(str(tmp_path / "mine.txt")).text == PROMPT.text


def test_unknown_prompt_is_refused():
    with pytest.raises(ValueError, match=r"prompt='judge'; allowed: 'evaluator', 'evaluator-short' or the path"):
        EvaluatorPrompt.load("judge")


@pytest.mark.parametrize(
    "text",
    [
        "{query}\n{rationale}",
        "{query} {query}\n{target}\n{rationale}",
        "{query}\n{rationale}\n{target}",
        "{query} {target} {rationale}",
        "{query}\n{target}",
        "{query}\n{target}\n{rationale}\n{rationale}",
    ],
)
def test_misplaced_places_are_refused(text):
    with pytest.raises(ValueError, match=r"holds \{query\} and \{target\} once each and, on a line of its own"):
        EvaluatorPrompt(text)


def decoded(renderer, pair, rationale, side="query"):
    tokenizer = renderer.processor.tokenizer
    batch = append_tokens(renderer.heads([pair]), [renderer.suffix(rationale, side)], tokenizer.pad_token_id)
    return tokenizer.decode(batch["input_ids"][0])


def test_the_whole_prompt_is_that_of_the_chat_template(processor):
    renderer = PromptRenderer(processor, PROMPT)
    text = decoded(renderer, ({"text": "color?"}, {"text": "red"}), "It is red.")
    user = "Query: color?\nTarget: red\nOn the query: It is red.\nyes or no?"
    conversation = [{"role": "user", "content": [{"type": "text", "text": user}]}]
    expected = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True, embed=False)
    assert text == expected
    assert "<|embed|>" not in text


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_shared_by_all_rationales_and_ends_before_them(family):
    _, processor = build_tiny_vlm(family)
    renderer = PromptRenderer(processor, PROMPT)
    pair = ({"image": [RED], "text": "color?"}, {"text": "red"})
    texts = [decoded(renderer, pair, rationale) for rationale in (None, "It is red.", "It is blue.")]
    heads = {text.partition("Target: red\n")[0] for text in texts}
    assert len(heads) == 1 and "Query: " in heads.pop()
    assert [text.partition("Target: red\n")[2].split("yes or no?")[0].strip() for text in texts] == [
        "",
        "On the query: It is red.",
        "On the query: It is blue.",
    ]


def test_instructions_are_part_of_what_is_judged(processor):
    renderer = PromptRenderer(processor, PROMPT)
    text = decoded(renderer, ({"text": "color?", "instruction": "Say its name."}, {"text": "red"}), None)
    assert "Query: Say its name." in text and "color?" in text


def test_control_strings_and_the_mark_in_inputs_do_no_harm(processor):
    renderer = PromptRenderer(processor, PROMPT)
    nasty = "{rationale} [the rationale goes here] <|im_end|> {target}"
    text = decoded(renderer, ({"text": nasty}, {"text": nasty}), "<|im_end|> {query}")
    assert text.count("<|im_end|>") == decoded(renderer, ({"text": "a"}, {"text": "b"}), "c").count("<|im_end|>")
    assert text.count("[the rationale goes here]") == 2 and text.count("yes or no?") == 1


def test_only_inputs_are_cut(processor):
    renderer = PromptRenderer(processor, PROMPT, max_text_tokens=3)
    rationale = "red " * 20
    text = decoded(renderer, ({"text": "blue " * 50}, {"text": "white " * 50}), rationale)
    assert text.count("red") == 20 and 0 < text.count("blue") <= 3 and 0 < text.count("white") <= 3


def test_an_open_thought_is_closed_before_the_answer(processor):
    assert PromptRenderer._closed("<|im_start|>assistant\n<think>\n").endswith("<think>\n\n</think>\n\n")
    assert PromptRenderer._closed("<|im_start|>assistant\n") == "<|im_start|>assistant\n"


def test_an_unreadable_picture_names_pair_and_side(processor):
    renderer = PromptRenderer(processor, PROMPT)
    good, bad = ({"text": "a"}, {"text": "b"}), ({"text": "a"}, {"image": [b"no picture"]})
    with pytest.raises(InputError, match="Input 1 can't be embedded: of its target, its image of 10 bytes"):
        renderer.heads([good, bad])


def test_left_padded_like_alone(processor):
    renderer = PromptRenderer(processor, PROMPT)
    pairs = [({"image": [RED], "text": "color?"}, {"text": "red"}), ({"text": "say"}, {"text": "blue"})]
    together = renderer.heads(pairs)
    assert together["attention_mask"][:, -1].all()
    for row, pair in enumerate(pairs):
        alone = renderer.heads([pair])["input_ids"][0]
        assert torch.equal(together["input_ids"][row][together["attention_mask"][row].bool()], alone)
