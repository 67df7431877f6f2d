"""Connect to the Hub, say which files a checkpoint may have, and turn errors into words that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

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


LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class HubError(OSError):
    """The Hub refused something, could not be reached, or sent something else than it should have."""


class RepositoryMovedError(HubError):
    """Somebody else committed while this push was under way. Nothing of it is in the repository; push again."""


def check_repo_id(repo_id: str) -> None:
    """Raise a `ValueError` unless `repo_id` is of the form `owner/name`."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{error} Allowed: owner/name, for example org/name") from error
    if "/" not in repo_id:
        raise ValueError(f"{repo_id!r} has no owner; allowed: owner/name, for example org/name")


@contextmanager
def explained(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the Hub's client raises in a block into a `HubError` that says what is wrong and what to do."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError(
            f"{repo_id} can't be reached: offline mode is on; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE"
        ) from error
    except GatedRepoError as error:
        raise HubError(f"{repo_id} is gated; ask for access at {constants.ENDPOINT}/{repo_id}") from error
    except RepositoryNotFoundError as error:
        remedy = "the token that was sent may not read it" if get_token() else f"no token was found: {LOG_IN}"
        raise HubError(f"there is no repository {repo_id}, or it is private and {remedy}") from error
    except RevisionNotFoundError as error:
        raise HubError(
            f"{repo_id} has no revision {revision or constants.DEFAULT_REVISION!r}; "
            "name a branch, a tag, a commit or a pull request (refs/pr/1)"
        ) from error
    except HfHubHTTPError as error:
        raise HubError(_refusal(repo_id, error)) from error
    except HTTPError as error:  # no answer at all
        raise HubError(f"the Hub can't be reached at {constants.ENDPOINT} ({error}); try again") from error


def _refusal(repo_id: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status == 401:
        return f"{repo_id}: the Hub does not know the token that was sent; {LOG_IN}"
    if status == 403:
        return (
            f"the token that was sent may not write to {repo_id} ({error.server_message}); "
            "use one with write access, or propose the change as a pull request"
        )
    return f"{repo_id}: the Hub answered {status}: {error.server_message or error}"
