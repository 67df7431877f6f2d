"""Fetch the pictures and videos of inputs from any file system that fsspec knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmemb_r1.content import with_media, with_paths_from

OF_THE_MODEL = ("http", "https", "file", "data")  # it reads these itself, or refuses them
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*)(::|://)")


def protocol_of(address: str) -> str | None:
    """
    Tell which file system an address names; a plain path names none.

    >>> protocol_of("s3://bucket/a.png"), protocol_of("data/a.png"), protocol_of("file:///a.png")
    ('s3', None, None)
    """
    match = _SCHEME.match(address)
    return None if match is None or match[1].lower() == "file" else match[1].lower()


def absolute(name: str) -> str:
    """Make a path that is there one that holds in any folder; an address, or a name of the Hub, stays."""
    path = Path(name).expanduser()
    return str(path.absolute()) if protocol_of(name) is None and path.exists() else name


def fetching(base: str, protocols: Sequence[str] = ()) -> Callable[[Any], Any]:
    """
    Make a function that gives an input the media that it names: paths on this machine, and bytes of what is elsewhere.

    Args:
        base: where relative paths start: a folder, or an address such as `s3://bucket/pictures`.
        protocols: file systems that inputs may name by full addresses (`s3`, `gs`), besides that of `base`. Whoever
            wrote the inputs chooses what is read there.

    Returns:
        The function. It raises a `ValueError` about a medium that is at another place, or can't be read.
    """
    at_base = protocol_of(base)
    allowed = {*protocols, *([at_base] if at_base else [])}
    fetch = partial(_fetched, base if at_base else None, allowed)
    if at_base:
        return partial(with_media, fetch)
    return lambda value: with_paths_from(Path(base), with_media(fetch, value))


def _fetched(base: str | None, allowed: set[str], address: str) -> str | bytes:
    protocol = protocol_of(address)
    if protocol is None and base is not None and not address.lstrip().startswith(("/", "~", "data:", "file:")):
        return _read(f"{base.rstrip('/')}/{address.strip()}")
    if protocol is None or protocol in OF_THE_MODEL:
        return address
    if "::" in address or protocol not in allowed:
        raise ValueError(
            f"it names {address!r:.100}, at {protocol!r}; allowed: paths, and "
            f"{', '.join(sorted(allowed)) or 'no other file systems'}. If whoever wrote the inputs may choose what is "
            f"read there, add {protocol!r} to `media_protocols`."
        )
    return _read(address.strip())


def _read(address: str) -> bytes:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(address)
        return system.cat_file(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"its {address!r:.200} can't be read ({type(error).__name__}: {reason:.200}).") from error
