from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.tiny import FAMILIES, build_tiny_vlm
from mmemb_r1.training.rationales.prompting import STYLES, Style, load_style, parse_rationale, request_conversation
from mmemb_r1.training.rationales.worker import RationaleRequest

THINKING = Style("t", "Think.", thinking=True)
INSTRUCT = Style("i", "Explain.", thinking=False)
RED = Image.new("RGB", (40, 30), "red")


def conversation(style: Style = INSTRUCT, side: str = "query", **fields: object) -> list[dict]:
    return request_conversation(style, RationaleRequest(fields, side, (0,)))


def test_the_styles_of_the_package_say_what_their_rationale_is() -> None:
    assert {name: load_style(name).thinking for name in STYLES} == {"instruct": False, "thinking": True}
    for name in STYLES:
        style = load_style(name)
        assert style.name == name
        assert style.template and not style.template.startswith("#")


def test_a_style_can_be_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "terse.txt"
    file.write_text("# rationale: reasoning\n\nBe terse.\n")
    assert load_style(file) == load_style(str(file)) == Style("terse", "Be terse.", thinking=True)


def test_what_a_style_is_called_does_not_count(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("# rationale: answer\nBe terse.")
    assert load_style(tmp_path / "a.txt").definition == load_style(tmp_path / "b.txt").definition


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Be terse.", "begins with 'Be terse.'; its first line has to be one of: '# rationale: answer'"),
        ("# rationale: answer\n \n", "has no text after its first line"),
        (b"\xff\xfe\xff", "can't be read"),
        (None, "can't be read"),
    ],
)
def test_a_bad_style_file_is_refused(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    file = tmp_path / "bad.txt"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        load_style(file)


def test_an_unknown_style_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ValueError, match="no style 'verbose'. Allowed: instruct, thinking, or the path of a .txt file"
    ):
        load_style("verbose")


def test_the_style_is_the_system_turn_and_the_input_the_users() -> None:
    system, user = conversation(text="a flag", image=RED)
    assert system == {"role": "system", "content": [{"type": "text", "text": "Explain."}]}
    assert user["role"] == "user"
    assert [part["type"] for part in user["content"]] == ["image", "text"]
    assert user["content"][1]["text"] == "a flag"


def test_an_inputs_own_instruction_goes_into_the_users_turn() -> None:
    system, user = conversation(text="a flag", instruction="Find the country.")
    assert system["content"][0]["text"] == "Explain."
    assert "".join(part["text"] for part in user["content"]) == "Task: Find the country.\na flag"


def test_both_sides_are_asked_alike() -> None:
    assert conversation(side="query", text="Peru") == conversation(side="target", text="Peru")


def test_parts_that_are_none_are_not_there() -> None:
    assert conversation(text="Peru", image=None, video=None, instruction=None) == conversation(text="Peru")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": ""}, "it is empty"),
        ({"instruction": "Find it."}, "it is empty"),
        ({"text": "a", "instruction": 7}, "type int; allowed: a string"),
        ({"image": b"no picture"}, "can't be read"),
        ({"image": "nowhere.png"}, "no image file 'nowhere.png'"),
    ],
)
def test_an_input_that_can_not_be_used_says_why(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        conversation(**fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_template_takes_the_messages(family: str) -> None:
    processor = build_tiny_vlm(family)[1]
    chat = conversation(load_style("instruct"), text="a flag", image=RED, instruction="Find the country.")
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert "pixel_values" in inputs


@pytest.mark.parametrize(
    ("output", "reasoning", "answer"),
    [
        ("<think>\na b\n</think>\n\nc", "a b", "c"),
        ("a b\n</think>\n\nc", "a b", "c"),  # the template opened it
        ("<think>a b", "a b", ""),  # the budget cut it
        ("a b", "a b", "a b"),
        ("hm <think>a</think> b <think>c</think> d", "a", "hm b d"),
        ("<think></think> c", "", "c"),
        ("<think></think>", "", ""),
        ("", "", ""),
        ("<thinking>a</thinking>b", "a", "b"),
        ("[THINK]a[/THINK]b", "a", "b"),
        ("◁think▷a◁/think▷b", "a", "b"),
        ("<think><think>a</think>b</think>", "a", "b"),
        ("a < b and b > c", "a < b and b > c", "a < b and b > c"),
    ],
)
def test_reasoning_and_answers_are_told_apart(output: str, reasoning: str, answer: str) -> None:
    assert parse_rationale(output, THINKING) == reasoning
    assert parse_rationale(output, INSTRUCT) == answer
