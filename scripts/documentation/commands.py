"""Write the page of each command from its parser."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from html import escape
from unittest.mock import patch

from mmemb_r1._lazy import import_object
from mmemb_r1.cli import COMMANDS, _parser
from mmemb_r1.cli._training import FIELD, _field_flags

USAGE_WIDTH = "80"  # columns
MARKDOWN = re.compile(r"([\\`*_\[\]#|])")
OPTION = re.compile(r"(?<![\w/`-])(--[a-z][\w-]*)")


def command_pages() -> dict[str, str]:
    """Make the pages of all commands: file name -> Markdown. The page `index.md` lists them."""
    with patch.dict(os.environ, COLUMNS=USAGE_WIDTH, NO_COLOR="1"):
        pages = {page_name(name): command_page(name) for name in COMMANDS}
        return {"index.md": overview(), **pages}


def page_name(command: str) -> str:
    """
    Name the file of a command's page; a page called `index.md` would be the section's first page.

    >>> page_name("search"), page_name("index")
    ('search.md', 'mmemb-r1-index.md')
    """
    return "mmemb-r1-index.md" if command == "index" else f"{command}.md"


def overview() -> str:
    """Write the list of all commands, with the options that stand before a command."""
    lines = ["# Commands", "", "| command | |", "|---|---|"]
    lines += [f"| [`mmemb-r1 {name}`]({page_name(name)}) | {prose(told)} |" for name, told in COMMANDS.items()]
    lines += ["", "Every command has `--help`. Before the command may stand:", ""]
    return "\n".join([*lines, *definitions(_parser([]))])


def command_page(name: str) -> str:
    """Write the page of one command, its sub-commands included."""
    return "\n".join(section(subcommands(_parser([name]))[name], level=1))


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Find the parsers of a parser's sub-commands, by name."""
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


def section(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    """Write what a parser takes, line by line, under a heading of this level; then its sub-commands, a level below."""
    yield from ("#" * level + f" {parser.prog}", "", *description(parser.description or ""))
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    config = getattr(parser, "config", None)
    yield from indented(usage + (" [--SETTING VALUE ...]" if config else ""))
    yield from definitions(parser)
    if config:
        yield from settings(parser.prog, config, level + 1)
    for inner in subcommands(parser).values():
        yield from section(inner, level + 1)


def settings(prog: str, config: str, level: int) -> Iterator[str]:
    """Write the fields of a training config, which are options too: its own ones before those that it inherits."""
    config_class, flags = import_object(config), _field_flags(config)
    own = {FIELD + name for name in config_class.__annotations__}
    for title, wanted in (
        (f"Settings: fields of `{config_class.__name__}`", True),
        ("Settings that all trainers of transformers have", False),
    ):
        inside = argparse.ArgumentParser(prog=prog, add_help=False)
        for action in flags._actions:
            if (action.dest in own) is wanted:
                inside._add_action(action)
        yield from ("#" * level + f" {title}", "", *definitions(inside))


def definitions(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Write the arguments and options of a parser as a definition list, line by line; `--help` needs no words."""
    formatter = argparse.HelpFormatter(parser.prog)
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        told = formatter._expand_help(action) if action.help else ""
        required = "**required**; " if action.option_strings and action.required else ""
        anchor = f"{{ #{anchor_of(parser.prog, action.option_strings[0])} }}" if action.option_strings else ""
        yield from (f"`{formatter._format_action_invocation(action)}`{anchor}", f":   {required}{prose(told)}", "")


def anchor_of(prog: str, option: str) -> str:
    """
    Name an option's place on the page of its command.

    >>> anchor_of("mmemb-r1 train gate", "--model")
    'train-gate--model'
    """
    return "-".join(prog.split()[1:]) + option


def description(text: str) -> Iterator[str]:
    """Write a description as paragraphs, and the lines that are set in from the left as they stand."""
    for block in re.split(r"\n\s*\n", text.strip()):
        for set_in, lines in runs(block.splitlines()):
            yield from indented("\n".join(lines)) if set_in else (prose(" ".join(lines)), "")


def runs(lines: list[str]) -> list[tuple[bool, list[str]]]:
    """Group neighbouring lines by whether they are set in."""
    found: list[tuple[bool, list[str]]] = []
    for line in lines:
        if not found or found[-1][0] != line.startswith(" "):
            found.append((line.startswith(" "), []))
        found[-1][1].append(line)
    return found


def indented(text: str) -> Iterator[str]:
    """Write text as a block of code; its lines keep their places to each other."""
    least = min(len(line) - len(line.lstrip()) for line in text.splitlines())
    yield from ("    " + line[least:] for line in text.splitlines())
    yield ""


def prose(text: str) -> str:
    """
    Write a help text as Markdown: code stays code, options become it, and no other character has a meaning.

    >>> print(prose("as `a_b` says, *not* with --other-one <x>"))
    as `a_b` says, \\*not\\* with `--other-one` &lt;x&gt;
    """
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(part if place % 2 else _plain(part) for place, part in enumerate(parts))


def _plain(text: str) -> str:
    """Take every meaning from the characters of a text, but show its options as code."""
    parts = OPTION.split(text)
    return "".join(
        f"`{part}`" if place % 2 else MARKDOWN.sub(r"\\\1", escape(part, quote=False))
        for place, part in enumerate(parts)
    )
