"""What can go wrong with the Hub, in words that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

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
        raise ValueError(f"{error} Allowed: owner/name, for example org/mmemb-r1") from error
    if "/" not in repo_id:
        raise ValueError(f"{repo_id!r} has no owner; allowed: owner/name, for example org/mmemb-r1")


@contextmanager
def explained(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """
    Turn what the Hub's client raises in a block into a `HubError` that says what is wrong and what to do.

    Args:
        repo_id: the repository that the block works with.
        revision: what the block asks of it. Default: its main branch.
    """
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
