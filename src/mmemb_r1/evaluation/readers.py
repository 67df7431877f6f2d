"""Read retrieval tasks by the name of their reader, or by the import path of one's own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmemb_r1._lazy import import_object
from mmemb_r1.evaluation.tasks import TaskSource, first_queries, select_tasks

READERS: Mapping[str, str] = {  # name -> module:function, which takes the source and `names`, the tasks to read
    "atlas": "mmemb_r1.evaluation.atlas_tasks:read_atlas_tasks",
    "mmeb": "mmemb_r1.evaluation.mmeb.loading:read_mmeb_tasks",
    "pairs": "mmemb_r1.evaluation.pair_tasks:read_pair_tasks",
}


def read_tasks(
    reader: str,
    source: str | os.PathLike[str],
    *,
    names: Sequence[str] | None = None,
    limit: int | None = None,
    **options: Any,
) -> TaskSource:
    """
    Read tasks, for `run_evaluation` and `run_diagnosis`.

    Args:
        reader: a name of `READERS`, or the import path of a function of one's own, `module:function`. It is called
            with the source and the options, and returns or yields [`RetrievalTask`] objects.
        source: what is read: a folder, a file, or whatever the reader takes.
        names: of tasks or groups. Default: all.
        limit: the first so many queries of each task, for a quick look. Default: all.
        **options: of the reader: `split` of `"atlas"`, `base` and `columns` of `"pairs"`, `num_frames` and
            `instructions` of `"mmeb"`.

    Raises:
        ValueError: if there is no such reader, task or group, or `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit}: at least 1 is needed")
    if reader not in READERS and ":" not in reader:
        raise ValueError(
            f"there is no reader {reader!r}; allowed: {', '.join(READERS)}, or the import path of one of your own, "
            "module:function"
        )
    read = import_object(READERS.get(reader, reader))
    if reader in READERS:
        found = read(os.fspath(source), names=names, **options)
    else:
        tasks = read(os.fspath(source), **options)
        noted = {"dataset": os.fspath(source), "reader": reader}
        found = TaskSource(tasks if names is None else select_tasks(tasks, names), noted)
    if limit is None:
        return found
    few = (first_queries(task, limit) for task in found.tasks)
    return replace(found, tasks=few, noted={**found.noted, "limit": limit})
