"""Embed files of inputs, or a Ray Data dataset, into a folder of shards with a pool of workers that may be killed."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.options_mmemb_r1 import check_options
from mmemb_r1.progress import progress_bar
from mmemb_r1.ray.cluster import (
    WorkerSlots,
    attempt_counter,
    check_attempts,
    check_starts,
    connected,
    slots,
    tell_again,
)
from mmemb_r1.ray.folders import Folder
from mmemb_r1.ray.media import absolute, fetching, protocol_of
from mmemb_r1.ray.sources import Block, Inputs, input_of_row, plan_blocks, read_block, wanted_columns
from mmemb_r1.stream import ShardRun, StreamSummary, check_end, check_stream_options, finish_run
from mmemb_r1.stream_shards import FORMATS, ShardInfo, vectors_path

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset

DEFAULT_BLOCK = 1024  # inputs: the media of one block that are not on the machine are in memory at the same time
_BLOCK, _RESULT = "block", "result"


@dataclass(frozen=True)
class EmbeddingJob:
    """
    Say what a worker does with a block; its fields are made of the arguments of [`embed_dataset`].

    Attributes:
        of_dataset: whether blocks are rows of a dataset, and not places in files.
        model, output: absolute paths, or addresses.
        threads: CPU cores of a worker.
        max_image_tokens: of one picture.
        reading: arguments of `read_block`.
        writing: `shard_size`, `file_format` and `rationales` of `ShardRun`.
        options: of `encode`, checked.
    """

    of_dataset: bool
    model: str
    output: str
    threads: int
    max_image_tokens: int | None
    reading: dict[str, Any]
    writing: dict[str, Any]
    options: dict[str, Any]

    def begin(self, folder: Path, device: str) -> ShardRun:
        """Load the model, and look whether the folder is of the same run."""
        import torch

        from mmemb_r1 import MMEmbR1

        torch.set_num_threads(self.threads)
        model = MMEmbR1(self.model, device=device)
        if self.max_image_tokens is not None:
            model.max_image_tokens = self.max_image_tokens
        return ShardRun(model, folder, **self.writing, options=dict(self.options))


class EmbedBlocks:
    """
    Embed blocks, one at a time, each into its file: the class of the workers.

    What is wrong with inputs, files or options is an answer, and not an exception: Ray would take it for a fault of
    its own.
    """

    def __init__(self, job: EmbeddingJob, attempts: Any, pool: WorkerSlots) -> None:
        self.job, self.attempts = job, attempts
        self.error: Exception | None = None
        try:
            check_starts(attempts, pool.workers, job.model)
            self.folder = Folder(job.output)
            self.folder.find_settings()
            self.run = job.begin(self.folder.local, pool.device)
            self.run.find = self.folder.find
        except (ValueError, OSError, ImportError) as error:
            self.error = error

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        import pyarrow

        try:
            if self.error is not None:
                raise self.error
            answer = self._embedded(table)
        except InputError as error:
            answer = {"fault": "input", "index": error.index, "reason": error.reason}
        except (ValueError, OSError, ImportError) as error:
            answer = {"fault": "os" if isinstance(error, OSError) else "value", "reason": str(error)}
        return pyarrow.table({_RESULT: [json.dumps(answer)]})

    def _embedded(self, table: pyarrow.Table) -> dict[str, Any]:
        if not self.job.of_dataset:
            block = Block.from_json(table[_BLOCK][0].as_py())
            check_attempts(self.attempts, f"block {block.index}, from input {block.start} on")
            given, index, start = read_block(block, **self.job.reading), block.index, block.start
        else:
            first = table[self.job.reading["id_column"]][0].as_py()
            check_attempts(self.attempts, f"the block of the id {first!r:.80}")
            given, index, start = self._of_table(table), None, 0
        try:
            file, info, is_new = self.run.shard(index, start, given.ids, given.values)
        except InputError as error:
            raise InputError(error.index, f"{given.places[error.index - start]}: {error.reason}") from error
        self.folder.keep_shard(file, is_new)
        return {
            "index": index,
            "file": file,
            "info": asdict(info),
            "new": is_new,
            "kind": type(given.ids[0]).__name__,
            "settings": self.run.settings,
        }

    def _of_table(self, table: pyarrow.Table) -> Inputs:
        """Read the inputs of rows of a dataset, whose ids name them in errors."""
        base, column, id_column, protocols = itemgetter("base", "column", "id_column", "protocols")(self.job.reading)
        columns = wanted_columns(table.column_names, column, id_column, "the dataset")
        rows = [input_of_row(row, column, id_column) for row in table.select(columns).to_pylist()]
        placed = fetching(base or "", protocols)
        values = []
        for name, value in rows:
            try:
                values.append(placed(value))
            except ValueError as error:
                raise InputError(len(values), f"the row with the id {name!r:.80}: {error}") from error
        places = [f"the row with the id {name!r:.80}" for name, _ in rows]
        return Inputs([name for name, _ in rows], values, places)


def embed_dataset(
    inputs: Dataset | str | Path,
    model: str | Path,
    output: str | Path,
    *,
    base: str | None = None,
    column: str | None = None,
    id_column: str | None = None,
    media_protocols: Sequence[str] = (),
    shard_size: int = DEFAULT_BLOCK,
    file_format: str = "parquet",
    rationales: bool = False,
    max_image_tokens: int | None = None,
    workers: int | None = None,
    threads: int = 1,
    gpus: float | None = None,
    address: str | None = None,
    show_progress_bar: bool | None = None,
    **options: Any,
) -> StreamSummary:
    """
    Embed a corpus with a pool of workers on Ray, into a folder as `encode_stream` writes it.

    Each worker has a model, takes a block of `shard_size` inputs, reads it, embeds it, and writes its file. Files are
    written whole or not at all: a worker that is killed costs the block that it had, which another one makes, and the
    same call goes on where a killed one stopped. `load_shards` and `read_shards` read the folder when it is finished.

    A block is embedded as one call of `encode_stream` with this `shard_size` embeds it: with as many threads and the
    same kind of device the vectors are the same, bit for bit, however many workers there are. For other sizes they
    differ by rounding (less than 1e-5 in float32), because other inputs share a batch.

    Args:
        inputs: files, see [`plan_blocks`]; or a dataset of Ray Data, of which only `shard_size` rows at a time are in
            a worker. Of files, blocks are numbered, and a folder that `encode_stream` began is gone on with. Blocks of
            a dataset are known by what they hold: a dataset that gives its rows in the same order when it is read
            again is not embedded again, and needs an `id_column`.
        model: the checkpoint: a folder that all machines see, or a Hub id that is in the cache of each of them:
            workers download nothing.
        output: the folder, which all machines see; or an address such as `s3://bucket/vectors`, on any file system
            that fsspec knows.
        base: where relative paths of pictures and videos start. Default: the folder of each file; of a dataset the
            current one.
        column: the column that is the input, a text or an object. Default: the columns text, image, video and
            instruction are its parts.
        id_column: the column of the ids, strings or integers. Default: 0, 1, ...; pictures have their names.
        media_protocols: file systems that inputs may name by addresses, say `("s3",)`, besides that of `base`.
        shard_size: inputs per block and file.
        file_format: `"parquet"` or `"safetensors"`, see `encode_stream`.
        rationales: whether to write the rationales, too.
        max_image_tokens: of one picture. Default: what the checkpoint says.
        workers: how many. Default: as many as the cluster has room for.
        threads: CPU cores of each.
        gpus: GPUs of each. Default: 1 if the cluster has any.
        address: of a running cluster, see [`connected`]. Default: the one that the process is connected to, or else
            Ray on this machine.
        show_progress_bar: as for `encode_stream`.
        **options: of `encode`, as for `encode_stream`, without `device`.

    Raises:
        InputError: with the index of an input in all files, or in its block of a dataset, that can't be embedded; its
            message names file and line, or id. What other workers finished stays.
        ValueError: as `encode_stream`; if files can't be read, or columns are missing.
        OSError: if a file can't be written, the workers of one block died several times, or none got so far.
        ImportError: if Ray is not installed, or what fsspec needs for a file system.
    """
    is_dataset = not isinstance(inputs, str | Path)
    _check_call(is_dataset, model, id_column, file_format, options)
    writing = check_options({"shard_size": shard_size, "file_format": file_format, "rationales": rationales})
    check_options({"show_progress_bar": show_progress_bar})
    reading = {"base": base, "column": column, "id_column": id_column, "protocols": tuple(media_protocols)}
    options = check_stream_options(options)
    place = str(output) if protocol_of(str(output)) else str(Path(output).expanduser().absolute())
    job = EmbeddingJob(is_dataset, absolute(str(model)), place, threads, max_image_tokens, reading, writing, options)
    given = inputs if is_dataset else _blocks(str(inputs), writing["shard_size"])
    cores = None if workers is None else workers * threads + 1  # one more reads datasets
    with connected(address, cpus=cores) as ray:
        return _embedded(given, job, slots(ray, workers, threads, gpus, spare=is_dataset), show_progress_bar)


def _blocks(address: str, size: int) -> list[Block]:
    if not (blocks := list(plan_blocks(address, size))):
        raise ValueError(f"{address}: there are no inputs to embed.")
    return blocks


def _check_call(
    is_dataset: bool, model: Any, id_column: str | None, file_format: str, options: dict[str, Any]
) -> None:
    """Refuse what can't be embedded by workers."""
    if is_dataset and id_column is None:
        raise ValueError("a dataset needs an `id_column`: blocks are embedded in any order, and rows have no numbers.")
    if not isinstance(model, str | Path):
        raise ValueError("the model is loaded by each worker: save it, and pass the folder.")
    if "device" in options:
        raise ValueError("the device can't be chosen here: Ray gives each worker its own. Say `gpus=0` for the CPU.")
    if file_format not in FORMATS:
        raise ValueError(f"file_format is {file_format!r}; allowed: {', '.join(FORMATS)}.")


def _embedded(
    given: Dataset | list[Block], job: EmbeddingJob, pool: WorkerSlots, show_progress_bar: bool | None
) -> StreamSummary:
    """Let a pool of workers embed blocks, or a dataset, and write the index."""
    answers = _answers(given, job, pool)
    count = len(given) if isinstance(given, list) else None
    total = sum(block.rows for block in given) if isinstance(given, list) else None
    with closing(answers), progress_bar(show_progress_bar) as bar:
        task = bar.add_task("Embedding", total=total)
        return _gathered(answers, job, bar, task, count)


def _answers(given: Any, job: EmbeddingJob, pool: WorkerSlots) -> Generator[dict[str, Any]]:
    """Let a pool of workers embed blocks, or a dataset; yield what they answer, of a dataset in its order."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext, from_items

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    if isinstance(given, list):
        # a block of Ray each: it is what Ray gives to a worker, and asks for again when that dies
        blocks = from_items([{_BLOCK: block.to_json()} for block in given], override_num_blocks=len(given))
    else:
        blocks = given.repartition(target_num_rows_per_block=job.writing["shard_size"], strict=True)
    attempts = attempt_counter()
    results = blocks.map_batches(
        EmbedBlocks,
        batch_size=1 if isinstance(given, list) else job.writing["shard_size"],
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=1, max_size=pool.workers, initial_size=pool.workers),
        fn_constructor_args=(job, attempts, pool),
        **pool.options(),
    )
    if not isinstance(given, list):
        results.context.execution_options.preserve_order = True
    try:
        for row in results.iter_rows():
            yield json.loads(row[_RESULT])
        tell_again(ray, attempts)
    finally:
        ray.kill(attempts)


def _gathered(
    answers: Iterator[dict[str, Any]], job: EmbeddingJob, bar: Any, task: Any, count: int | None
) -> StreamSummary:
    """Gather the answers of workers, and write the index; the first fault ends the run."""
    found: list[tuple[int, str, ShardInfo]] = []
    skipped = 0
    settings: dict[str, Any] = {}
    kinds: set[str] = set()
    for answer in answers:
        _check_fault(answer)
        settings = settings or answer["settings"]
        if answer["settings"] != settings:
            raise ValueError(
                f"workers have different models or versions of mmemb-r1: {job.model} is not the same checkpoint on "
                "all machines. Put the same one on each; files that are of another one are refused then."
            )
        info = ShardInfo(**answer["info"])
        found.append((len(found) if answer["index"] is None else answer["index"], answer["file"], info))
        skipped += not answer["new"]
        kinds.add(answer["kind"])
        if len(kinds) > 1:
            raise ValueError(
                f"ids are of several kinds ({', '.join(sorted(kinds))}); allowed: all strings, or integers."
            )
        bar.advance(task, info.rows)
    if not found:
        raise ValueError("there are no inputs to embed.")
    files = [(file, info) for _, file, info in sorted(found, key=itemgetter(0))]
    file, times = Counter(file for file, _ in files).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{times} blocks hold the same inputs and ids (see {file}); give each input its own id.")
    folder = Folder(job.output)
    there = folder.names()
    if missing := [file for file, _ in files if file not in there]:
        raise OSError(
            f"{job.output} has no file {missing[0]}, which a worker wrote: machines have other folders at this place. "
            "Name one that all of them see, or an address such as s3://bucket/vectors."
        )
    folder.find_settings()
    if count is not None:
        folder.find(vectors_path(folder.local, count, job.writing["file_format"]))
        check_end(folder.local, count, job.writing["file_format"])
    summary = finish_run(folder.local, settings, files, skipped)
    folder.keep_index()
    return replace(summary, output=job.output if protocol_of(job.output) else Path(job.output))


def _check_fault(answer: dict[str, Any]) -> None:
    """Raise what a worker answered, if it is a fault."""
    fault = answer.get("fault")
    if fault == "input":
        raise InputError(answer["index"], answer["reason"])
    if fault is not None:
        raise {"os": OSError, "value": ValueError}[fault](answer["reason"])
