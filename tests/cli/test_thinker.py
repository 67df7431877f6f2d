"""`--thinker` of the commands that embed: another model's rationales, whose runs are told apart."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main
from mmemb_r1.cli._options import use_thinker
from mmemb_r1.model_card.sections import measured_on
from mmemb_r1.thinker import NoThought, Thought

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [f"city {number}" for number in range(6)]


class Says:
    def __init__(self, text):
        self.definition = {"kind": "says", "text": text}

    def think(self, inputs, max_tokens):
        for number, value in enumerate(inputs):
            is_bad = value.get("text") == "bad"
            yield number, NoThought("refused.") if is_bad else Thought(self.definition["text"])


@pytest.fixture(autouse=True)
def thinkers(monkeypatch):
    """`my:red` and `my:blue`, thinkers of one's own."""
    module = ModuleType("my")
    module.red, module.blue = Says("red"), Says("blue")
    monkeypatch.setitem(sys.modules, "my", module)
    return module


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def test_encode(tiny_checkpoint, lines, tmp_path, thinkers, capsys):
    command = ["encode", "--model", str(tiny_checkpoint), "--input", str(lines), "--device", "cpu", "--rationales"]
    command += ["--reasoning", "always", "--thinker", "my:red"]
    assert main([*command, "--output", str(tmp_path / "out.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["rationale"] for row in rows] == ["red"] * len(TEXTS)
    model = MMEmbR1(str(tiny_checkpoint), device="cpu", thinker=thinkers.red)
    expected = model.encode(TEXTS, reasoning="always")
    np.testing.assert_allclose([row["embedding"] for row in rows], expected, atol=1e-5)
    assert main([*command, "--output", str(tmp_path / "text.jsonl"), "--thinker-form", "text"]) == 0
    row = json.loads((tmp_path / "text.jsonl").read_text().splitlines()[0])
    np.testing.assert_allclose(row["embedding"], model.encode("city 0\nred", reasoning="never"), atol=1e-5)
    # a folder is of one thinker
    assert main([*command, "--output", f"{tmp_path}/shards/"]) == 0
    command[-1] = "my:blue"
    assert main([*command, "--output", f"{tmp_path}/shards/"]) == 2
    assert "thinker.definition.text was 'red', is now 'blue'" in capsys.readouterr().err


def test_an_input_without_a_rationale_is_told_by_its_line(tiny_checkpoint, lines, tmp_path, capsys):
    lines.write_text('"a"\n\n"bad"\n', encoding="utf-8")
    command = ["encode", "--model", str(tiny_checkpoint), "--input", str(lines), "--device", "cpu"]
    command += ["--reasoning", "always", "--thinker", "my:red"]
    for output in ("out.npy", "shards/"):
        assert main([*command, "--output", f"{tmp_path}/{output}"]) == 2
        assert "line 3 can't be embedded: the thinker has no rationale for it: refused." in capsys.readouterr().err


def test_evaluate(tiny_checkpoint, tmp_path, capsys):
    pairs = [{"query": {"text": text}, "target": {"text": f"in {text}"}} for text in TEXTS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    command = [
        "evaluate",
        "--model",
        str(tiny_checkpoint),
        "--pairs",
        str(tmp_path / "pairs.jsonl"),
        "--device",
        "cpu",
    ]
    command += ["--output", str(tmp_path / "run"), "--rationales", "--modes", "never,always", "--thinker", "my:red"]
    assert main(command) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["config"]["thinker"] == {"definition": {"kind": "says", "text": "red"}, "form": "tokens"}
    assert results["config"]["max_reasoning_rounds"] == 1
    assert "rationales by says, read as tokens" in measured_on(results)
    capsys.readouterr()
    for other in (["--thinker", "my:blue"], ["--thinker", "my:red", "--thinker-form", "text"]):
        assert main([*command, *other]) == 2
        assert "thinker" in capsys.readouterr().err


def test_index_and_search(tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "table.jsonl").write_text(
        "".join(json.dumps({"id": text, "text": text}) + "\n" for text in TEXTS), encoding="utf-8"
    )
    index = str(tmp_path / "index")
    build = ["index", str(tmp_path / "table.jsonl"), "--model", str(tiny_checkpoint), "--index", index]
    build += ["--device", "cpu", "--reasoning", "always"]
    assert main([*build, "--thinker", "my:red"]) == 0
    assert main([*build, "--thinker", "my:blue"]) == 2
    assert "thinker.definition.text was 'red', is now 'blue'" in capsys.readouterr().err
    search = ["search", "city 3", "--index", index, "--device", "cpu", "--reasoning", "always", "--json"]
    assert main([*search, "--thinker", "my:red"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rationale"], found["hits"][0]["id"]) == ("red", "city 3")
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-4)


def test_calibrate(tiny_checkpoint, lines, capsys):
    command = ["calibrate", "--model", str(tiny_checkpoint), "--input", str(lines), "--device", "cpu", "--dry-run"]
    assert main([*command, "--target-tokens", "100", "--thinker", "my:red"]) == 0
    model = MMEmbR1(str(tiny_checkpoint), device="cpu")
    count = len(model.tokenizer("red", add_special_tokens=False)["input_ids"])
    assert f"{count:.2f} rationale tokens per input" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "value"), [("--thinker", "my:red"), ("--thinker-form", "text")])
def test_several_workers_ask_nobody(option, value, tiny_checkpoint, lines, tmp_path, capsys):
    command = ["encode", "--model", str(tiny_checkpoint), "--input", str(lines), "--output", f"{tmp_path}/shards/"]
    assert main([*command, "--ray", option, value]) == 2
    assert f"{option} is for one process; leave it out with --ray" in capsys.readouterr().err


def test_what_can_not_think_has_no_thinker():
    with pytest.raises(ValueError, match="--thinker is for mmemb-r1 checkpoints, and this is a SimpleNamespace"):
        use_thinker(SimpleNamespace(), SimpleNamespace(thinker="my:red", thinker_form=None))
