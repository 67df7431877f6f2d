"""Read and write the folder of an evaluation: what was measured of each task, mode and query, and the results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from mmemb_r1.evaluation.tasks import RetrievalTask
from mmemb_r1.file_formats import read_parquet
from mmemb_r1.runs import record_run, replaced_file

if TYPE_CHECKING:
    from pyarrow import Table


Columns = dict[str, npt.NDArray[Any]]  # name -> (Q,)


def write_columns(path: Path, columns: Columns, kinds: Mapping[str, str]) -> None:
    """Write the columns that `kinds` names as Parquet, each with its type in the words of Arrow; NaN becomes null."""
    import pyarrow
    import pyarrow.parquet

    arrays = {
        name: pyarrow.array(columns[name], type=pyarrow.type_for_alias(kind), from_pandas=True)
        for name, kind in kinds.items()
    }
    with replaced_file(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(arrays), temporary)


def read_table(path: str | os.PathLike[str], names: Iterable[str], hint: str) -> Table:
    """
    Read a Parquet file that has to hold these columns; `hint` is what to do if it does not, for errors.

    Raises:
        ValueError: if the file is missing or damaged, or lacks a column.
    """
    table = read_parquet(path, hint=f"{hint[0].upper()}{hint[1:]}.")
    if missing := [name for name in names if name not in table.column_names]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(table.column_names)}; {hint}")
    return table


AGAIN = "remove the file of the same name that ends in .json and evaluate again: only what it held is measured again"
COLUMNS: dict[str, str] = {  # of the rows: their types in the words of Arrow
    "query_id": "string",
    "cluster": "string",
    "score": "float64",
    "rank": "int64",
    "margin": "float64",
    "alignment": "float64",
    "gate_prob": "float64",
    "reasoned": "bool",
    "num_reasoning_tokens": "int64",
    "num_reasoning_rounds": "int64",
    "rationale": "string",
    "query_text": "string",
}
WHOLE = ("query_id", "cluster", "score", "rank", "alignment", "reasoned", "num_reasoning_tokens")  # of every query


def rows_path(run: str | os.PathLike[str], task: str, mode: str) -> Path:
    """Say where the rows of a task and mode are, one per query; refuse names that lead out of the run's folder."""
    for name in (task, mode):
        if Path(name).name != name or name == "..":
            raise ValueError(f"{name!r} can't be the name of a file or a folder; allowed: names without / and ..")
    return Path(run) / "tasks" / task / f"{mode}.parquet"


def numbers_path(run: str | os.PathLike[str], task: str, mode: str) -> Path:
    """Say where the means over a task's queries are. If the file is there, the task is measured in that mode."""
    return rows_path(run, task, mode).with_suffix(".json")


def read_query_rows(path: str | os.PathLike[str]) -> Columns:
    """
    Read the rows of a task and mode: name -> column `(Q,)`. Null is NaN among numbers, `None` among texts.

    Raises:
        ValueError: if the file is missing or damaged, has other columns, no rows or a query twice, or lacks what
            every query has.
    """
    table = read_table(path, COLUMNS, AGAIN)
    if not table.num_rows:
        raise ValueError(f"{path} has no rows; {AGAIN}")
    for name in WHOLE:
        if empty := table[name].null_count:
            raise ValueError(f"{path}: {empty} of {table.num_rows} rows have no {name}; {AGAIN}")
    rows = {name: table[name].to_numpy() for name in COLUMNS}
    if len(set(rows["query_id"])) < table.num_rows:
        raise ValueError(f"{path} holds a query twice; {AGAIN}")
    return rows


FORMAT = 2
Results = dict[str, Any]


def save_results(results: Results, path: str | os.PathLike[str]) -> None:
    """Write `results` as JSON, whole or not at all; refuse numbers that are NaN or infinite."""
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_results(path: str | os.PathLike[str]) -> Results:
    """Read what `save_results` wrote, also in an older format; refuse something else, and a format that is newer."""
    results = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(results, dict) or not {"config", "tasks", "summary"} <= set(results):
        raise ValueError(
            f"{path} does not hold the results of an evaluation: the keys config, tasks and summary are expected"
        )
    found = results.get("format", 1)
    if found not in (1, FORMAT):
        raise ValueError(f"{path} has the format {found!r}; known: 1 to {FORMAT}. Upgrade mmemb-r1 to read it.")
    return _of_format_1(results) if found == 1 else results


def _of_format_1(results: Results) -> Results:
    """Upgrade results of before there were other metrics and groups; what is damaged stays, and readers say so."""
    for part in ("tasks", "summary"):
        entries = results[part].values() if isinstance(results[part], dict) else ()
        for entry in (one for one in entries if isinstance(one, dict)):
            if part == "tasks":
                entry.setdefault("metric", "hit@1")
                entry.setdefault("groups", {"complexity": entry["complexity"]} if "complexity" in entry else {})
            modes = entry.get("modes")
            for numbers in modes.values() if isinstance(modes, dict) else ():
                if isinstance(numbers, dict) and "hit@1" in numbers:
                    numbers.setdefault("score", numbers["hit@1"])
    return {"format": FORMAT, **results}


MEASURED_FILES = "files"  # in the config of results: the `folder_digest` of the model's folder, where it has one
RUN_FILE, TASK_FILE, RESULTS_FILE = "run.json", "task.json", "results.json"


@dataclass(frozen=True)
class Measured:
    """
    Holds what was measured of a task in one mode.

    Attributes:
        numbers: means over the queries, what JSON holds: `score`, its `interval`, the metrics, `invocation_ratio`,
            `mean_reasoning_tokens`, `seconds_per_query` (`None` if nothing was timed), and `no_image` where measured.
        rows: columns `(Q,)`, those of `COLUMNS`; NaN in `margin` is of queries without another candidate, in
            `gate_prob` of models without a gate, and `None` in `rationale` and `query_text`: not asked for.
    """

    numbers: dict[str, Any]
    rows: Columns


class RunFolder:
    """
    Keeps what is measured, file by file, each written whole or not at all. `facts` are what makes this another run:
    the checkpoint, the settings. If another one was begun in the folder, an error says what differs.
    """

    def __init__(self, folder: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        record_run(self.folder / RUN_FILE, facts)

    def begin(self, task: RetrievalTask, digest: str) -> None:
        """Note what a task asks, by its `task_digest`; an error if the task of this name was another one before."""
        facts = {"name": task.name, "metric": task.metric, "data": dict(task.data), "digest": digest}
        note = rows_path(self.folder, task.name, TASK_FILE).with_name(TASK_FILE)
        record_run(note, facts, what=f"{task.name} in {self.folder}")

    def find(self, task: str, mode: str) -> Measured | None:
        """Read what was measured before, if anything was."""
        path = numbers_path(self.folder, task, mode)
        if not path.is_file():
            return None
        rows = read_query_rows(rows_path(self.folder, task, mode))
        return Measured(json.loads(path.read_text(encoding="utf-8")), rows)

    def keep(self, task: str, mode: str, measured: Measured) -> None:
        """Keep what is measured: the numbers come last, for they say that it is done."""
        write_columns(rows_path(self.folder, task, mode), measured.rows, COLUMNS)
        save_results(measured.numbers, numbers_path(self.folder, task, mode))


def task_digest(task: RetrievalTask) -> str:
    """
    Compute a digest of all that a task asks: 32 hexadecimal digits.

    Where `data` says what the inputs are, they are not read; where it is empty, their content counts.
    """
    digest = blake2b(digest_size=16)
    facts = [task.metric, task.query_prompt, task.candidate_prompt, dict(task.data), list(task.candidate_ids)]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for row, query in enumerate(task.query_ids):
        pool = None if task.pools is None else list(task.pools[row])
        cluster = None if task.clusters is None else task.clusters[row]
        digest.update(json.dumps([query, sorted(task.relevance[row].items()), cluster, pool]).encode() + b"\n")
    if not task.data:
        from mmemb_r1.content import content_key

        for inputs in (task.queries, task.candidates):
            for number in range(len(inputs)):
                digest.update(content_key(inputs[number]))
    return digest.hexdigest()
