"""Recipes are data: what a file may say, and that its prompt is the published one."""

from __future__ import annotations

import pytest
from jinja2.exceptions import TemplateError
from tests.recipes.conftest import NAMES
from tests.recipes.written import ASKED, PROMPTS

from mmemb_r1.recipes import known_recipes, load_recipe
from mmemb_r1.recipes.plain import plain_prompt
from mmemb_r1.recipes.template import prompt_template
from mmemb_r1.tiny import build_tiny_vlm

TEXTS = ("Lima", "", "two\nlines  ", "{{ 1 }} {% x %} \\n ' \" 赤")
INSTRUCTIONS = (None, "Find it", "  Find it \n", "Find it?", "Find 「it」", "a+b", "{role}")


@pytest.fixture(scope="module")
def processor():
    return build_tiny_vlm("qwen2_vl")[1]


def chat(text, pictures, instruction):
    parts = [{"type": "image"}] * pictures + [{"type": "text", "text": text}]
    system = [{"role": "system", "content": [{"type": "text", "text": instruction}]}] if instruction else []
    return [*system, {"role": "user", "content": parts}]


@pytest.mark.parametrize("name", NAMES)
def test_both_writings_of_a_prompt_are_the_published_one(name, processor):
    recipe = load_recipe(name)
    new = "<|embed|>" if recipe.read.position == "before" else ""
    for text in TEXTS:
        for pictures in (0, 1, 2):
            for instruction in INSTRUCTIONS:
                if not text and not pictures and not (instruction and recipe.prompt.instruction == "text"):
                    continue  # said below
                value = {"text": text, "image": [None] * pictures, "instruction": instruction}
                wanted = PROMPTS[name](text, pictures, instruction)
                assert plain_prompt(recipe, value) == wanted
                messages = [chat(text, pictures, instruction)]
                rendered = processor.apply_chat_template(messages, chat_template=prompt_template(recipe))
                assert rendered == [wanted + new]


def test_nothing_is_null_for_qwen3(processor):
    template = prompt_template(load_recipe("qwen3-vl-embedding"))
    assert "user\nNULL<|im_end|>" in processor.apply_chat_template([chat("", 0, None)], chat_template=template)[0]


def test_parts_are_ordered_where_the_text_comes_last_and_kept_elsewhere(processor):
    template = prompt_template(load_recipe("qwen3-vl-embedding"))
    image, video, text = ({"type": "image"}, {"type": "video"}, {"type": "text", "text": "x"})
    for parts, wanted in {
        (0, 1, 2): "<|video_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>x",
        (0, 2, 1): "<|image_pad|><|vision_end|>x<|vision_start|><|video_pad|>",
    }.items():
        content = [(image, video, text)[place] for place in parts]
        messages = [[{"role": "user", "content": content}]]
        assert wanted in processor.apply_chat_template(messages, chat_template=template)[0]


def test_a_chat_of_several_turns(processor):
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        {"role": "user", "content": "c"},
    ]
    rendered = processor.apply_chat_template([turns], chat_template=prompt_template(load_recipe("gme-qwen2-vl")))
    assert rendered[0].endswith(
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
        "<|im_start|>assistant\n<|endoftext|>"
    )
    with pytest.raises(TemplateError, match="no form for turns"):
        processor.apply_chat_template([turns], chat_template=prompt_template(load_recipe("vlm2vec-v2")))
    with pytest.raises(TemplateError, match="type audio is not known; allowed: text, image, video"):
        audio = [[{"role": "user", "content": [{"type": "audio"}]}]]
        processor.apply_chat_template(audio, chat_template=prompt_template(load_recipe("wemm")))


def test_what_ume_r1_is_asked():
    assert load_recipe("ume-r1").thought.opening == load_recipe("rime").thought.opening == ASKED


def test_every_known_recipe_says_where_it_is_from():
    assert set(known_recipes()) == set(NAMES)
    for name in known_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.source.startswith("http") and recipe.recognise


WRONG = {
    "source: x\nprompt: {ending: ''}\nread: {marke: <emb>}": r"'read.marke' is not known.*marker",
    "source: x": "'prompt' is missing",
    "source: x\nprompt: {ending: '', system: '  '}": "prompt.system is blank",
    "source: x\nprompt: {ending: ''}\nspaces: 3": "spaces is 3; allowed: 1, 2",
    "source: x\nprompt: {ending: ''}\nspaces: two": "spaces is 'two', of type str; allowed: int",
    "source: x\nprompt: {ending: ''}\nread: {position: after}": "read.position is 'after'; allowed: marker, before",
    "source: x\nprompt: {ending: '', order: [text, image]}": "allowed: image, text, video, each once",
    "source: x\nprompt: {ending: '', turn_start: '<|im_start|>user'}": "has no {role}",
    "source: x\nprompt: {ending: ''}\npixels: {least: 9, most: 4}": "0 < least <= most",
    "source: x\nprompt: {ending: ''}\nrecognise: [{}]": "would fit every checkpoint",
    "source: x\nprompt: {ending: ''}\nrecognise: [{tokens: <emb>}]": r"recognise\[0\].tokens is '<emb>'; allowed: a l",
    "- a": "allowed: keys and their values",
}


@pytest.mark.parametrize("content", WRONG)
def test_what_is_wrong_with_a_file_is_said(content, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=WRONG[content]) as error:
        load_recipe(file)
    assert str(error.value).startswith(str(file))


def test_an_unknown_recipe():
    with pytest.raises(ValueError, match="There is no recipe 'ume-r2', .*known: embed-rl, .*; did you mean 'ume-r1'"):
        load_recipe("ume-r2")
