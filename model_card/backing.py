"""Check that a model card says what the files beside it say, wherever `mmemb-r1 card` takes it from files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmemb_r1.model_card.builder import build_model_card
from mmemb_r1.model_card.sections import LIMITS_OF_FILES
from mmemb_r1.model_card.validation import read_header

FROM_FILES = ("Training data and selection", "Training", "Results", "Cost of a query", "Invocation curve", "Carbon")
EARLIER = "Before it: "  # beginning of the headings of phases before the last
LIMITS = "Limits"
AGAIN = "write the card again with `mmemb-r1 card`"


class Section(NamedTuple):
    """A heading, `""` for what comes before the first, the number of its line, and the lines below it."""

    heading: str
    line: int
    lines: list[str]


def check_against_files(text: str, folder: str | os.PathLike[str]) -> None:
    """
    Check that a card says of its model what the files in the folder prove, and leaves out nothing that they tell.

    Compared are the model index, the base model, the table of facts, the sections about training, results, costs, the
    curve and emissions, and those limits that come from files. Other sections, and limits that somebody added, are
    not looked at.

    Args:
        text: the README.md.
        folder: the checkpoint that it lies in.

    Raises:
        ValueError: at the first statement without a file behind it, or file that is not told: it names the line.
    """
    kept, start = read_header(text)
    expected = build_model_card(folder, card=text)
    header, expected_start = read_header(expected)
    for key in ("model-index", "base_model"):
        said, backed = (_without_name(one.get(key)) for one in (kept, header))
        if said != backed:
            line = next((n for n, shown in enumerate(text.splitlines()[:start], 1) if shown.startswith(f"{key}:")), 1)
            raise ValueError(
                f"README.md, line {line}: {key} is {_short(said)}, but files in the folder say {_short(backed)}; "
                f"{AGAIN}"
            )
    ours, theirs = _sections(text, start), _sections(expected, expected_start)
    for fault in _faults(ours, theirs):
        raise ValueError(f"README.md, {fault}; {AGAIN}")


def _without_name(value: Any) -> Any:
    """Leave the model's name out of a model index: who moves a folder renames the model."""
    if not isinstance(value, list):
        return value
    return [{k: v for k, v in one.items() if k != "name"} if isinstance(one, dict) else one for one in value]


def _short(value: object) -> str:
    return "not there" if value is None else f"{value!r:.80}"


def _sections(text: str, start: int) -> list[Section]:
    """Split a card's text, from a line on, at its headings; those inside of code are none."""
    found, fence = [Section("", start, [])], ""
    for number, line in enumerate(text.splitlines()[start:], start + 1):
        mark = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        heading = None if fence or mark else re.match(r"#{2,3}\s+(.*?)\s*$", line)
        if heading:
            found.append(Section(heading[1], number, []))
        else:
            found[-1].lines.append(line.rstrip())
    return found


def _faults(ours: Sequence[Section], theirs: Sequence[Section]) -> Iterator[str]:
    """Find what a card says otherwise than the one that the files make."""
    made, written = _numbered(theirs), _numbered(ours)
    for key, section in written.items():
        if key not in made:
            yield f"line {section.line}: no file in the folder is behind the section {section.heading!r}"
        else:
            yield from _different(section, made[key])
    for key, section in made.items():
        if key not in written:
            yield f"line 1: the section {section.heading!r} is missing, of which files in the folder tell"
    yield from _differing_rows(ours[0], theirs[0])
    limits = [next((one for one in sections if one.heading == LIMITS), sections[0]) for sections in (ours, theirs)]
    yield from _differing_limits(*limits)


def _numbered(sections: Sequence[Section]) -> Mapping[tuple[str, int], Section]:
    """Name those sections that come from files, several of one heading by their order."""
    seen: Counter[str] = Counter()
    found = {}
    for section in sections:
        if section.heading in FROM_FILES or section.heading.startswith(EARLIER):
            found[section.heading, seen[section.heading]] = section
            seen[section.heading] += 1
    return found


def _different(ours: Section, theirs: Section) -> Iterator[str]:
    """Find the first line of a section that files do not say, or that it lacks."""
    told = Counter(filter(None, theirs.lines))
    for number, line in enumerate(ours.lines, ours.line + 1):
        if line and not told[line]:
            yield f"line {number}: the files in the folder do not say {line!r:.100}"
        told[line] -= 1
    if missing := next((line for line in theirs.lines if line and told[line] > 0), None):
        yield f"line {ours.line}: the section {ours.heading!r} leaves out {missing!r:.100}"


def _differing_rows(ours: Section, theirs: Section) -> Iterator[str]:
    """Compare the tables of facts at the top."""
    yield from _different(*(_only(one, lambda line: line.startswith("|")) for one in (ours, theirs)))


def _differing_limits(ours: Section, theirs: Section) -> Iterator[str]:
    """Compare those limits that files tell: they begin in ways of their own."""
    openings = tuple(f"- {opening}" for opening in LIMITS_OF_FILES)
    yield from _different(*(_only(one, lambda line: line.startswith(openings)) for one in (ours, theirs)))


def _only(section: Section, is_wanted: Callable[[str], bool]) -> Section:
    """Blank the other lines of a section; the numbers of the wanted ones stay."""
    return section._replace(lines=[line if is_wanted(line) else "" for line in section.lines])
