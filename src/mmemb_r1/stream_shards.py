"""Write and read the files of a stream of embeddings, each of them whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mmemb_r1.runs import replaced_file

FORMATS = ("safetensors", "parquet")
_INFO = "mmemb_r1"  # the name of the description in a file's metadata
COLUMNS = {"gate_prob": np.float32, "reasoned": np.bool_, "num_reasoning_tokens": np.int64}  # beside the embeddings
Ids = list[int] | list[str]
_Content = tuple[Ids, dict[str, np.ndarray], Sequence[str] | None]  # ids, columns, rationales


@dataclass(frozen=True)
class ShardInfo:
    """
    Describe a shard, in its own metadata.

    Attributes:
        digest: of its inputs and ids, in their order.
        run: digest of the settings of the run that wrote it.
        rows: how many there are.
        dim: length of a vector.
        reasoned: how many of the inputs have a rationale.
        checksum: of all of that and of everything in the file.
    """

    digest: str
    run: str
    rows: int
    dim: int
    reasoned: int
    checksum: str = ""


def vectors_path(folder: Path, index: int | str, file_format: str) -> Path:
    """
    Name the file of a shard by its number, or by its digest.

    >>> vectors_path(Path("vectors"), 7, "parquet").as_posix()
    'vectors/shard-00007.parquet'
    """
    return folder / f"shard-{index:{'05d' if isinstance(index, int) else 's'}}.{file_format}"


def write_vectors(
    path: Path, digest: str, run: str, ids: Ids, columns: dict[str, np.ndarray], rationales: Sequence[str] | None
) -> ShardInfo:
    """
    Write a shard in the format that the path's suffix names.

    Args:
        path: where.
        digest: of its inputs and ids.
        run: digest of the settings of the run.
        ids: one per row.
        columns: `embeddings` `(N, D)`, `gate_prob`, `reasoned` and `num_reasoning_tokens` `(N,)`.
        rationales: one text per row, or nothing.
    """
    columns = {
        name: np.ascontiguousarray(columns[name], dtype=dtype)
        for name, dtype in {"embeddings": np.float32, **COLUMNS}.items()
    }
    rows, dim = columns["embeddings"].shape
    info = ShardInfo(digest, run, rows, dim, int(columns["reasoned"].sum()))
    info = replace(info, checksum=_checksum(info, ids, columns, rationales))
    write = _write_parquet if path.suffix == ".parquet" else _write_safetensors
    with replaced_file(path) as temporary:
        write(temporary, {_INFO: json.dumps(asdict(info))}, ids, columns, rationales)
    return info


def read_shard(path: Path) -> tuple[ShardInfo, Ids, np.ndarray]:
    """
    Read what a shard says of itself, its ids and its embeddings `(N, D)` float32.

    Everything in the file is read once, to compare it with its checksum; embeddings of a safetensors file are mapped.

    Raises:
        ValueError: if the file is damaged, or no shard.
    """
    with _errors_explained(path):
        metadata = _metadata(path)
        read = _parquet_content if path.suffix == ".parquet" else _safetensors_content
        info = ShardInfo(**json.loads(metadata[_INFO]))
        ids, columns, rationales = read(path, metadata)
        if _checksum(info, ids, columns, rationales) != info.checksum:
            raise _NoShardError("its content is not what was written: the checksum differs")
    return info, ids, columns["embeddings"]


def _checksum(info: ShardInfo, ids: Ids, columns: dict[str, np.ndarray], rationales: Sequence[str] | None) -> str:
    facts = [info.digest, info.run, info.rows, info.dim, info.reasoned, ids, rationales and list(rationales)]
    digest = blake2b(json.dumps(facts).encode(), digest_size=16)
    for name in sorted(columns):
        values = np.ascontiguousarray(columns[name])
        digest.update(json.dumps([name, str(values.dtype), values.shape]).encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


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
    # a flipped bit in the header can make any of the later ones of what is read there
    damaged = (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError)
    unreadable: tuple[type[Exception], ...] = (_NoShardError, *damaged, *_parquet_errors(path))
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

    return (pyarrow.ArrowException,)


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


def _safetensors_content(path: Path, metadata: dict[str, str]) -> _Content:
    with safe_open(path, framework="numpy") as tensors:
        ids = json.loads(metadata["ids"]) if "ids" in metadata else tensors.get_tensor("ids").tolist()
        columns = {name: tensors.get_tensor(name) for name in COLUMNS}
    with path.open("rb") as stream:  # 8 bytes say how long the header is; offsets count from its end
        length = int.from_bytes(stream.read(8), "little")
        entry = json.loads(stream.read(length))["embeddings"]
    offset = 8 + length + entry["data_offsets"][0]
    columns["embeddings"] = np.memmap(path, dtype="<f4", mode="r", offset=offset, shape=tuple(entry["shape"]))
    return ids, columns, json.loads(metadata["rationales"]) if "rationales" in metadata else None


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


def _parquet_content(path: Path, _: dict[str, str]) -> _Content:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    embeddings = table["embedding"].combine_chunks()
    values = embeddings.flatten().to_numpy()  # (N * D,)
    columns = {name: table[name].to_numpy() for name in COLUMNS}
    columns["embeddings"] = values.reshape(len(embeddings), embeddings.type.list_size)  # (N, D)
    rationales = table["rationale"].to_pylist() if "rationale" in table.column_names else None
    return table["id"].to_pylist(), columns, rationales
