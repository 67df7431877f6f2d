"""Push a checkpoint to the Hub: in one commit on top of what was there, or not at all."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from mmemb_r1.hub import client
from mmemb_r1.hub.checks import check_checkpoint
from mmemb_r1.hub.client import HUB_FILE, LOG_IN, HubError, RepositoryMovedError, content_hashes, find_commit

COMMIT = re.compile(r"[0-9a-f]{40}")
PULL_REQUESTS = "refs/pr/"
HAS_MOVED = 412  # HTTP: precondition failed


@dataclass(frozen=True)
class Pushed:
    """What a push did."""

    repo_id: str
    commit: str  # that holds the checkpoint now
    changed: tuple[str, ...] = ()  # files that are new or differ; none if the repository held the checkpoint already
    deleted: tuple[str, ...] = ()  # files of the repository that the checkpoint does not have
    pull_request: str | None = None  # its address, if one was opened


def push_checkpoint(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Push checkpoint",
) -> Pushed:
    """
    Make a repository on the Hub hold what a folder holds, in one commit; the commit deletes what else was there.

    Large files go first and the commit comes last: until then every branch is as it was, a new repository is empty,
    and a push that was cut short is resumed when it is repeated. The commit is refused if the repository moved since
    the push began. Token and endpoint are those of the environment (`HF_TOKEN`, `HF_ENDPOINT`) or of `hf auth login`.

    Args:
        folder: the checkpoint; `check_checkpoint` says what it has to hold.
        repo_id: `owner/name`; created if there is none.
        private: create the repository as a private one. Default: the owner's setting for new repositories.
        revision: the branch, made from the main one if there is none, or a pull request (`refs/pr/1`) to add to.
            Default: the main branch.
        create_pr: open a pull request instead, to a repository that exists.
        commit_message: first line of the commit, and title of a pull request.

    Raises:
        ValueError: if an argument is wrong or the folder is not fit to be pushed.
        RepositoryMovedError: if somebody else committed meanwhile; nothing was changed.
        HubError: if the Hub refuses or can't be reached.
    """
    client.check_repo_id(repo_id)
    if create_pr and revision not in (None, constants.DEFAULT_REVISION):
        raise ValueError(
            f"revision={revision!r} and create_pr=True: a pull request goes to the main branch; leave one out"
        )
    if revision is not None and COMMIT.fullmatch(revision):
        raise ValueError(f"revision={revision!r} is a commit, which can't change; name a branch")
    root = Path(folder)
    names = check_checkpoint(root)
    if (token := get_token()) is None:
        raise HubError(f"no token was found, and pushing to {repo_id} needs one: {LOG_IN}")
    api = client.hub_api(token)
    with client.explained(repo_id, revision):
        _make_repository(api, repo_id, private, create_pr)
        new_branch = revision if revision is not None and not _has_branch(api, repo_id, revision) else None
        start = revision if new_branch is None else None  # the revision that the push builds on
        parent = find_commit(api, repo_id, start)
        before = content_hashes(api, repo_id, parent)
        deleted = sorted(set(before) - {*names, HUB_FILE})
        additions = [CommitOperationAdd(name, root / name) for name in names]
        _send_large_files(api, repo_id, additions, start, create_pr)
        # The client has just noted which files equal those of the branch, and leaves them out of the commit. So the
        # branch has to be where it was: else a pull request would be a mix of two checkpoints.
        _check_unmoved(api, repo_id, parent, start)
        if new_branch is not None:
            api.create_branch(repo_id, branch=new_branch, revision=parent, exist_ok=True)
            _check_unmoved(api, repo_id, parent, new_branch)
        try:
            commit = api.create_commit(
                repo_id,
                [*additions, *(CommitOperationDelete(name, is_folder=False) for name in deleted)],
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
                parent_commit=parent,
            )
        except HfHubHTTPError as error:
            if error.response.status_code != HAS_MOVED:
                raise
            raise _moved(repo_id, parent, find_commit(api, repo_id, revision)) from error
        if commit.oid == parent:
            return Pushed(repo_id, parent)
        after = content_hashes(api, repo_id, commit.oid)
        _check_arrived(api, repo_id, commit.oid, root, names)
    changed = tuple(name for name in names if before.get(name) != after[name])
    return Pushed(repo_id, commit.oid, changed, tuple(deleted), commit.pr_url)


def _make_repository(api: HfApi, repo_id: str, private: bool | None, create_pr: bool) -> None:
    try:
        info = api.model_info(repo_id)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        if create_pr:
            raise
        api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.model_info(repo_id)
    if private and not info.private:
        raise ValueError(f"{repo_id} exists and is public; make it private in its settings, or push without private")


def _has_branch(api: HfApi, repo_id: str, revision: str) -> bool:
    """Tell whether there is a revision to add to. A pull request can't be made by its name: the Hub refuses then."""
    return revision.startswith(PULL_REQUESTS) or revision in {ref.name for ref in api.list_repo_refs(repo_id).branches}


def _send_large_files(
    api: HfApi, repo_id: str, additions: list[CommitOperationAdd], revision: str | None, create_pr: bool
) -> None:
    """Upload the large files that the Hub does not have. No revision holds them yet."""
    try:
        api.preupload_lfs_files(repo_id, additions, revision=revision, create_pr=create_pr, free_memory=False)
    except RuntimeError as error:  # the client wraps whatever cut an upload short in it
        raise HubError(
            f"{error} ({error.__cause__}) {repo_id} holds what it held; push again: what has arrived is not sent again"
        ) from error


def _check_unmoved(api: HfApi, repo_id: str, parent: str, revision: str | None) -> None:
    if (now := find_commit(api, repo_id, revision)) != parent:
        raise _moved(repo_id, parent, now)


def _moved(repo_id: str, parent: str, now: str) -> RepositoryMovedError:
    return RepositoryMovedError(
        f"{repo_id} moved while this push was under way, from {parent} to {now}; nothing was changed. See what is "
        "there now, and push again"
    )


def _check_arrived(api: HfApi, repo_id: str, commit: str, root: Path, names: list[str]) -> None:
    """Raise a `HubError` unless the commit holds just the named files, with the content that the folder has."""
    found = api.verify_repo_checksums(repo_id, revision=commit, local_dir=root)
    wrong = {mismatch["path"] for mismatch in found.mismatches}
    wrong |= set(found.missing_paths) | set(names) & set(found.extra_paths)
    if wrong := wrong - {HUB_FILE}:
        raise HubError(
            f"{repo_id} at {commit} is not what {root} holds: {', '.join(sorted(wrong)[:5])} differ; was a file "
            "changed meanwhile, or is it left out by a .gitignore? Push again"
        )
