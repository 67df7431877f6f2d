"""What a repository holds at a commit, and whether a file on disk is what it holds."""

from __future__ import annotations

from hashlib import sha1, sha256
from pathlib import Path

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
