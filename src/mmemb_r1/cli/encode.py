"""`mmemb-r1 encode`: embed the inputs of a JSON lines file."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.cli._options import (
    add_base_option,
    add_encoding_options,
    add_engine_options,
    add_second_look_option,
    add_thinker_options,
    engine_given,
    listed,
    use_thinker,
)
from mmemb_r1.cli._ray import add_ray_options, ray_options

if TYPE_CHECKING:
    import numpy as np

    from mmemb_r1.stream import StreamSummary


HELP = """\
Embed the inputs of a JSON lines file, one vector per line and in the same order.

Each line is a string, an object with any of the keys text, image, video and instruction, or a list of chat messages.
Relative paths of images and videos start from the folder of the file (from the current folder when it is read from
standard input), or from --base. Blank lines are passed over.

The output's suffix chooses its format:
  .safetensors  tensors embeddings (N, D), gate_prob, reasoned and num_reasoning_tokens (N,); the rationales, if asked
                for, are a JSON list in the header under "rationales"
  .npy          embeddings (N, D); the rest goes to a file beside it that ends in .meta.jsonl
  .jsonl        one object per line that holds everything

An output that ends in / or is a folder, or any with --format, becomes a folder of shards (safetensors or Parquet) and
an index.json. The input is then read bit by bit and may be larger than memory, ids are 0, 1, ..., and the same command
goes on where a killed one stopped.

With --ray, several workers embed at the same time, each with a model: on the GPUs or cores of this machine, or of the
cluster at --address. The output is a folder of shards, Parquet unless --format says otherwise. The input may also be
Parquet files or a folder of pictures, at any address that fsspec knows, such as s3://bucket/pages."""

FORMATS = (".safetensors", ".npy", ".jsonl")
SHARD_FORMATS = ("safetensors", "parquet")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="the checkpoint: a folder or a Hub id")
    parser.add_argument("--input", required=True, metavar="FILE", help="JSON lines, or - for standard input")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help=f"ends in {', '.join(FORMATS)}; or a folder, with / at its end"
    )
    add_base_option(parser, "the input", str)
    parser.add_argument("--format", choices=SHARD_FORMATS, help="of the shards in a folder; default: safetensors")
    parser.add_argument("--rationales", action="store_true", help="also write the rationales")
    parser.add_argument(
        "--cache", metavar="DIR", help="keep embeddings in this folder, and don't compute those again that it holds"
    )
    add_thinker_options(parser)
    add_engine_options(parser)
    thinking = dict.fromkeys(("reasoning", "gate_threshold", "max_reasoning_tokens", "max_reasoning_rounds"))
    add_second_look_option(parser)
    add_encoding_options(
        parser,
        task="neither; it also chooses the checkpoint's prompt",
        **thinking,
        allow_remote_media="",
        max_image_tokens=None,
        batch_size=32,
        max_batch_tokens="16384",
        decode_batch_size="4 x --batch-size",
        shard_size="4096, with --ray 1024",
    )
    add_ray_options(parser, "workers, each with a model")
    columns = parser.add_argument_group("inputs of --ray")
    columns.add_argument(
        "--input-column",
        metavar="NAME",
        help="the column that is the input, a text or object; default: text, image, video, instruction are its parts",
    )
    columns.add_argument(
        "--id-column", metavar="NAME", help="the column of the ids; default: 0, 1, ..., and names of pictures"
    )
    columns.add_argument(
        "--media-protocols",
        type=listed,
        metavar="A,B",
        help="file systems that inputs may name by addresses, say s3; default: that of --base or of the input alone",
    )


def run(args: argparse.Namespace) -> int:
    output = Path(args.output)
    on_ray = ray_options(args, also=("input_column", "id_column", "media_protocols"))
    if on_ray is not None:
        return _encode_on_ray(args, on_ray)
    in_shards = _is_folder(args)
    if not in_shards and output.suffix not in FORMATS:
        raise ValueError(
            f"--output {args.output} ends in {output.suffix!r}; allowed: {', '.join(FORMATS)}, or a folder, with / at "
            "its end"
        )
    return _encode_in_shards(args, output) if in_shards else _encode_to_file(args, output)


def _is_folder(args: argparse.Namespace) -> bool:
    """Tell whether the output is to be a folder of shards."""
    output = Path(args.output)
    if args.output.endswith("/") or output.is_dir():
        return True
    options = [f"--{name.replace('_', '-')}" for name in ("format", "shard_size") if getattr(args, name) is not None]
    if options and output.suffix in FORMATS:
        raise ValueError(f"{options[0]} is for folders of shards, and --output {args.output} is one file")
    return args.format is not None


def _encode_to_file(args: argparse.Namespace, output: Path) -> int:
    written = [output, output.with_suffix(".meta.jsonl")] if output.suffix == ".npy" else [output]
    _check_output(args, written)
    lines, inputs = read_inputs(args.input, _base(args))

    from mmemb_r1.modeling.inputs_mmemb_r1 import InputError

    model, options = _model(args)
    try:
        rows: Any = model.explain(inputs, show_progress_bar=True, **options)
    except InputError as error:
        raise ValueError(f"line {lines[error.index]} can't be embedded: {error.reason}") from error
    write_embeddings(output, rows, rationales=args.rationales)
    thought = sum(bool(row["reasoned"]) for row in rows)
    print(f"{len(rows)} embeddings in {output}, {thought} of them reasoned", file=sys.stderr)
    return 0


def _encode_in_shards(args: argparse.Namespace, output: Path) -> int:
    if Path(args.input).parent.resolve() == output.resolve():
        _check_output(args, [output / "index.json", output / "settings.json", *output.glob("shard-*")])
    with _opened(args.input, _base(args)) as (stream, folder):
        from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
        from mmemb_r1.stream import DEFAULT_SHARD_SIZE, encode_stream

        shard_size = DEFAULT_SHARD_SIZE if args.shard_size is None else args.shard_size
        model, options = _model(args)
        inputs = _Inputs(stream, folder, max(shard_size, 1))
        try:
            summary = encode_stream(
                model,
                inputs,
                output,
                shard_size=shard_size,
                file_format=args.format or SHARD_FORMATS[0],
                rationales=args.rationales,
                **options,
            )
        except InputError as error:
            raise ValueError(f"line {inputs.line_of(error.index)} can't be embedded: {error.reason}") from error
    _tell(summary)
    return 0


def _encode_on_ray(args: argparse.Namespace, on_ray: dict[str, Any]) -> int:
    if args.input == "-":
        raise ValueError("--input - can't be read by several workers; write it to a file that all of them see")
    for option in ("cache", "device", "thinker", "thinker_form", "engine", "engine_options"):
        if getattr(args, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} is for one process; leave it out with --ray")
    if Path(args.output).suffix in FORMATS:
        raise ValueError(f"--output {args.output} is one file; with --ray name a folder, or an address of one")
    options = _options(args)
    if args.task is not None:
        options["task"] = args.task

    from mmemb_r1.ray import embed_dataset
    from mmemb_r1.ray.embedding import DEFAULT_BLOCK

    summary = embed_dataset(
        args.input,
        args.model,
        args.output,
        base=args.base,
        column=args.input_column,
        id_column=args.id_column,
        media_protocols=args.media_protocols or (),
        shard_size=DEFAULT_BLOCK if args.shard_size is None else args.shard_size,
        file_format=args.format or "parquet",
        rationales=args.rationales,
        max_image_tokens=args.max_image_tokens,
        **on_ray,
        **options,
    )
    _tell(summary)
    return 0


def _tell(summary: StreamSummary) -> None:
    there = f"; {summary.skipped} of {summary.shards} shards were there already" if summary.skipped else ""
    print(
        f"{summary.rows} embeddings in {summary.output}, {summary.reasoned} of them reasoned{there}", file=sys.stderr
    )


def _check_output(args: argparse.Namespace, written: Iterable[Path]) -> None:
    """Refuse to write over the input."""
    for path in written:
        if path.resolve() == Path(args.input).resolve() or (
            path.exists() and Path(args.input).exists() and path.samefile(args.input)
        ):
            raise ValueError(f"--output {args.output} would write {path}, which is the --input; name another output")


def _base(args: argparse.Namespace) -> Path | None:
    return None if args.base is None else Path(args.base)


def _model(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Load the model, and read the options of `encode`."""
    from mmemb_r1 import MMEmbR1

    model = MMEmbR1(args.model, device=args.device, **engine_given(args))
    if args.max_image_tokens is not None:
        model.max_image_tokens = args.max_image_tokens
    use_thinker(model, args)
    model.embedding_cache = args.cache
    options = _options(args)
    if args.task is not None:
        options |= {"task": args.task, "prompt": model.prompts.get(args.task)}
    return model, options


def _options(args: argparse.Namespace) -> dict[str, Any]:
    names = ["reasoning", "gate_threshold", "max_reasoning_tokens", "max_reasoning_rounds", "second_look"]
    names += ["max_batch_tokens", "decode_batch_size"]
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return options | {"allow_remote_media": args.allow_remote_media, "batch_size": args.batch_size}


class _Inputs:
    """Read the inputs of lines one by one; of the last `kept` ones, the numbers of their lines are known."""

    def __init__(self, stream: Iterable[str], folder: Path, kept: int) -> None:
        self.lines = _iterate(stream, folder)
        self.numbers: deque[int] = deque(maxlen=kept)
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        for number, value in self.lines:
            self.numbers.append(number)
            self.count += 1
            yield value

    def line_of(self, index: int) -> int:
        return self.numbers[index - self.count]


@contextmanager
def _opened(source: str, base: Path | None) -> Iterator[tuple[Iterable[str], Path]]:
    """Open the lines of a file, or of standard input for `-`; also yield the folder that paths in them start from."""
    if source == "-":
        yield sys.stdin, base or Path()
        return
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"--input {source} is a folder; name a file of JSON lines, one input a line")
    if not path.is_file():
        raise ValueError(f"--input {source}: there is no such file")
    _check_is_json_lines(path)
    try:
        with path.open(encoding="utf-8-sig") as stream:
            yield stream, path.parent if base is None else base
    except UnicodeDecodeError as error:
        raise ValueError(f"--input {source} is no text in UTF-8 ({error}); convert it first") from error


def _check_is_json_lines(path: Path) -> None:
    """Say what a file is that plainly holds something else than JSON lines."""
    with path.open("rb") as stream:
        start = stream.read(4096)
    wanted = 'JSON lines are needed, one input a line, for example {"text": "a dog", "image": "dog.png"}'
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"--input {path} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {path}")
    if path.suffix.lower() in (".csv", ".tsv"):
        raise ValueError(f"--input {path} is a table of separated values; {wanted}")
    if b"\0" in start or start.startswith((b"\x89PNG", b"\xff\xd8", b"PAR1", b"PK", b"%PDF", b"GIF8")):
        raise ValueError(f"--input {path} is no text; {wanted}")


def read_inputs(source: str, base: Path | None = None) -> tuple[list[int], list[Any]]:
    """Read a JSON lines file, or standard input for `-`: the number of each line that is not blank, and its input.

    Relative paths in it start from `base`. Default: from the folder of the file.

    Raises:
        ValueError: naming the line that is no JSON or no input; when there is no input at all.
    """
    with _opened(source, base) as (stream, folder):
        return parse_lines(stream, folder)


def parse_lines(stream: Iterable[str], folder: Path) -> tuple[list[int], list[Any]]:
    """Parse lines as `read_inputs` does; the paths in them are relative to `folder`.

    >>> parse_lines(['"a dog"', "", '{"image": "dog.png", "text": "Which breed?"}'], Path("pictures"))
    ([1, 3], ['a dog', {'image': 'pictures/dog.png', 'text': 'Which breed?'}])
    """
    rows = list(_iterate(stream, folder))
    if not rows:
        raise ValueError("the input holds no line to embed")
    return [number for number, _ in rows], [value for _, value in rows]


def _iterate(stream: Iterable[str], folder: Path) -> Iterator[tuple[int, Any]]:
    from mmemb_r1.content import with_paths_from
    from mmemb_r1.json_lines import iterate_lines

    return iterate_lines(stream, partial(with_paths_from, folder))


def write_embeddings(path: Path, rows: list[dict[str, Any]], *, rationales: bool) -> None:
    """Write what `explain` returned, in the format that the suffix of `path` names."""
    import numpy as np

    from mmemb_r1.runs import replaced_file

    embeddings = np.stack([np.asarray(row["embedding"], dtype=np.float32) for row in rows])  # (N, D)
    meta = [_meta(row, rationales) for row in rows]
    with replaced_file(path) as temporary:
        if path.suffix == ".jsonl":
            _write_jsonl(temporary, [{**m, "embedding": e.tolist()} for m, e in zip(meta, embeddings, strict=True)])
        elif path.suffix == ".npy":
            np.save(temporary, embeddings)
        else:
            _write_safetensors(temporary, embeddings, meta)
    if path.suffix == ".npy":
        with replaced_file(path.with_suffix(".meta.jsonl")) as temporary:
            _write_jsonl(temporary, meta)


def _meta(row: dict[str, Any], rationales: bool) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "gate_prob": float(row["gate_prob"]),
        "reasoned": bool(row["reasoned"]),
        "num_reasoning_tokens": int(row["num_reasoning_tokens"]),
    }
    return {**meta, "rationale": row["rationale"]} if rationales else meta


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_safetensors(path: Path, embeddings: np.ndarray, meta: list[dict[str, Any]]) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    from mmemb_r1.stream_shards import COLUMNS

    tensors: dict[str, np.ndarray] = {
        name: np.array([row[name] for row in meta], dtype=dtype) for name, dtype in COLUMNS.items()
    }
    texts = [row["rationale"] for row in meta if "rationale" in row]
    header = {"rationales": json.dumps(texts, ensure_ascii=False)} if texts else {}
    save_file({"embeddings": embeddings, **tensors}, path, metadata=header)
