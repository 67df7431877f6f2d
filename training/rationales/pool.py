"""Load a pool of workers from a YAML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmemb_r1._lazy import import_object
from mmemb_r1.file_formats import check_type, read_yaml
from mmemb_r1.modeling.options_mmemb_r1 import nearest_name
from mmemb_r1.training.rationales.table import check_name
from mmemb_r1.training.rationales.worker import RationaleWorker

# Imported when a pool uses them. Each is a dataclass: its fields are the keys that the file may give.
KINDS = {
    "transformers": "mmemb_r1.training.rationales.transformers_worker:TransformersWorker",
    "checkpoint": "mmemb_r1.training.rationales.checkpoint_worker:CheckpointWorker",
    "openai": "mmemb_r1.training.rationales.openai_worker:OpenAIWorker",
    "vllm": "mmemb_r1.training.rationales.vllm_worker:VllmWorker",
}
POOL_KEYS = ("samples", "workers")
DEFAULT_SAMPLES = 4


def load_pool(path: Path, *, only: Sequence[str] | None = None, samples: int | None = None) -> list[RationaleWorker]:
    """
    Make the workers of a pool file. Models and clients are not loaded before they are used.

        samples: 4                  # rationales per input, unless a worker says otherwise; default: 4
        workers:
          - name: instruct-2b       # every worker has a name, a kind, and the keys of its kind
            kind: transformers
            model: Qwen/Qwen3-VL-2B-Instruct

    Args:
        path: the file.
        only: names of workers to take, in the file's order. Default: all.
        samples: rationales per input of every worker, whatever the file says. Default: what the file says.

    Raises:
        ValueError: naming the line, or the worker and the key, to correct.
    """
    pool = read_yaml(path)
    try:
        entries = _entries(pool)
        if unknown := [name for name in only or () if name not in entries]:
            raise ValueError(f"there is no worker {unknown[0]!r}; there are: {', '.join(entries)}.")
        default = {"samples": pool.get("samples", DEFAULT_SAMPLES)}
        own = {} if samples is None else {"samples": samples}
        return [make_worker({**default, **entries[name], **own}) for name in entries if only is None or name in only]
    except (ValueError, ImportError) as error:
        raise ValueError(f"{path}: {error}") from error


def _entries(pool: Any) -> dict[str, dict[str, Any]]:
    """Check the content of a pool file, and return its workers by their names."""
    if not isinstance(pool, dict):
        held = "nothing" if pool is None else f"a {type(pool).__name__}"
        raise ValueError(f"it holds {held}; allowed: the keys {', '.join(POOL_KEYS)}.")
    if unknown := [key for key in pool if key not in POOL_KEYS]:
        near = nearest_name(str(unknown[0]), POOL_KEYS)
        raise ValueError(f"the key {unknown[0]!r} is not known; allowed: {', '.join(POOL_KEYS)}{near}")
    listed = pool.get("workers")
    if not isinstance(listed, list) or not listed:
        raise ValueError("workers is no list of at least one worker; begin each with '- name:'.")
    entries: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(listed, start=1):
        if not isinstance(entry, dict):
            raise ValueError(f"worker {number} is a {type(entry).__name__}; allowed: keys and their values.")
        if "name" not in entry:
            raise ValueError(f"worker {number} has no key 'name'; give it one.")
        check_name(entry["name"])
        if entry["name"] in entries:
            raise ValueError(f"two workers have the name {entry['name']!r}; give each its own.")
        entries[entry["name"]] = entry
    return entries


def make_worker(entry: Mapping[str, Any]) -> RationaleWorker:
    """
    Make a worker of an entry: `name`, `kind`, `samples` and the keys of that kind.

    Raises:
        ValueError: naming the worker, and the key that is missing, unknown, of the wrong type, or refused by the
            worker itself.
    """
    worker = f"worker {entry['name']!r}"
    if "kind" not in entry:
        raise ValueError(f"{worker}: the key 'kind' is missing; allowed: {', '.join(KINDS)}.")
    kind = str(entry["kind"])
    if kind not in KINDS and ":" not in kind:
        raise ValueError(
            f"{worker}: its kind is {kind!r}; allowed: {', '.join(KINDS)}, or a class of your own as module:Class"
            f"{nearest_name(kind, KINDS)}"
        )
    if "api_key" in entry:
        raise ValueError(
            f"{worker}: the key 'api_key' is not allowed: pool files get shared. Put the key into an environment "
            "variable, and that variable's name here under 'api_key_env'."
        )
    try:
        worker_class = import_object(KINDS.get(kind, kind))
    except ValueError as error:
        raise ValueError(f"{worker}: its kind {error}") from error
    takes_keys = dataclasses.is_dataclass(worker_class)
    if not takes_keys:
        raise ValueError(f"{worker}: {kind} is no dataclass; its fields are the keys that a pool file may give.")
    # in the file, `num_samples` is called `samples`, as it is at the top
    fields = {
        "samples" if field.name == "num_samples" else field.name: field
        for field in dataclasses.fields(worker_class)
        if field.init
    }
    values = {key: value for key, value in entry.items() if key != "kind"}
    allowed = f"allowed for {kind}: {', '.join(['kind', *fields])}"
    if unknown := [key for key in values if key not in fields]:
        near = nearest_name(str(unknown[0]), fields)
        raise ValueError(f"{worker}: the key {unknown[0]!r} is not known; {allowed}{near}")
    needed = [key for key, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING]
    if missing := [key for key in needed if key not in values]:
        raise ValueError(f"{worker}: the key {missing[0]!r} is missing; {allowed}")
    for key, value in values.items():
        check_type(f"{worker}: {key}", value, str(fields[key].type))
    if values.get("samples", 1) < 1:
        raise ValueError(f"{worker}: samples is {values['samples']}; allowed: a whole number of at least 1.")
    return worker_class(**{fields[key].name: value for key, value in values.items()})
