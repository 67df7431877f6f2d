"""Download a task's data from the Hub, for whoever asks for them, into a folder that `load_tasks` reads."""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from mmemb_r1.evaluation.mmeb.annotations import annotation_folders, noted_revision, revision_note
from mmemb_r1.evaluation.mmeb.catalogue import MEDIA_REPOSITORY, UNPACKED, Archive, archive_of, task_named
from mmemb_r1.runs import check_run, record_run

ANNOTATIONS = ("README.md", "*.parquet", "*.json", "*.jsonl", "*.csv")  # videos beside them are not wanted


def download_task(
    name: str, folder: str | os.PathLike[str], *, media: bool = True, revision: str | None = None
) -> Path:
    """
    Download what a task needs. Tasks share data: what is there already is not downloaded again.

    Args:
        name: of the task or variant.
        folder: root of the local copy; made if it is not there.
        media: also the archive of pictures or frames that its group of tasks shares; it is unpacked, and stays. Visual
            documents have none. Default: `True`.
        revision: branch, tag or commit of the annotations. Default: the commit that was downloaded before, else that
            of the main branch. It is noted, and reported by the tasks as `data["revision"]`.

    Returns:
        The folder of the annotations.

    Raises:
        ValueError: if there is no such task, or annotations of another commit are there.
        OSError: if the Hub can't be reached or refuses.
    """
    from huggingface_hub import snapshot_download

    from mmemb_r1.hub.client import explained

    task, root = task_named(name), Path(folder).expanduser().resolve()
    place, note = annotation_folders(task, root)[0], revision_note(task, root)
    if not place.is_dir():
        note.unlink(missing_ok=True)  # of a copy that was removed
    commit = _commit(task.dataset, revision or (noted_revision(task, root) if place.is_dir() else None))
    hint = f"Remove {place}, or ask for the revision that is there."
    record_run(note, {"revision": commit}, what=str(place), hint=hint)
    with explained(task.dataset, revision):
        snapshot_download(
            task.dataset, repo_type="dataset", revision=commit, local_dir=place, allow_patterns=list(ANNOTATIONS)
        )
    if media and (archive := archive_of(task)):
        _download_archive(archive, root)
    return place


def _commit(repo_id: str, revision: str | None = None) -> str:
    from mmemb_r1.hub.client import explained, hub_api

    with explained(repo_id, revision):
        return str(hub_api().dataset_info(repo_id, revision=revision).sha)


def _download_archive(archive: Archive, root: Path) -> None:
    from huggingface_hub import hf_hub_download

    from mmemb_r1.hub.client import explained

    target = root / archive.folder
    note, facts = target / UNPACKED, {"archive": list(archive.parts)}
    if check_run(note, facts):
        return
    commit = _commit(MEDIA_REPOSITORY)
    with explained(MEDIA_REPOSITORY):
        files = [
            Path(hf_hub_download(MEDIA_REPOSITORY, part, repo_type="dataset", revision=commit, local_dir=root))
            for part in archive.parts
        ]
    unpack(files, target, archive.top)
    record_run(note, facts)


def unpack(parts: Sequence[Path], target: Path, top: str = "") -> None:
    """
    Unpack a gzipped tar archive, given as its parts in order, without the folder `top` that all is in. Files that are
    there in full are left as they are.

    Raises:
        ValueError: if it is no such archive, was cut short, or holds something that is to land outside of `target`.
    """
    if not hasattr(tarfile, "data_filter"):
        raise ValueError("unpacking archives safely needs Python 3.10.12, 3.11.4 or a later one")
    try:
        with _joined(parts) as stream, tarfile.open(fileobj=stream, mode="r|gz") as archive:
            for member in archive:
                inside = os.path.normpath(member.name)
                if top and inside == top:
                    continue
                member.name = inside.removeprefix(f"{top}/") if top else inside
                there = target / member.name
                if member.isfile() and there.is_file() and there.stat().st_size == member.size:
                    continue
                archive.extract(member, target, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{parts[0]} can't be unpacked into {target} ({error}). Remove it, and download it again."
        ) from error


@contextmanager
def _joined(parts: Sequence[Path]) -> Iterator[Any]:
    """Open the files one after the other, with a bar on standard error of how far they were read."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        step = bar.add_task(f"unpacking {parts[0].name}", total=sum(part.stat().st_size for part in parts))
        with ExitStack() as stack:
            files = [stack.enter_context(part.open("rb")) for part in parts]
            yield _Joined(files, lambda count: bar.advance(step, count))


class _Joined:
    """Reads several files like one, as far as `tarfile` asks."""

    def __init__(self, files: Sequence[IO[bytes]], advance: Callable[[int], None]) -> None:
        self._files, self._advance = files, advance

    def read(self, size: int) -> bytes:
        chunk = next(filter(None, (file.read(size) for file in self._files)), b"")
        self._advance(len(chunk))
        return chunk
