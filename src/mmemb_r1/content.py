"""Parse what users pass: what an input holds, and its content key, so that equal inputs are embedded once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmemb_r1.modeling.inputs_mmemb_r1 import parse_input
from mmemb_r1.modeling.media_mmemb_r1 import (
    DEFAULTS,
    MediaOptions,
    find_file,
    is_array,
    open_image,
    parse_address,
    read_source,
    stored_source,
)
from mmemb_r1.modeling.videos_mmemb_r1 import given_frames, open_video

DIGEST_SIZE = 32
_Piece = tuple[str, bytes]  # what it is, and its content


def content_key(value: Any, media: MediaOptions = DEFAULTS) -> bytes:
    """
    Digest one input by what the model gets to see: the one key by which inputs are compared, everywhere.

    Inputs that hold the same in the same places have the same digest, whichever way they are written: `"Lima"`,
    `{"text": "Lima"}` and a chat of that one turn; a file's path and its bytes, whatever its name is. Pictures in
    memory and arrays count by their upright RGB pixels (never by palette indices, hidden colours or pixels that EXIF
    turns). Files count by their bytes, so that a corpus is not decoded for its keys: they are told from pictures in
    memory that hold the same pixels. Web addresses and data URLs count by their text: what is behind an address may
    change.

    Args:
        value: an input, see `parse_input`.
        media: its limits, and whether it may name web addresses.

    Returns:
        32 bytes. Of what is no input or can't be read: more bytes, other ones at each call, so that it is equal to
        nothing, and `encode` says what is wrong with it.

    >>> content_key("Lima") == content_key([{"role": "user", "content": "Lima"}]) != content_key("Quito")
    True
    """
    digest = blake2b(digest_size=DIGEST_SIZE)
    try:
        for kind, content in _pieces(parse_input(value, media), media):
            digest.update(f"{kind}:{len(content)}\n".encode())  # no kind holds a newline: no piece runs into the next
            digest.update(content)
    except (ValueError, OSError):
        return b"refused " + os.urandom(DIGEST_SIZE)
    return digest.digest()


def with_paths_from(folder: Path, value: Any) -> Any:
    """
    Make the relative paths of pictures and videos inside one input of a file start from `folder`: the one rule for
    JSON lines and tables.

    >>> with_paths_from(Path("data"), {"text": "a.png", "image": [{"path": "a.png", "bytes": None}, "/b.png"]})
    {'text': 'a.png', 'image': [{'path': 'data/a.png', 'bytes': None}, '/b.png']}

    Raises:
        ValueError: if a bare string names a file of the current folder, and none of `folder`.
    """
    if not isinstance(value, str):
        return with_media(partial(_path_from, folder), value, bare=partial(with_paths_from, folder))
    if parse_address(value).kind is None or parse_address(value).place != "path":
        return value
    inside = path_from(folder, value)
    if find_file(inside) is None and inside != value and find_file(value) is not None:
        raise ValueError(
            f"there is no file {inside!r:.200}, but one of that name in the current folder. Paths start from the "
            'folder of the file that holds them; correct the path, or write {"text": ...} to embed the string itself.'
        )
    return inside if find_file(inside) is not None else value


def with_media(change: Callable[[str], Any], value: Any, bare: Callable[[str], Any] = str) -> Any:
    """
    Change the addresses of the pictures and videos inside one input: paths, web addresses, and data URLs.

    Args:
        change: gets an address, and returns another or the medium's bytes.
        value: the input. What is in memory stays as it is.
        bare: gets a string that stands for itself in a list or chat. Default: it stays.

    >>> with_media(str.upper, {"text": "a", "image": ["b.png", {"path": "c.png", "bytes": None}]})
    {'text': 'a', 'image': ['B.PNG', {'path': 'C.PNG', 'bytes': None}]}
    """
    if isinstance(value, list):
        return [with_media(change, item, bare) for item in value]
    if isinstance(value, dict):
        media = {key: _changed(change, value[key]) for key in ("image", "video") if key in value}
        parts = value.get("content")
        nested = {"content": with_media(change, parts, bare)} if isinstance(parts, list) else {}
        return {**value, **media, **nested}
    return bare(value) if isinstance(value, str) else value


def _changed(change: Callable[[str], Any], media: Any) -> Any:
    """Change an address: in a string, in a `{"bytes", "path"}` dict that has no bytes, in lists of these."""
    if isinstance(media, list):
        return [_changed(change, item) for item in media]
    if isinstance(media, dict) and "path" in media:
        if media.get("bytes") or not isinstance(media["path"], str):
            return media
        found = change(media["path"])
        return {**media, "path" if isinstance(found, str) else "bytes": found}
    return change(media) if isinstance(media, str) else media


def path_from(folder: Path, media: Any) -> Any:
    """Make a relative path start from `folder`: as a string, in a `{"bytes", "path"}` dict, in lists of these."""
    return _changed(partial(_path_from, folder), media)


def _path_from(folder: Path, media: str) -> str:
    place, _, target = parse_address(media)
    if place != "path" or not target:
        return media
    written = folder / Path(media).expanduser()
    return str(written if find_file(written) else folder / Path(target).expanduser())


def as_input(value: Any) -> Any:
    """Wrap a single chat message: in a list of inputs it would be taken for a turn of a chat."""
    return [value] if isinstance(value, Mapping) and "role" in value else value


def distinct(values: Sequence[Any], media: MediaOptions = DEFAULTS) -> tuple[list[Any], np.ndarray]:
    """
    Drop the inputs of a call that are equal to earlier ones.

    Texts are compared as they are, which costs nearly nothing; all else by its content, see `content_key`.

    Args:
        values: inputs of `encode`.
        media: as for `content_key`.

    Returns:
        The distinct inputs in the order in which they come first, and for each of the N inputs which of these it is
        like: `(N,)`, intp.

    >>> distinct(["b", "a", {"text": "b"}, [{"role": "user", "content": "c"}], [{"role": "user", "content": "c"}]])
    (['b', 'a', [{'role': 'user', 'content': 'c'}]], array([0, 1, 0, 2, 2]))
    """
    values = list(values)  # all of them alive: no two objects have one id
    unique: list[Any] = []
    seen: dict[str | bytes, int] = {}
    known: dict[int, int] = {}  # objects that were looked into already
    index = np.empty(len(values), dtype=np.intp)
    for row, value in enumerate(values):
        text = value.get("text") if type(value) is dict and len(value) == 1 else _plain_text(value)
        if type(text) is str:
            place = seen.setdefault(text, len(unique))
        elif (place := known.get(id(value), -1)) < 0:
            place = known[id(value)] = seen.setdefault(content_key(value, media), len(unique))
        if place == len(unique):
            unique.append(value)
        index[row] = place
    return unique, index


def _plain_text(value: Any) -> str | None:
    """Return the value if it is text, and can't be the address of a picture or video."""
    return value if type(value) is str and parse_address(value).kind is None else None


def _pieces(messages: list[dict[str, Any]], media: MediaOptions) -> Iterator[_Piece]:
    for message in messages:
        yield "turn", message["role"].encode()
        for part in message["content"]:
            if part["type"] == "text":
                yield "text", part["text"].encode()
            elif part["type"] == "image":
                yield _image(part["image"], media)
            else:
                yield from _video(part["video"], media)


def _image(source: Any, media: MediaOptions) -> _Piece:
    source = stored_source(source)
    if isinstance(source, Image.Image) or is_array(source):
        picture = open_image(source, media)
        return f"pixels {picture.width}x{picture.height}", picture.tobytes()
    return _file("image", source, media)


def _video(source: Any, media: MediaOptions) -> Iterator[_Piece]:
    given: Any = given_frames(source)
    if given is None and hasattr(source, "get_frames_at"):  # a decoder, which does not tell its bytes
        given = open_video(source, media)
    if given is None:
        yield _file("video", stored_source(source), media)
        return
    frames, metadata = given
    yield "frames", str(metadata).encode()
    for frame in frames:
        yield _image(frame, media)


def _file(kind: str, source: Any, media: MediaOptions) -> _Piece:
    place = parse_address(source).place if isinstance(source, str) else "path"
    if place == "data":
        return f"{kind} in a URL", source.encode()
    if place == "web" and media.allow_remote:  # without: an error, also where it was embedded with permission once
        return f"{kind} on the web", source.encode()
    return kind, read_source(source, kind, media)


def given_parts(value: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the empty parts of a table's input.

    >>> given_parts({"text": "capital?", "image": [], "instruction": None})
    {'text': 'capital?'}
    """
    return {key: part for key, part in value.items() if part}


def inputs_of(column: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List the inputs of a table's column as the model takes them."""
    return [given_parts(value) for value in column]


def stored_digest(value: Any) -> bytes:
    """
    Digest an input as a table stores it, for seeds and to tell whether a table changed; no file is read.

    To compare inputs use [`content_key`].

    >>> stored_digest({"text": "a", "image": []}) == stored_digest({"text": "a"})
    True
    """
    digest = blake2b(digest_size=16)
    _feed(digest, value)
    return digest.digest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        stored = bool(value.get("bytes"))
        for key in sorted(key for key in value if value[key] not in (None, [], "")):
            if key != "path" or not stored:
                digest.update(f"{{{key}:".encode())
                _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(digest, item)
    else:
        digest.update(value if isinstance(value, bytes) else repr(value).encode())
