"""Write and read the files of a stream of embeddings, each of them whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mmemb_r1.runs import replaced_file

FORMATS = ("safetensors", "parquet")
_INFO = "mmemb_r1"  # the name of the description in a file's metadata
COLUMNS = {"gate_prob": np.float32, "reasoned": np.bool_, "num_reasoning_tokens": np.int64}  # beside the embeddings
Ids = list[int] | list[str]


@dataclass(frozen=True)
class ShardInfo:
    """
    Describe a shard, in its own metadata.

    Attributes:
        digest: of its inputs and ids, in their order.
        rows: how many there are.
        dim: length of a vector.
        reasoned: how many of the inputs have a rationale.
    """

    digest: str
    rows: int
    dim: int
    reasoned: int


def vectors_path(folder: Path, index: int, file_format: str) -> Path:
    """
    Name the file of a shard.

    >>> vectors_path(Path("vectors"), 7, "parquet").as_posix()
    'vectors/shard-00007.parquet'
    """
    return folder / f"shard-{index:05d}.{file_format}"


def write_vectors(
    path: Path, digest: str, ids: Ids, columns: dict[str, np.ndarray], rationales: Sequence[str] | None
) -> ShardInfo:
    """
    Write a shard in the format that the path's suffix names.

    Args:
        path: where.
        digest: of its inputs and ids.
        ids: one per row.
        columns: `embeddings` `(N, D)`, `gate_prob`, `reasoned` and `num_reasoning_tokens` `(N,)`.
        rationales: one text per row, or nothing.
    """
    columns = {
        name: np.ascontiguousarray(columns[name], dtype=dtype)
        for name, dtype in {"embeddings": np.float32, **COLUMNS}.items()
    }
    rows, dim = columns["embeddings"].shape
    info = ShardInfo(digest, rows, dim, int(columns["reasoned"].sum()))
    write = _write_parquet if path.suffix == ".parquet" else _write_safetensors
    with replaced_file(path) as temporary:
        write(temporary, {_INFO: json.dumps(asdict(info))}, ids, columns, rationales)
    return info


def read_shard_info(path: Path) -> ShardInfo:
    """
    Read what a shard says of itself.

    Raises:
        ValueError: if the file is damaged, or no shard.
    """
    with _errors_explained(path):
        return ShardInfo(**json.loads(_metadata(path)[_INFO]))


def read_vectors(path: Path) -> tuple[Ids, np.ndarray]:
    """
    Read ids and embeddings `(N, D)` float32 of a shard; those of a safetensors file stay on disk until they are used.

    Raises:
        ValueError: if the file is damaged, or no shard.
    """
    with _errors_explained(path):
        read = _parquet_rows if path.suffix == ".parquet" else _safetensors_rows
        return read(path, _metadata(path))


def _metadata(path: Path) -> dict[str, str]:
    """Read a file's metadata, which tell that it is a shard."""
    metadata = _parquet_metadata(path) if path.suffix == ".parquet" else _safetensors_metadata(path)
    if _INFO not in metadata:
        raise _NoShardError("it is no shard of embeddings")
    return metadata


class _NoShardError(Exception):
    """Raised for a file that `write_vectors` did not write."""


@contextmanager
def _errors_explained(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file into one that says what to do."""
    unreadable: tuple[type[Exception], ...] = (_NoShardError, SafetensorError, OSError, *_parquet_errors(path))
    try:
        yield
    except unreadable as error:
        raise ValueError(
            f"{path} can't be read ({error}). Remove it; the call that wrote it then makes it again."
        ) from error


def _parquet_errors(path: Path) -> tuple[type[Exception], ...]:
    if path.suffix != ".parquet":
        return ()
    import pyarrow

    return (pyarrow.ArrowInvalid,)


def _write_safetensors(
    path: Path, metadata: dict[str, str], ids: Ids, columns: dict[str, np.ndarray], rationales: Sequence[str] | None
) -> None:
    if isinstance(ids[0], int):
        columns = {"ids": np.array(ids, dtype=np.int64), **columns}
    else:
        metadata = {**metadata, "ids": json.dumps(ids, ensure_ascii=False)}
    if rationales is not None:
        metadata = {**metadata, "rationales": json.dumps(rationales, ensure_ascii=False)}
    save_file(columns, path, metadata=metadata)


def _safetensors_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as tensors:
        return tensors.metadata() or {}


def _safetensors_rows(path: Path, metadata: dict[str, str]) -> tuple[Ids, np.ndarray]:
    with safe_open(path, framework="numpy") as tensors:
        ids = json.loads(metadata["ids"]) if "ids" in metadata else tensors.get_tensor("ids").tolist()
    with path.open("rb") as stream:  # 8 bytes say how long the header is; offsets count from its end
        length = int.from_bytes(stream.read(8), "little")
        entry = json.loads(stream.read(length))["embeddings"]
    offset = 8 + length + entry["data_offsets"][0]
    return ids, np.memmap(path, dtype="<f4", mode="r", offset=offset, shape=tuple(entry["shape"]))


def _write_parquet(
    path: Path, metadata: dict[str, str], ids: Ids, columns: dict[str, np.ndarray], rationales: Sequence[str] | None
) -> None:
    import pyarrow
    import pyarrow.parquet

    embeddings = columns["embeddings"]  # (N, D)
    values = pyarrow.array(embeddings.reshape(-1))  # (N * D,)
    arrays = {
        "id": pyarrow.array(ids, type=pyarrow.int64() if isinstance(ids[0], int) else pyarrow.string()),
        "embedding": pyarrow.FixedSizeListArray.from_arrays(values, embeddings.shape[1]),
        **{name: pyarrow.array(columns[name]) for name in COLUMNS},
    }
    if rationales is not None:
        arrays["rationale"] = pyarrow.array(rationales, type=pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table(arrays).replace_schema_metadata(metadata), path)


def _parquet_metadata(path: Path) -> dict[str, str]:
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_schema(path).metadata or {}
    return {name.decode(): value.decode() for name, value in metadata.items()}


def _parquet_rows(path: Path, _: dict[str, str]) -> tuple[Ids, np.ndarray]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, columns=["id", "embedding"])
    embeddings = table["embedding"].combine_chunks()
    values = embeddings.flatten().to_numpy()  # (N * D,)
    return table["id"].to_pylist(), values.reshape(len(embeddings), embeddings.type.list_size)  # (N, D)
