"""List the files of a Hub repository, verify them, and recognise files that run code when they are loaded."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from hashlib import sha1, sha256
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

import mmemb_r1

UNTOUCHED = ".gitattributes"  # the Hub's own file: neither pushed nor deleted


def hub_api(token: str | None = None) -> HfApi:
    """The Hub's client: endpoint, offline mode and, by default, token as the environment and `hf auth login` say."""
    return HfApi(token=token, library_name="mmemb-r1", library_version=mmemb_r1.__version__)


def head(api: HfApi, repo_id: str, revision: str | None) -> str:
    """The commit, 40 hexadecimal digits, that a branch, tag, commit or pull request stands for."""
    return str(api.model_info(repo_id, revision=revision).sha)


def list_files(api: HfApi, repo_id: str, commit: str) -> dict[str, RepoFile]:
    """Path -> entry, of all files at a commit."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=commit)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def content_hash(entry: RepoFile) -> str:
    """The hash of a file's content: SHA-256 of one in large file storage, git's SHA-1 of any other."""
    return entry.lfs.sha256 if entry.lfs else entry.blob_id


def matches(path: Path, entry: RepoFile) -> bool:
    """Whether the file at `path` is there and holds what the listing says."""
    if not path.is_file():
        return False
    # git hashes a blob behind its type and length
    digest = sha256() if entry.lfs else sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest() == content_hash(entry)


SUFFIXES = frozenset({".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
START = 2**16  # bytes of a file that are looked at
# what zipfile raises for archives that are broken, encrypted, or packed in a way that it doesn't know
UNREADABLE = (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, lzma.LZMAError, zlib.error)


def has_pickle_name(name: str) -> bool:
    """
    >>> [has_pickle_name(name) for name in ("model.safetensors", "optimizer.pt", "1_Dense/pytorch_model.BIN")]
    [False, True, True]
    """
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def pickle_problem(path: Path) -> str | None:
    """
    What is wrong with a file that is a pickle by how it starts, or may hide one; `None` if nothing is.

    A pickle is what starts as those of protocol 2 or newer do (older ones have no such sign), and a numpy array of
    objects. A zip archive, as torch saves, holds one if a member is one by its name or its start; one that can't be
    read may hold one. Other archives are not opened.
    """
    with path.open("rb") as file:
        start = file.read(START)
    # a safetensors file begins with the length of its header, which may look like anything
    found = path.suffix != ".safetensors" and _is_pickle(start)
    try:
        found = found or (zipfile.is_zipfile(path) and _has_pickle(path))
    except UNREADABLE as error:
        return f"is an archive that can't be searched for pickles ({error}); move it elsewhere"
    return "is a pickle, which runs code when it is loaded; save safetensors, or move it elsewhere" if found else None


def _has_pickle(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as inner:
                if has_pickle_name(member.filename) or _is_pickle(inner.read(START)):
                    return True
    return False


def _is_pickle(start: bytes) -> bool:
    has_header = start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")
    # the header of a numpy array is one line of text
    is_array_of_objects = start.startswith(b"\x93NUMPY") and b"|O" in start.split(b"\n", 1)[0]
    return has_header or is_array_of_objects
