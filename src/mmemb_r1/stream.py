"""Embed a corpus that is larger than memory into a folder of shards, which a killed run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from mmemb_r1.content import DIGEST_SIZE, as_input, content_key
from mmemb_r1.encoding import check_device, encoding_settings, media_options
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.options_mmemb_r1 import check_option, check_options, check_same_space
from mmemb_r1.progress import progress_bar
from mmemb_r1.runs import as_json, check_run, read_json, record_run, write_json
from mmemb_r1.stream_shards import (
    COLUMNS,
    Ids,
    ShardInfo,
    read_shard,
    vectors_path,
    write_vectors,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from sentence_transformers import SentenceTransformer


DEFAULT_SHARD_SIZE = 4096
SETTINGS, INDEX = "settings.json", "index.json"
FIXED = ("output_value", "precision", "convert_to_numpy", "convert_to_tensor")  # of `encode`: shards are float32
_LAYOUT = 2
_NAMED = 32  # digits of its digest that name the file of a shard without a number
_MISSING = object()


@dataclass
class StreamSummary:
    """
    Sum up what a folder of shards holds, and what the call did.

    Attributes:
        output: the folder, or its address where it is not on this machine.
        rows: how many inputs were embedded in all.
        dim: length of a vector.
        shards: how many files there are.
        reasoned: how many of the inputs have a rationale.
        skipped: shards that were there already.
    """

    output: Path | str
    rows: int = 0
    dim: int = 0
    shards: int = 0
    reasoned: int = 0
    skipped: int = 0


def encode_stream(
    model: SentenceTransformer,
    inputs: Iterable[Any],
    output: str | os.PathLike[str],
    *,
    ids: Iterable[int] | Iterable[str] | None = None,
    shard_size: int = DEFAULT_SHARD_SIZE,
    file_format: str = "safetensors",
    rationales: bool = False,
    show_progress_bar: bool | None = None,
    **options: Any,
) -> StreamSummary:
    """
    Embed inputs as they come, and write them to a folder that `load_shards` and `read_shards` read.

    No more than one shard of inputs is held in memory. Files are `shard-00000.safetensors` and so on, each written
    whole or not at all, and `index.json` when all are there. The same call on a folder that was not finished goes on
    where it stopped: shards that are there are not embedded again, but their inputs are read, and have to be the same.

    Args:
        model ([`MMEmbR1`]): the model.
        inputs: what `encode` takes, one by one. Read once.
        output: the folder; made if it is missing.
        ids: strings or integers, as many as inputs. Default: 0, 1, ...
        shard_size: inputs per file; a killed run loses no more.
        file_format: `"safetensors"`: tensors `embeddings` `(N, D)` float32, `gate_prob`, `reasoned` and
            `num_reasoning_tokens` `(N,)`; `ids` too if they are integers, else they are a JSON list in the header, as
            rationales are. `"parquet"`: columns `id`, `embedding`, `gate_prob`, `reasoned`, `num_reasoning_tokens`,
            and `rationale`.
        rationales: whether to write the rationales, too.
        show_progress_bar: a bar on standard error, if that is a terminal. Without it, how far it is, the rate and the
            time left are logged every 30 seconds (`mmemb_r1.progress`, level INFO). Default: `True`.
        **options: of `encode`, but for those that say what it returns; `task="document"` has the default of
            `encode_document`, and its prompt if `prompt` names none.

    Raises:
        InputError: a `ValueError` that names the index in the whole stream of an input that can't be embedded; the
            shards before stay.
        ValueError: if an argument is not what it has to be, there are no inputs, `ids` are not as many as inputs, or
            an id comes twice in a shard; if the folder was begun with another model, options or settings; if a shard
            that is there holds other inputs or ids; for `reasoning="auto"` of a model whose direct and reasoned
            embeddings are two spaces.
    """
    own: dict[str, Any] = {"shard_size": shard_size, "file_format": file_format, "rationales": rationales}
    own = check_options(own | {"show_progress_bar": show_progress_bar})
    options = _check(model, inputs, options)
    run = ShardRun(model, Path(output).expanduser(), own["shard_size"], file_format, own["rationales"], options)
    with progress_bar(show_progress_bar) as bar:
        task = bar.add_task("Embedding", total=len(inputs) if isinstance(inputs, Sized) else None)
        return _embed(run, own["shard_size"], _with_ids(inputs, ids), bar, task)


def _embed(
    run: ShardRun, shard_size: int, pairs: Iterator[tuple[Any, Any]], bar: Progress, task: TaskID
) -> StreamSummary:
    """Make the shards of all inputs, one after another, and the index."""
    shards: list[tuple[str, ShardInfo]] = []
    skipped = 0
    # a shard's inputs live in `_next` alone, and are gone before those of the next are read
    while (shard := _next(run, len(shards), shard_size, pairs)) is not None:
        file, info, is_new = shard
        shards.append((file, info))
        skipped += not is_new
        bar.advance(task, info.rows)
    check_end(run.output, len(shards), run.file_format)
    return finish_run(run.output, run.settings, shards, skipped)


def _next(
    run: ShardRun, index: int, shard_size: int, pairs: Iterator[tuple[Any, Any]]
) -> tuple[str, ShardInfo, bool] | None:
    """Make the next shard, if there are inputs left."""
    names, values = [], []
    for name, value in islice(pairs, shard_size):
        names.append(name)
        values.append(value)
    return run.shard(index, index * shard_size, names, values) if values else None


def read_shards(output: str | os.PathLike[str], *, queries: str | None = None) -> Iterator[tuple[Ids, np.ndarray]]:
    """
    Read ids and embeddings `(N, D)` float32 of a finished `encode_stream`, shard by shard.

    Embeddings of safetensors files are mapped: they are read from the disk where they are used, and can't be changed.

    Args:
        output: the folder.
        queries: the reasoning mode of the queries that will be compared with these, `"never"`, `"always"` or `"auto"`.
            Default: not known, so that nothing is refused.

    Raises:
        ValueError: if the folder holds no finished run, or a file is damaged; if direct and reasoned embeddings of the
            model are two spaces, and the folder and the queries are of different ones.
    """
    folder = Path(output).expanduser()
    index = _index(folder)
    if queries is not None:
        check_option("reasoning", queries)
        settings = index["settings"]
        check_same_space(settings.get("spaces", 1), queries, settings["reasoning"])
    for shard in index["shards"]:
        path = folder / shard["file"]
        info, ids, embeddings = read_shard(path)
        if info.checksum != shard["checksum"]:
            raise ValueError(
                f"{path} is not the file that {folder / INDEX} lists, but one of another run or place. Put the right "
                "one back, or remove it; the call that wrote it then makes it again."
            )
        yield ids, embeddings


def load_shards(output: str | os.PathLike[str], *, queries: str | None = None) -> tuple[Ids, np.ndarray]:
    """
    Load ids and embeddings `(N, D)` float32 of a finished `encode_stream`, in the order of the inputs.

    Args:
        output, queries: as in `read_shards`.

    Raises:
        ValueError: as `read_shards`.
    """
    index = _index(Path(output).expanduser())
    embeddings = np.empty((index["rows"], index["dim"]), dtype=np.float32)
    ids: list[Any] = []
    for names, rows in read_shards(output, queries=queries):
        embeddings[len(ids) : len(ids) + len(names)] = rows
        ids += names
    return ids, embeddings


def _index(folder: Path) -> dict[str, Any]:
    if not (folder / INDEX).is_file():
        begun = (folder / SETTINGS).is_file()
        raise ValueError(
            f"{folder} holds a run of encode_stream that is not finished; make the same call again, and it goes on."
            if begun
            else f"{folder} holds no embeddings of encode_stream."
        )
    return read_json(folder / INDEX)


def _check(model: SentenceTransformer, inputs: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check all that is given before anything is read, and make the options of `encode` plain values."""
    messages = isinstance(inputs, list) and all(isinstance(one, Mapping) and "role" in one for one in inputs)
    whole = isinstance(inputs, str | bytes | Mapping | Image.Image | np.ndarray) and model.is_singular_input(inputs)
    if not isinstance(inputs, Iterable) or whole or (messages and inputs):
        raise ValueError(
            f"inputs={inputs!r:.80} is one input, or none; pass a list of inputs, or an iterator. A single "
            "one is embedded by encode."
        )
    return check_stream_options(options)


def check_stream_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Check options of `encode` for vectors that are kept in shards, and make them plain values.

    Raises:
        ValueError: if one is not known, out of its range, or says what `encode` returns.
    """
    if fixed := [name for name in FIXED if name in options]:
        raise ValueError(f"{fixed[0]} can't be chosen here: shards hold float32 vectors. Leave it out.")
    check_device(options.get("device"))
    return check_options(options)


def _with_ids(inputs: Iterable[Any], ids: Iterable[Any] | None) -> Iterator[tuple[Any, Any]]:
    """Pair ids and inputs."""
    if ids is None:
        yield from enumerate(inputs)
        return
    for number, (name, value) in enumerate(zip_longest(ids, inputs, fillvalue=_MISSING)):
        if name is _MISSING or value is _MISSING:
            more, fewer = ("inputs", "ids") if name is _MISSING else ("ids", "inputs")
            raise ValueError(f"there are {number} {fewer}, and more {more}; pass as many of both.")
        yield name, value


def _checked_ids(ids: list[Any], kind: type | None) -> Ids:
    """Check the ids of a shard: each once, and of the `kind` of the shards before."""
    checked: list[Any] = [_checked_id(name) for name in ids]
    kind = kind or type(checked[0])
    seen: set[Any] = set()
    for name in checked:
        if type(name) is not kind:
            raise ValueError(f"the id {name!r:.80} is no {kind.__name__} as those before; ids are all of one kind.")
        if name in seen:
            raise ValueError(f"the id {name!r:.80} comes twice; give each input its own.")
        seen.add(name)
    return checked


def _checked_id(name: Any) -> int | str:
    if isinstance(name, str):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the id {name!r:.80} is no text that can be written as UTF-8.") from error
        return str(name)
    if isinstance(name, int | np.integer) and not isinstance(name, bool) and -(2**63) <= name < 2**63:
        return int(name)
    raise ValueError(f"an id is {name!r:.80} of type {type(name).__name__}; allowed: strings, or 64-bit integers.")


class ShardRun:
    """
    Write the shards of one run into its folder, one at a time and in any order.

    Args:
        model: the model.
        output: the folder.
        shard_size, file_format, rationales: as for [`encode_stream`].
        options: of `encode`, checked.

    Attributes:
        find: tells whether the file of a shard is there, and may bring it. Default: it is, or is not.

    Raises:
        ValueError: if `output` is a file or was begun with another model, options or settings; for `reasoning="auto"`
            of a model whose direct and reasoned embeddings are two spaces.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        output: Path,
        shard_size: int,
        file_format: str,
        rationales: bool,
        options: dict[str, Any],
    ) -> None:
        self.model, self.output = model, output
        self.file_format, self.rationales = file_format, rationales
        self.id_kind: type | None = None
        self.find: Callable[[Path], bool] = Path.exists
        if output.exists() and not output.is_dir():
            raise ValueError(f"{output} is a file; name a folder, which holds the shards.")
        self.media = media_options(model, options)
        self.options, settings = encoding_settings(model, options)
        self.settings: dict[str, Any] = {
            "layout": _LAYOUT,
            **settings,
            "shard_size": shard_size,
            "file_format": file_format,
            "rationales": rationales,
        }
        self.digest = blake2b(as_json(self.settings).encode(), digest_size=16).hexdigest()
        check_run(output / SETTINGS, self.settings)

    def shard(self, index: int | None, start: int, ids: list[Any], values: list[Any]) -> tuple[str, ShardInfo, bool]:
        """
        Make a shard, or look at the one that is there.

        Args:
            index: its number. `None`: it has no place among the others, and its file is named by what it holds.
            start: the number of its first input in the whole stream, for errors.
            ids: one per input.
            values: the inputs, at least one.

        Returns:
            The name of its file, what it holds, and whether it is new.

        Raises:
            InputError: with the index in the whole stream.
            ValueError: if the file of this number holds something else, or an id is none.
        """
        ids = _checked_ids(ids, self.id_kind)
        self.id_kind = type(ids[0])
        digest = _digest(ids, values, self.media)
        path = vectors_path(self.output, digest[:_NAMED] if index is None else index, self.file_format)
        if self.find(path):
            info, _, _ = read_shard(path)
            if info.run != self.digest:
                raise ValueError(
                    f"{path} was written by a run with another model, options or settings than these. Remove it, or "
                    "choose another folder."
                )
            if info.digest != digest:
                raise ValueError(
                    f"{path} holds other inputs or ids than those that come now: {info.rows} of them, now there are "
                    f"{len(values)}, from number {start} on. Pass the same ones in the same order, remove the file to "
                    "embed these instead, or choose another folder."
                )
            return path.name, info, False
        columns, rationales = self._embedded(values, start)
        # only now: until something came of them, settings may be corrected
        record_run(self.output / SETTINGS, self.settings)
        (self.output / INDEX).unlink(missing_ok=True)  # of a run that had fewer inputs, or lost this shard
        return path.name, write_vectors(path, digest, self.digest, ids, columns, rationales), True

    def _embedded(self, values: list[Any], start: int) -> tuple[dict[str, np.ndarray], list[str] | None]:
        try:
            rows = self.model.encode(
                [as_input(value) for value in values], output_value=None, show_progress_bar=False, **self.options
            )
        except InputError as error:
            raise error.at(start + error.index) from error
        columns = {
            "embeddings": torch.stack([row["sentence_embedding"] for row in rows]).float().cpu().numpy(),  # (N, D)
            **{
                name: torch.stack([row[name] for row in rows]).cpu().numpy()  # (N,)
                for name in COLUMNS
            },
        }
        return columns, [self.model._explained(row)["rationale"] for row in rows] if self.rationales else None


def finish_run(
    output: Path, settings: Mapping[str, Any], shards: Sequence[tuple[str, ShardInfo]], skipped: int
) -> StreamSummary:
    """
    Write the index of a folder, when all of its shards are there.

    Args:
        output: the folder.
        settings: of the run, see [`ShardRun`].
        shards: file and content of each, in the order of the inputs.
        skipped: how many of them were there already.

    Raises:
        ValueError: if there are no shards.
    """
    if not shards:
        raise ValueError("there are no inputs to embed.")
    infos = [info for _, info in shards]
    summary = StreamSummary(
        output=output,
        rows=sum(info.rows for info in infos),
        dim=infos[0].dim,
        shards=len(infos),
        reasoned=sum(info.reasoned for info in infos),
        skipped=skipped,
    )
    record_run(output / SETTINGS, settings)  # where it is gone: the shards are of this run
    index = {
        **{name: value for name, value in asdict(summary).items() if name in ("rows", "dim", "reasoned")},
        "shards": [{"file": file, "rows": info.rows, "checksum": info.checksum} for file, info in shards],
        "settings": settings,
    }
    write_json(output / INDEX, index)
    return summary


def check_end(output: Path, count: int, file_format: str) -> None:
    """Refuse inputs that end, after `count` shards, before those in the folder do."""
    if vectors_path(output, count, file_format).exists():
        raise ValueError(
            f"{output} holds more than {count} shards, and the inputs end there. Pass the same inputs, or choose "
            "another folder."
        )


def _digest(ids: Ids, values: list[Any], media: MediaOptions) -> str:
    digest = blake2b(json.dumps(ids).encode(), digest_size=DIGEST_SIZE)
    for value in values:
        digest.update(content_key(value, media))
    return digest.hexdigest()
