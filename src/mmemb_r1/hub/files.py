"""Connect to the Hub, list the files of a repository, and say which files a checkpoint may have."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

import mmemb_r1

HUB_FILE = ".gitattributes"  # written by the Hub itself: neither pushed nor deleted
# Names of the files of a checkpoint; no library runs code from one of them unless it is told to trust it. All else,
# pickles first of all, is neither pushed nor pulled.
ALLOWED_NAMES = (
    "*.json", "*.safetensors", "*_mmemb_r1.py", "*.jinja", "*.model", "*.tiktoken", "*.md", "*.txt", "*.csv",
    "*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.svg", "LICENSE", "LICENCE", "NOTICE", "CITATION.cff",
)  # fmt: skip
ALLOWED = ", ".join(ALLOWED_NAMES)


def is_allowed(path: str) -> bool:
    """
    Tell whether a file of a repository may belong to a checkpoint, by its name.

    >>> [is_allowed(path) for path in ("model.safetensors", "assets/curve.PNG", "modeling_mmemb_r1.py")]
    [True, True, True]
    >>> [is_allowed(path) for path in ("optimizer.pt", "pytorch_model.bin", "notes.json.pkl", "train.py")]
    [False, False, False, False]
    """
    name = PurePosixPath(path).name
    stem, dot, suffix = name.rpartition(".")
    cases = (name, f"{stem}{dot}{suffix.lower()}")
    return name == HUB_FILE or any(fnmatchcase(case, pattern) for case in cases for pattern in ALLOWED_NAMES)


def hub_api(token: str | None = None) -> HfApi:
    """Make a client of the Hub. Endpoint, offline mode and, by default, token are those of the environment."""
    return HfApi(token=token, library_name="mmemb-r1", library_version=mmemb_r1.__version__)


def find_commit(api: HfApi, repo_id: str, revision: str | None) -> str:
    """Look up the commit, 40 hexadecimal digits, that a branch, tag, commit or pull request stands for."""
    return str(api.model_info(repo_id, revision=revision).sha)


def content_hashes(api: HfApi, repo_id: str, commit: str) -> dict[str, str]:
    """Map each file of a commit to the hash of its content: SHA-256 of a large file, git's SHA-1 of any other."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=commit)
    files = (entry for entry in tree if isinstance(entry, RepoFile))
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}
