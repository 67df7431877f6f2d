"""Keep the shards of a run in a folder of this machine, or on any file system that fsspec knows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

from mmemb_r1.ray.media import protocol_of
from mmemb_r1.stream import INDEX, SETTINGS


class Folder:
    """
    Open a folder of shards.

    A folder elsewhere has one here beside it, in which files are made before they are put there, and into which those
    are fetched that a run looks at.

    Args:
        address: a path, or an address such as `s3://bucket/vectors`.

    Attributes:
        local: the folder on this machine.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.system: Any = None
        if protocol_of(address) is None:
            self.local = Path(address)
            return
        import fsspec

        self.system, self.path = fsspec.core.url_to_fs(address)
        self._here = tempfile.TemporaryDirectory(prefix="mmemb-r1-shards-")
        self.local = Path(self._here.name)

    def find(self, path: Path) -> bool:
        """Tell whether a file is there, by its path in `local`; one that is elsewhere is fetched to that."""
        if self.system is None or path.exists():
            return path.exists()
        address = f"{self.path}/{path.name}"
        if not self.system.exists(address):
            return False
        self.system.get_file(address, str(path))
        return True

    def names(self) -> set[str]:
        """List the names of the files that are there, seen from this machine."""
        if self.system is None:
            return {file.name for file in self.local.iterdir()} if self.local.is_dir() else set()
        self.system.invalidate_cache(self.path)
        return {name.rsplit("/", 1)[-1] for name in self.system.ls(self.path, detail=False)}

    def find_settings(self) -> None:
        """Fetch what says of which run the folder is, if it is there."""
        self.find(self.local / SETTINGS)

    def keep_shard(self, name: str, is_new: bool) -> None:
        """Put a shard where it belongs, with the settings of its run; it leaves `local`."""
        if self.system is None:
            return
        if is_new:
            self._put(SETTINGS)
            if self.system.exists(f"{self.path}/{INDEX}"):
                self.system.rm_file(f"{self.path}/{INDEX}")
            self._put(name)
        (self.local / name).unlink()

    def keep_index(self) -> None:
        """Put the index and the settings where they belong."""
        if self.system is not None:
            self._put(SETTINGS)
            self._put(INDEX)

    def _put(self, name: str) -> None:
        """Put a file there, whole or not at all."""
        self.system.makedirs(self.path, exist_ok=True)
        part = f"{self.path}/.{name}.{uuid4().hex}"
        self.system.put_file(str(self.local / name), part)
        self.system.mv(part, f"{self.path}/{name}")
