"""A checkpoint's way from the Hub: of one commit, verified, and without pickles."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

from mmemb_r1.hub.errors import HubError, check_repo_id, explained
from mmemb_r1.hub.files import has_pickle_name, head, hub_api, list_files, matches, pickle_problem


@dataclass(frozen=True)
class Pulled:
    """
    What a pull brought.

    Attributes:
        repo_id: the repository.
        commit: the commit that the revision stood for.
        folder: where it is.
        code_commit: the commit of the code, if that was asked for separately.
        left_out: files of the repository that are not in the folder: pickles by their name, which were not downloaded,
            and those that are pickles by what they hold, or may hide one, which were removed (see `pickle_problem`).
    """

    repo_id: str
    commit: str
    folder: Path
    code_commit: str | None = None
    left_out: tuple[str, ...] = ()


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

    Nothing that was downloaded is run. Pickles are left out, see `Pulled.left_out`. A pull that was cut goes on when
    it is repeated, without the files that have arrived. Token and endpoint are those of the environment (`HF_TOKEN`,
    `HF_ENDPOINT`) or of `hf auth login`.

    Args:
        repo_id: `owner/name`.
        revision: a branch, tag, commit or pull request (`refs/pr/1`). Default: the main branch.
        code_revision: where the code files (`*.py`) come from, if from elsewhere: into the folder with `output`, and
            beside the snapshot in the cache without. Default: `revision`.
        output: a folder: a new one, made when all is there, or an empty one, filled then. Default: the Hub's cache,
            where loading by id finds it.
        cache_dir: another cache. Default: that of the environment (`HF_HOME`).

    Returns:
        What was pulled, and the commit that it is pinned to.

    Raises:
        ValueError: if an argument is wrong.
        HubError: if the Hub refuses or can't be reached, or a file is not what the repository lists. That file is
            removed, and the next pull downloads it again.
    """
    check_repo_id(repo_id)
    target = None if output is None else Path(output).resolve()  # the current folder has a name and a parent, too
    if target is not None:
        _check_free(target)
    api = hub_api()
    with explained(repo_id, revision):
        commit = head(api, repo_id, revision)
    with explained(repo_id, code_revision):
        code_commit = None if code_revision is None else head(api, repo_id, code_revision)
    cache = None if cache_dir is None else Path(cache_dir)
    if target is None:
        folder, left_out = _download(api, repo_id, commit, cache)
        if code_commit is not None:
            left_out += _download(api, repo_id, code_commit, cache, wanted=_is_code)[1]
        return Pulled(repo_id, commit, folder, code_commit, left_out)
    # a folder of these commits alone, so that what an earlier pull left there belongs to them
    partial = target.with_name(f".{target.name}.{commit[:12]}{(code_commit or '')[:12]}.partial")
    if code_commit is None:
        _, left_out = _download(api, repo_id, commit, cache, partial)
    else:
        _, left_out = _download(api, repo_id, commit, cache, partial, wanted=lambda name: not _is_code(name))
        left_out += _download(api, repo_id, code_commit, cache, partial, wanted=_is_code)[1]
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's notes on what has arrived
    _check_free(target)
    if target.exists():  # it stays, because a shell may be in it
        for entry in list(partial.iterdir()):
            entry.rename(target / entry.name)
        partial.rmdir()
    else:
        partial.rename(target)
    return Pulled(repo_id, commit, target, code_commit, left_out)


def _check_free(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"output {target} exists and is not an empty folder; name a new one")


def _is_code(name: str) -> bool:
    return name.endswith(".py")


def _download(
    api: HfApi,
    repo_id: str,
    commit: str,
    cache_dir: Path | None,
    local_dir: Path | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
) -> tuple[Path, tuple[str, ...]]:
    """The folder, and what was left out of it."""
    with explained(repo_id, commit):
        entries = list_files(api, repo_id, commit)
        named = [name for name in entries if wanted(name) and has_pickle_name(name)]
        chosen = {name: entry for name, entry in entries.items() if wanted(name) and name not in named}
        folder = Path(
            snapshot_download(
                repo_id,
                revision=commit,
                ignore_patterns=[escape(name) for name in entries if name not in chosen],
                cache_dir=cache_dir,
                local_dir=local_dir,
                endpoint=api.endpoint,
                library_name=api.library_name,
                library_version=api.library_version,
            )
        )
    bad = sorted(name for name, entry in chosen.items() if not matches(folder / name, entry))
    for name in bad:
        _remove(folder / name)
        # a folder is filled from the cache where that has the file: a bad one there would come back
        cached = try_to_load_from_cache(repo_id, name, cache_dir=cache_dir, revision=commit)
        if isinstance(cached, str) and not matches(Path(cached), chosen[name]):
            _remove(Path(cached))
    hiding = [name for name in chosen if name not in bad and pickle_problem(folder / name)]
    for name in hiding:
        _remove(folder / name)
    if bad:
        raise HubError(
            f"{repo_id} at {commit}: {', '.join(bad)} is not what the repository lists: it was changed on the way or "
            "on this disk. It was removed; pull again"
        )
    return folder, tuple(sorted(named + hiding))


def _remove(path: Path) -> None:
    """Remove a file and, where the cache links to it, what the links lead to."""
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    path.unlink(missing_ok=True)
