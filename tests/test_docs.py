"""The documents of the repository: complete, and about the project alone."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess

import pytest
import yaml
from PIL import Image

import mmemb_r1
from mmemb_r1.cli import COMMANDS, _parser
from mmemb_r1.cli._training import _field_flags

DOCUMENTS = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md")
# Absolute paths of somebody's machine; a leading character that is part of a longer path or of a URL is none.
PRIVATE_PATH = re.compile(r"(?<![\w./:-])/(home|root|work|Users|opt|mnt|media)/\w")


@pytest.fixture(scope="module")
def tracked(root):
    """Text files that a commit would hold; those on disk where there is no git, as in an unpacked sdist."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True, text=True
    )
    files = [root / name for name in listing.stdout.splitlines()] if listing.returncode == 0 else root.rglob("*")
    text = {".cfg", ".cff", ".json", ".md", ".py", ".toml", ".txt", ".yml", ".yaml", ""}
    return [file for file in files if file.is_file() and file.suffix in text]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document_exists(root, name):
    assert (root / name).read_text(encoding="utf-8").strip()


FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_EXAMPLES = (
    "README.md",
    "docs/adaptive.md",
    "docs/checkpoints.md",
    "docs/corpora.md",
    "docs/deciding.md",
    "docs/diagnose.md",
    "docs/evaluation.md",
    "docs/first-steps.md",
    "docs/inputs.md",
    "docs/metrics.md",
    "docs/public-data.md",
    "docs/rationales.md",
    "docs/search.md",
    "docs/speed.md",
    "docs/thinker.md",
    "docs/train-your-pairs.md",
    "docs/training.md",
    "docs/vllm.md",
)


@pytest.fixture
def desk(tiny_checkpoint, tmp_path, monkeypatch):
    """A folder in which the names that documents use are there: an untrained checkpoint, and a picture."""
    for name in ("org/mmemb-r1", "runs/quickstart/model"):
        shutil.copytree(tiny_checkpoint, tmp_path / name)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "runs/quickstart/flag.png")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run_and_print_what_they_say(name, root, capsys, desk):
    blocks = [code for language, code in FENCE.findall((root / name).read_text(encoding="utf-8")) if language]
    assert blocks
    for block in blocks:
        exec(compile(block, name, "exec"), {})
        printed = capsys.readouterr().out.splitlines()
        promised = re.findall(r"^# => (.*)$", block, re.MULTILINE)
        assert [line for line in printed if promised and not line.startswith("{")] == promised  # a trainer's logs


def test_every_example_is_run(root):
    """Code in other languages than Python is indented; a document with its first example goes into the list above."""
    found = set()
    for file in [root / "README.md", *(root / "docs").glob("*.md")]:
        languages = {language for language, _ in FENCE.findall(file.read_text(encoding="utf-8"))}
        assert languages <= {"python"}, f"{file.name}: a block that no test runs"
        found |= {file.relative_to(root).as_posix()} if languages else set()
    # whose examples tests/integrations, tests/ray and tests/serving run
    elsewhere = {"docs/integrations.md", "docs/scale.md", "docs/serve.md"}
    assert found == {*WITH_EXAMPLES, *elsewhere}


def test_every_page_is_in_the_navigation_of_the_site(root):
    """A new page goes into `nav` of mkdocs.yml, and nothing is there that does not exist."""

    def pages(entry):
        if isinstance(entry, dict | list):
            inner = entry.values() if isinstance(entry, dict) else entry
            return [page for one in inner for page in pages(one)]
        return [entry]

    named = pages(yaml.safe_load((root / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    generated = {"docs/commands/", "docs/reference/", "examples/recipes.md"}
    written = {page.relative_to(root).as_posix() for page in (root / "docs").rglob("*.md")}
    written |= {name for name in DOCUMENTS if name.endswith(".md")}
    assert len(named) == len(set(named))
    assert set(named) - generated == written, "nav of mkdocs.yml and docs/ differ"
    assert generated <= set(named)


def test_where_a_checkpoint_is_named_it_is_said_that_none_is_published(root):
    for file in [root / "README.md", *(root / "docs").glob("*.md")]:
        text = file.read_text(encoding="utf-8")
        assert "org/mmemb-r1" not in text or "no trained weights are published" in " ".join(text.split()), file.name


COMMAND = re.compile(r"^ {4,}(?:\$ )?((?:mmemb-r1|accelerate launch) .*)$", re.MULTILINE)


def options_of(parser):
    """All options of a parser and of its sub-commands, fields of configs included."""
    found = set()
    for action in parser._actions:
        found.update(action.option_strings)
        for inner in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            found |= options_of(inner)
            if getattr(inner, "config", None):
                found |= options_of(_field_flags(inner.config))
    return found


def test_commands_and_options_that_are_shown_exist(root):
    """Commands parse, and an option in the text is one of a command, or of a program of this repository or outside."""
    from accelerate.commands.launch import launch_command_parser

    known = {"--multi_gpu"}.union(*(options_of(_parser([name])) for name in COMMANDS))
    for folder in ("experiments", "benchmarks"):
        for file in (root / folder).rglob("*.py"):
            known.update(re.findall(r"add_argument\(\s*\"(--[\w-]+)", file.read_text(encoding="utf-8")))
    number = 0
    for file in [*map(root.joinpath, DOCUMENTS), *(root / "docs").glob("*.md")]:
        text = file.read_text(encoding="utf-8")
        for shown in COMMAND.findall(re.sub(r"\\\n\s*", " ", text)):
            program, *words = shlex.split(shown, comments=True)
            if words[-1] != "...":
                if program == "accelerate":
                    words = launch_command_parser().parse_args(words[1:]).training_script_args
                assert _parser(words).parse_args(words).command == words[0], shown
                number += 1
        told = set() if file.name == "CHANGELOG.md" else set(re.findall(r"`[^`\n]*?(--[a-z][a-z0-9_-]*)", text))
        assert not told - known, f"{file.name} tells of options that do not exist"
    assert number > 40


def test_no_private_paths(root, tracked):
    found = [
        f"{file.relative_to(root)}:{number}: {line.strip()}"
        for file in tracked
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if PRIVATE_PATH.search(line)
    ]
    assert not found, "\n".join(found)


def test_no_work_is_left_in_the_text(root, tracked):
    leftover = re.compile(r"\b(TODO|FIXME|XXX)\b")
    found = [
        str(file.relative_to(root))
        for file in tracked
        if file.name != "test_docs.py" and leftover.search(file.read_text(encoding="utf-8"))
    ]
    assert not found


def test_changelog_has_a_place_for_the_next_change(root):
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text


def test_citation(root):
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == "Apache-2.0"
    assert citation["version"] == mmemb_r1.__version__
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2604.06156"
    assert len(paper["authors"]) == 7
