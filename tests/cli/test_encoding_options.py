"""Options of encoding: said and checked by the one table, in every command that embeds."""

from __future__ import annotations

import pytest

from mmemb_r1.cli import COMMANDS, _parser, main
from mmemb_r1.modeling.options_mmemb_r1 import FIELDS, OPTIONS, describe_option

RULES = FIELDS | OPTIONS
EMBED = ("encode", "evaluate", "diagnose", "calibrate")
# Flags of that name that mean something of their own; that of a second look turns it off.
ELSEWHERE = ("rationales", "document_reasoning", "second_look")


def options_of(command):
    subparsers = next(action for action in _parser([command])._actions if action.dest == "command")
    return {action.dest: action for action in subparsers.choices[command]._actions}


@pytest.mark.parametrize("command", EMBED)
def test_help_is_that_of_the_table(command):
    found = {name: action for name, action in options_of(command).items() if name in RULES and name not in ELSEWHERE}
    assert "batch_size" in found
    for name, action in found.items():
        assert action.help.startswith(describe_option(name, RULES)), name
        assert tuple(action.choices or ()) == RULES[name].choices, name


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--batch-size", "0", "batch_size=0 (inputs read at once) has to be one whole number of at least 1."),
        ("--batch-size", "1.5", "batch_size='1.5' (inputs read at once) has to be one whole number of at least 1."),
        ("--max-reasoning-tokens", "-3", "max_reasoning_tokens=-3 (budget of one rationale) has to be"),
        ("--max-reasoning-rounds", "many", "max_reasoning_rounds='many' (how often one input may think) has to be"),
        ("--gate-threshold", "nan", "has to be a number from 0 to 1."),
        ("--gate-threshold", "2", "has to be a number from 0 to 1."),
    ],
)
def test_a_value_is_refused_before_a_model_is_loaded(option, value, told, capsys):
    asked = {"encode": ["--input", "in", "--output", "out.npy"], "evaluate": ["--atlas", "x"]}
    for command, arguments in asked.items():
        with pytest.raises(SystemExit) as end:
            main([command, "--model", "no/model", *arguments, option, value])
        assert end.value.code == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--max-reasoning-tokens", "--max-reasoning-rounds"])
def test_more_than_the_context_is_refused(option, tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('"Lima"\n', encoding="utf-8")
    arguments = ["--model", str(tiny_checkpoint), "--input", str(tmp_path / "in.jsonl"), "--reasoning", "always"]
    for output in ("out.npy", "out/"):
        assert main(["encode", *arguments, "--output", f"{tmp_path}/{output}", option, str(10**9)]) == 2
        assert "is more than the model's context of 2048 tokens; give less" in capsys.readouterr().err


def test_all_commands_are_known():
    assert set(EMBED) <= set(COMMANDS)


ROUNDS = "train rounds --model m --pairs p --policy-pairs p --eval-pairs p --pool y --evaluator e --output o".split()


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["encode", "--model", "m", "--input", "i", "--output", "o.npy", "--batchsize=3"], "--batch-size"),
        ([*ROUNDS, "--jointconfig", "x"], "--joint-config"),
        (["pairs", "check", "t", "--model", "m", "--worker-count", "3"], "--workers"),
        (["atlas", "build", "--output", "o", "--sede", "3"], "--seed"),
    ],
)
def test_an_unknown_option_is_told_the_nearest_one(arguments, near, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    error = capsys.readouterr().err
    assert f"did you mean '{near}'" in error
