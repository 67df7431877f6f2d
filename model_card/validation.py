"""Check a model card offline: the Hub's own check needs the Hub."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from posixpath import normpath
from typing import Any
from urllib.parse import unquote

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id

LIBRARIES = ("sentence-transformers",)
PIPELINE_TAGS = ("feature-extraction", "sentence-similarity", "visual-document-retrieval")
LICENSE = re.compile(r"[a-z0-9]+([.+-]+[a-z0-9]+)*\+*")
LINK = re.compile(r"""(?:\]\(\s*<?|(?:src|href)=["'])([^\s)>"']+)""")
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|#", re.IGNORECASE)  # a URL, or a place in the card itself


def validate_model_card(text: str, folder: str | os.PathLike[str]) -> None:
    """Check a card without a network. ValueError at the first fault: it names the line and what is allowed.

    The header is YAML; licence, library, task, tags and ids are such as the Hub knows; the model index keeps its
    results when it is read and written; Python snippets compile; relative links lead to files of the folder.

    Args:
        text: The README.md.
        folder: The checkpoint that it lies in, or will.
    """
    header, start = read_header(text)
    lines = text.splitlines()
    for key, fault in header_faults(header):
        place = next((number for number, line in enumerate(lines[:start], 1) if line.startswith(f"{key}:")), 1)
        raise ValueError(f"README.md, line {place}: {fault}")
    fence, language, opened = "", "", 0
    for number, line in enumerate(lines[start:], start + 1):
        mark = re.match(r" {0,3}(`{3,}|~{3,})\s*(\w*)", line)
        if fence and mark and mark[1].startswith(fence) and not mark[2]:
            fence = ""
            if language == "python":
                _check_snippet("\n".join(lines[opened : number - 1]), opened)
        elif fence:
            continue
        elif mark:
            fence, language, opened = mark[1], mark[2], number
        else:
            _check_links(line, number, Path(folder))
    if fence:
        raise ValueError(f"README.md, line {opened}: the code that begins here has no end; close it with {fence}")


def read_header(text: str) -> tuple[dict[str, Any], int]:
    """Read a card's metadata, and count the lines of the header. ValueError if it is no YAML mapping."""
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---":
        raise ValueError("README.md, line 1: there is no header; a card begins with YAML between two lines of ---")
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    if end is None:
        raise ValueError("README.md, line 1: the header has no end; close it with a line of ---")
    try:
        header = yaml.safe_load("\n".join(lines[1:end]))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = 1 if mark is None else mark.line + 2  # marks count from 0, and the header begins on line 2
        problem = getattr(error, "problem", None) or str(error)
        raise ValueError(f"README.md, line {place}: the header is not YAML: {problem}") from error
    if not isinstance(header, dict):
        raise ValueError(f"README.md, line 2: the header is {header!r:.60}; allowed: lines of `key: value`")
    return header, end + 1


def header_faults(header: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Find what is wrong in a card's metadata: the key, and a sentence that says what is allowed."""
    for key, allowed in (("library_name", LIBRARIES), ("pipeline_tag", PIPELINE_TAGS)):
        if header.get(key) not in allowed:
            yield key, f"{key} is {header.get(key)!r}; allowed: {', '.join(allowed)}"
    for value in _listed(header.get("license")):
        if not isinstance(value, str) or not LICENSE.fullmatch(value):
            yield "license", f"license is {value!r}; allowed: an identifier as the Hub writes it, say apache-2.0"
    if not all(isinstance(tag, str) for tag in _listed(header.get("tags"))):
        yield "tags", f"tags is {header['tags']!r}; allowed: a list of words"
    for key in ("base_model", "datasets"):
        for value in _listed(header.get(key)):
            if not is_repo_id(value):
                yield key, f"{key} is {value!r}; allowed: ids of the Hub, name or org/name, and no folders"
    emissions = header.get("co2_eq_emissions")
    grams: Any = emissions.get("emissions") if isinstance(emissions, Mapping) else emissions
    if emissions is not None and not (_is_number(grams) and grams >= 0):
        yield "co2_eq_emissions", f"co2_eq_emissions/emissions is {grams!r}; allowed: grams, 0 or more"
    if "model-index" in header and (fault := _index_fault(header["model-index"])):
        yield "model-index", f"model-index {fault}"


def is_repo_id(value: Any) -> bool:
    """
    Tell whether a name has the form of an id on the Hub.

    >>> is_repo_id("org/name"), is_repo_id("gpt2"), is_repo_id("/models/mine"), is_repo_id("a/b/c")
    (True, True, False, False)
    """
    try:
        validate_repo_id(value)
    except (HFValidationError, TypeError):
        return False
    return True


def _index_fault(index: Any) -> str | None:
    allowed = "allowed: a list with one name, and results with a task, a dataset and metrics, as EvalResult makes it"
    if not index:
        return f"is not well-formed (it is empty); {allowed}"
    try:
        name, results = model_index_to_eval_results(index)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return f"is not well-formed ({type(error).__name__}: {error}); {allowed}"
    for result in results:
        if not _is_number(result.metric_value):
            return f"has {result.metric_value!r} for {result.metric_name or result.metric_type}; allowed: numbers"
    if eval_results_to_model_index(name, results) != index:
        return f"does not keep its results when it is read and written; {allowed}, one entry per dataset and split"
    return None


def _check_snippet(code: str, opened: int) -> None:
    try:
        compile(code, "README.md", "exec")
    except SyntaxError as error:
        place = opened + (error.lineno or 0)
        raise ValueError(f"README.md, line {place}: the Python snippet does not compile: {error.msg}") from error


def _check_links(line: str, number: int, folder: Path) -> None:
    for target in LINK.findall(re.sub(r"`[^`]*`", "", line)):
        if ELSEWHERE.match(target):
            continue
        path = normpath(unquote(target.split("#")[0].split("?")[0]))
        if path.startswith(("/", "..")):
            raise ValueError(
                f"README.md, line {number}: the link {target} leads out of the folder; allowed: its files, and URLs"
            )
        if not (folder / path).exists():
            raise ValueError(
                f"README.md, line {number}: the link {target} leads nowhere; {folder} has no such file: add it, or "
                "take the link out"
            )


def _listed(value: Any) -> list[Any]:
    """Make a list of a value: the Hub takes one value for a list of one."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
