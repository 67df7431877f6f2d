"""Import a public data set, or files of one's own, as tables of pairs and rationales."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmemb_r1.processes import process_pool
from mmemb_r1.progress import progress_bar
from mmemb_r1.runs import check_run, write_json
from mmemb_r1.tables.columns import ColumnMap
from mmemb_r1.training.importing.files import SourceFile, list_sources
from mmemb_r1.training.importing.formats import find_format
from mmemb_r1.training.importing.reader import DEFAULT_SHARD_SIZE, RUN_FILE, ImportJob, import_source
from mmemb_r1.training.importing.shards import ANSWERS, Repeats, Shard, read_record, shards_of
from mmemb_r1.training.importing.summary import ImportSummary, skipped_rows, summarize
from mmemb_r1.training.settling.settle import SKIPPED_FILE, write_lines

SUMMARY_FILE = "summary.json"
LOG_FILE = "import.log"


def import_pairs(
    name: str,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    media: str | os.PathLike[str] | None = None,
    columns: ColumnMap | None = None,
    limit: int | None = None,
    tasks: Sequence[str] | None = None,
    files: str | None = None,
    answers: str = "join",
    decode: bool = False,
    jobs: int = 1,
    shard_size: int = DEFAULT_SHARD_SIZE,
    progress: bool | None = None,
) -> ImportSummary:
    """
    Import a source. The same call goes on where a run was stopped; what it writes depends on neither that nor `jobs`.

    Args:
        name: a format; see [`find_format`].
        source: a file or a folder of files; of the format `hub`, an id.
        output: a folder. Gets `pairs/` and, where there are, `rationales/`, which `mmemb-r1 select` and training read;
            `media/` with pictures that came as bytes; `summary.json` and `skipped.jsonl`; and what a run needs to go
            on.
        media: where the paths of pictures and videos start. Default: in the folder of each file.
        columns: ours -> theirs, see [`OwnColumns`].
        limit: the first so many pairs of each task in each file. Default: all.
        tasks: only these. Default: all.
        files: only files whose path in the source matches this pattern. Default: all.
        answers: see [`rationale_rows`].
        decode: whether every picture is decoded, instead of only looked for.
        jobs: processes, which share the files.
        shard_size: rows of a source per file of a table, lost at most by a run that is killed.
        progress: show a bar on standard error, if that is a terminal; see `progress_bar`. Default: `True`.

    Raises:
        ValueError: if an option is not allowed; a source lacks a column, is damaged, or none of its first rows can be
            imported; `output` holds another import; or there is no such task. What was imported is kept.
    """
    if answers not in ANSWERS:
        raise ValueError(f"answers={answers!r}; allowed: {', '.join(map(repr, ANSWERS))}.")
    for option, value in (("limit", limit), ("jobs", jobs), ("shard_size", shard_size)):
        if value is not None and value < 1:
            raise ValueError(f"{option}={value}; allowed: whole numbers from 1 on.")
    form = find_format(name, columns)
    source, output = os.fspath(source), Path(output)
    sources = list_sources(source, form, files)
    if media is not None and not Path(media).is_dir():
        raise ValueError(f"media {media}: there is no such folder")
    job = ImportJob(
        name=name,
        output=output,
        media=None if media is None else Path(media).absolute(),
        limit=limit,
        tasks=None if tasks is None else tuple(tasks),
        answers=answers,
        columns=columns,
        decode=decode,
        shard_size=shard_size,
    )
    job = replace(job, facts=_facts(job, sources))
    check_run(output / RUN_FILE, job.facts, what=f"the import in {output}")
    with progress_bar(progress) as bar:
        task = bar.add_task(f"bytes of {name}", total=sum(one.size for one in sources) or None)
        done: dict[int, int] = {}

        def show(number: int, shard: Shard) -> None:
            done[number] = sources[number].size if shard.last else shard.position
            bar.update(task, completed=sum(done.values()))

        if jobs == 1 or len(sources) == 1:
            for number, one in enumerate(sources):
                import_source(job, one, number, partial(show, number))
        else:
            _import_in_processes(job, sources, min(jobs, len(sources)), show)
    return _finished(job, sources)


def _facts(job: ImportJob, sources: Sequence[SourceFile]) -> dict[str, Any]:
    """Say what makes an import the same: its options, and the files, wherever they lie."""
    options = {name: value for name, value in asdict(job).items() if name not in ("output", "facts")}
    return {**options, "sources": {one.name: one.mark for one in sources}}


def _import_in_processes(
    job: ImportJob, sources: Sequence[SourceFile], jobs: int, show: Callable[[int, Shard], None]
) -> None:
    shown = dict.fromkeys(range(len(sources)), 0)  # shards
    job.output.mkdir(parents=True, exist_ok=True)  # for the log
    with process_pool(jobs, 1, job.output / LOG_FILE) as pool:
        waiting = {pool.submit(import_source, job, one, number) for number, one in enumerate(sources)}
        while waiting:
            done, waiting = wait(waiting, timeout=1, return_when=FIRST_EXCEPTION)
            for one in done:
                try:
                    one.result()
                except BrokenProcessPool as error:
                    raise ValueError(
                        f"a process that imported was lost ({error}; see {job.output / LOG_FILE}). The same call goes "
                        "on after the last whole shards; use fewer jobs if memory was short."
                    ) from error
            for number, before in shown.items():
                if (there := shards_of(job.output, number, before))[before:]:
                    show(number, read_record(there[-1].record))
                    shown[number] = len(there)


def _finished(job: ImportJob, sources: Sequence[SourceFile]) -> ImportSummary:
    """Take out what is there twice, and tell of the whole."""
    shards = {one.name: shards_of(job.output, number) for number, one in enumerate(sources)}
    repeats = Repeats(job.output, [paths for own in shards.values() for paths in own])
    repeats.take_out()
    summary = summarize(shards, repeats)
    if unknown := sorted(set(job.tasks or ()) - set(summary.tasks)):
        raise ValueError(
            f"there is no task {unknown[0]!r}; there are: {', '.join(summary.tasks)}. Remove {job.output}, and name "
            "others."
        )
    write_lines(job.output / SKIPPED_FILE, skipped_rows(shards, repeats))
    write_json(job.output / SUMMARY_FILE, summary.as_dict())
    return summary
