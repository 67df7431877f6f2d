"""Check that a folder is a whole checkpoint, and nothing else, before it is pushed."""

from __future__ import annotations

import ast
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import ModelCard
from safetensors import SafetensorError, safe_open

from mmemb_r1.hub.client import ALLOWED, HUB_FILE, is_allowed

# One of each line has to be there. Without it the checkpoint fails to load or to embed, or knows no instructions by
# name.
REQUIRED = (
    ("config.json",),
    ("modules.json",),
    ("config_sentence_transformers.json",),
    ("processor_config.json", "preprocessor_config.json"),
    ("tokenizer.json",),
    ("tokenizer_config.json",),
)
TEMPLATES = ("chat_template.jinja", "chat_template.json")  # where a processor looks; it does not ask the tokenizer
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
JSON_FILES = (*(name for names in REQUIRED for name in names if name.endswith(".json")), INDEX)
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors")
AUTO_CLASSES = ("AutoConfig", "AutoModel")
CONFIGS_WITH_CODE = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
LEFT_OUT_FOLDERS = frozenset({".git", ".cache", "__pycache__"})
SECRET_NAMES = (".env.*", "id_rsa*", "id_ecdsa*", "id_ed25519*", "credentials*", "*secret*")
TEXT_SUFFIXES = frozenset({".csv", ".jinja", ".json", ".md", ".py", ".svg", ".txt"})
HUB_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
PARSER = threading.Lock()  # CPython 3.11 raises a SystemError where two threads parse at once


def check_checkpoint(folder: str | os.PathLike[str]) -> list[str]:
    """
    Check that a folder is a whole checkpoint that loads where this package is not installed, and nothing else.

    It needs what `save_pretrained` of a whole model writes, README.md with metadata included, and every code file that
    this names or that another one imports. It must hold no file of another name than those of `ALLOWED_NAMES` (so no
    pickle), no adapters, no link to a folder, and nothing that looks like a secret. Whether the weights fit the
    configuration is not checked.

    Returns:
        The paths of its files, relative and with slashes, in order. `.git`, `.cache`, `__pycache__` and
        `.gitattributes` are left out.

    Raises:
        ValueError: with one line per problem.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{folder} is no folder; name the folder that save_pretrained wrote")
    files, problems = find_problems(root)
    problems += _card_problems(root / "README.md")
    if "README.md" not in files:
        problems.append("README.md is missing")
    if problems:
        raise ValueError(f"{folder} can't be pushed:" + "".join(f"\n- {problem}" for problem in problems))
    return files


def find_problems(root: Path) -> tuple[list[str], list[str]]:
    """List the files of a checkpoint's folder, and what is wrong with them; its card is not looked at."""
    files, linked = _contents(root)
    problems = [f"{' or '.join(names)} is missing" for names in REQUIRED if not set(names) & set(files)]
    problems += [f"{name} is a link to a folder; copy the folder" for name in linked]
    problems += [problem for name in files for problem in _file_problems(root, name)]
    contents, unread = _read_json_files(root)
    problems += unread
    if not set(TEMPLATES) & set(files) and not contents.get("processor_config.json", {}).get("chat_template"):
        problems.append(f"{TEMPLATES[0]} is missing")
    problems += _weight_problems(root, files, contents.get(INDEX))
    problems += _code_problems(root, contents)
    return files, problems


def _contents(root: Path) -> tuple[list[str], list[str]]:
    """List the files below a folder, and the links to folders, which are not followed."""
    files, linked = [], []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT_FOLDERS]
        inside = Path(parent).relative_to(root)
        files += [(inside / name).as_posix() for name in names if name != HUB_FILE]
        linked += [(inside / name).as_posix() for name in folders if (root / inside / name).is_symlink()]
    return sorted(files), sorted(linked)


def _file_problems(root: Path, name: str) -> Iterator[str]:
    path = root / name
    if not is_allowed(name):
        yield f"{name} is not a file of a checkpoint; allowed are {ALLOWED}. Move it elsewhere"
    elif not path.is_file():
        yield f"{name} is no file, or a link that leads nowhere"
    elif any(fnmatch(PurePosixPath(name).name.lower(), pattern) for pattern in SECRET_NAMES):
        yield f"{name} looks like a secret; move it elsewhere"
    elif path.suffix.lower() in TEXT_SUFFIXES and HUB_TOKEN.search(path.read_bytes()):
        yield f"{name} holds a token of the Hub; remove it, and revoke the token"


def _read_json_files(root: Path) -> tuple[dict[str, Any], list[str]]:
    """Read the JSON files that loading needs: name -> content of the valid ones, and what is wrong with the others."""
    contents, problems = {}, []
    for name in JSON_FILES:
        if not (root / name).is_file():
            continue
        try:
            content = json.loads((root / name).read_bytes())
        except (ValueError, RecursionError) as error:
            problems.append(f"{name} is no JSON ({error})")
            continue
        if isinstance(content, list if name == "modules.json" else dict) and content:
            contents[name] = content
        else:
            problems.append(f"{name} holds nothing that can be loaded; save the model again")
    return contents, problems


def _weight_problems(root: Path, files: list[str], index: Mapping[str, Any] | None) -> Iterator[str]:
    yield from (
        f"{name} belongs to adapters, and loaders would look for their model elsewhere; merge them "
        "(mmemb_r1.training.adapters.merged) and push the whole model"
        for name in ADAPTERS
        if name in files
    )
    if WEIGHTS not in files and INDEX not in files:
        yield f"there are no weights: {WEIGHTS}, or {INDEX} with its shards; save the model again"
    tensors: dict[str, set[str]] = {}  # file -> names
    for name in files:
        if not name.endswith(".safetensors"):
            continue
        try:
            with safe_open(root / name, framework="numpy") as weights:
                tensors[name] = set(weights.keys())
        except (SafetensorError, OSError) as error:
            yield f"{name} can't be read ({error}); save the model again"
    if index is None:
        return
    if not isinstance(places := index.get("weight_map"), dict) or not places:
        yield f"{INDEX} names no weights; save the model again"
        return
    shards: dict[str, set[str]] = {}
    for tensor, name in places.items():
        shards.setdefault(str(name), set()).add(tensor)
    for name, expected in sorted(shards.items()):
        if name not in files:
            yield f"{INDEX} names {name}, which is not there"
        elif lacking := expected - tensors.get(name, expected):
            yield f"{INDEX} says that {name} holds {min(lacking)}, which it does not; save the model again"


def _code_problems(root: Path, contents: Mapping[str, Any]) -> Iterator[str]:
    """Check that all code that loading the checkpoint would run is in the folder."""
    named: dict[str, str] = {}  # code file -> who names it
    for config in CONFIGS_WITH_CODE:
        auto_map = contents.get(config, {}).get("auto_map") or {}
        if not isinstance(auto_map, dict):
            yield f"the auto_map of {config} is {auto_map!r:.80}, no object; save the model again"
            continue
        for name in AUTO_CLASSES:
            if config == "config.json" and config in contents and name not in auto_map:
                yield f"{config} names no code for {name}; save the model again"
        for value in auto_map.values():
            for reference in filter(None, value if isinstance(value, list) else [value]):
                if not isinstance(reference, str):
                    yield f"the auto_map of {config} names {reference!r:.80} for code; save the model again"
                elif "--" in reference:
                    yield f"{config} takes code from another repository ({reference}); save the model again"
                else:
                    named[reference.rpartition(".")[0] + ".py"] = config
    modules = contents.get("modules.json", [])
    types = [str(module.get("type") if isinstance(module, dict) else module) for module in modules]
    own = [name for name in types if not name.startswith("sentence_transformers.")]
    if types and not own:
        yield "modules.json names no module of this model; save the model with MMEmbR1.save_pretrained"
    for reference in own:
        if reference.count(".") != 1:
            yield (
                f"modules.json names {reference}, which loads only where that package is installed; "
                "save the model with MMEmbR1.save_pretrained"
            )
        else:
            named[reference.rpartition(".")[0] + ".py"] = "modules.json"
    waiting = sorted(named)
    while waiting:
        name = waiting.pop()
        if not (root / name).is_file():
            yield f"{named[name]} names {name}, which is not there"
            continue
        siblings, problems = _imports(root / name)
        yield from problems
        waiting += [sibling for sibling in siblings if sibling not in named]
        named = {**dict.fromkeys(siblings, name), **named}


def _imports(path: Path) -> tuple[list[str], list[str]]:
    """List the files beside `path` that it imports, and what is wrong with its imports."""
    try:
        with PARSER:
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        return [], [f"{path.name} is no Python ({error})"]
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    flat = [node for node in relative if node.level == 1 and node.module and "." not in node.module]
    problems = [
        f"{path.name}:{node.lineno} is an import that no loader of remote code follows; "
        "write `from .sibling import name`"
        for node in relative
        if node not in flat
    ]
    return sorted({f"{node.module}.py" for node in flat}), problems


def _card_problems(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    try:
        metadata = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=False).data.to_dict()
    except (ValueError, yaml.YAMLError) as error:
        yield f"the metadata of README.md can't be read ({str(error).splitlines()[0]})"
    else:
        if not metadata:
            yield "README.md has no metadata: YAML between two lines of three dashes, at its top"
