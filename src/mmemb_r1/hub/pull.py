"""Pull a checkpoint from the Hub: the files of one commit, verified, and nothing that is not part of a checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache

from mmemb_r1.hub.client import HubError, check_repo_id, content_hashes, explained, find_commit, hub_api, is_allowed


@dataclass(frozen=True)
class Pulled:
    """What a pull brought."""

    repo_id: str
    commit: str  # that the revision stood for
    folder: Path
    code_commit: str | None = None  # of the code, if that was asked for separately
    left_out: tuple[str, ...] = ()  # files that were not downloaded: a checkpoint has none of such names


def pull_checkpoint(
    repo_id: str,
    *,
    revision: str | None = None,
    code_revision: str | None = None,
    output: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Pulled:
    """
    Download a repository at one commit and check every file against the hash that the repository lists.

    Nothing that was downloaded is run. Files that are not of a checkpoint, pickles among them, are left out. A pull
    that was cut short is resumed when it is repeated. Token and endpoint are those of the environment (`HF_TOKEN`,
    `HF_ENDPOINT`) or of `hf auth login`.

    Args:
        repo_id: `owner/name`.
        revision: a branch, tag, commit or pull request (`refs/pr/1`). Default: the main branch.
        code_revision: where the code files (`*.py`) are taken from: into the same folder with `output`, into a
            snapshot beside the other one in the cache without. Default: `revision`.
        output: a new folder, made when everything is there, or an empty one, filled then. Default: the Hub's cache,
            where loading by id finds the checkpoint.
        cache_dir: another cache. Default: that of the environment (`HF_HOME`).

    Raises:
        ValueError: if an argument is wrong.
        HubError: if the Hub refuses or can't be reached, or a file is not what the repository lists; it is removed.
    """
    check_repo_id(repo_id)
    target = None if output is None else Path(output).resolve()  # the current folder has a name and a parent, too
    if target is not None:
        _check_free(target)
    api = hub_api()
    with explained(repo_id, revision):
        commit = find_commit(api, repo_id, revision)
    with explained(repo_id, code_revision):
        code_commit = None if code_revision is None else find_commit(api, repo_id, code_revision)
    # the files arrive in a folder for just these commits, so that what an earlier pull left there is of use
    partial = target and target.with_name(f".{target.name}.{commit[:12]}{(code_commit or '')[:12]}.partial")
    places = (None if cache_dir is None else Path(cache_dir), partial)
    left_out: list[str] = []
    if code_commit is not None:
        left_out += _download(api, repo_id, code_commit, *places, wanted=_is_code)[1]
    with_code = code_commit is None or partial is None  # in the cache each commit has its own folder
    folder, others = _download(api, repo_id, commit, *places, wanted=lambda name: with_code or not _is_code(name))
    if target is not None:
        _move(folder, target)
    return Pulled(repo_id, commit, target or folder, code_commit, tuple(others + left_out))


def _check_free(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"output {target} exists and is not an empty folder; name a new one")


def _move(partial: Path, target: Path) -> None:
    """Put a complete download in its place."""
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's record of what has arrived
    _check_free(target)
    if target.exists():  # kept, because it may be the current folder of a shell
        for entry in list(partial.iterdir()):
            entry.rename(target / entry.name)
        partial.rmdir()
    else:
        partial.rename(target)


def _is_code(name: str) -> bool:
    return name.endswith(".py")


def _download(
    api: HfApi,
    repo_id: str,
    commit: str,
    cache_dir: Path | None,
    local_dir: Path | None,
    *,
    wanted: Callable[[str], bool],
) -> tuple[Path, list[str]]:
    """Download and verify the wanted files of a commit. Return their folder, and the names that are not allowed."""
    with explained(repo_id, commit):
        listed = sorted(filter(wanted, content_hashes(api, repo_id, commit)))
        chosen = set(filter(is_allowed, listed))
        folder = Path(
            api.snapshot_download(
                repo_id,
                revision=commit,
                allow_patterns=[escape(name) for name in chosen],
                cache_dir=cache_dir,
                local_dir=local_dir,
            )
        )
        bad: list[str] = []
        if chosen:
            cache = cache_dir if local_dir is None else None  # it verifies one of them
            found = api.verify_repo_checksums(repo_id, revision=commit, cache_dir=cache, local_dir=local_dir)
            bad = sorted(chosen & {*found.missing_paths, *(mismatch["path"] for mismatch in found.mismatches)})
    for name in bad:
        _remove(folder / name)
        # the client copies into a folder what the cache holds: a bad file there would come back
        cached = local_dir and try_to_load_from_cache(repo_id, name, cache_dir=cache_dir, revision=commit)
        if isinstance(cached, str):
            _remove(Path(cached))
    if bad:
        raise HubError(
            f"{repo_id} at {commit}: {', '.join(bad)} is not what the repository lists: it was changed on the way or "
            "on this disk. It was removed; pull again"
        )
    return folder, [name for name in listed if name not in chosen]


def _remove(path: Path) -> None:
    """Remove a file and, where the cache links to it, what the links lead to."""
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    path.unlink(missing_ok=True)
