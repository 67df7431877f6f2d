"""Find the tasks of a local copy, and read each of them when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from mmemb_r1.evaluation.mmeb import image, video, visdoc
from mmemb_r1.evaluation.mmeb.annotations import annotation_folders, data_files
from mmemb_r1.evaluation.mmeb.building import TaskBuilder
from mmemb_r1.evaluation.mmeb.catalogue import TASKS, VARIANTS, MMEBTask, select
from mmemb_r1.evaluation.mmeb.claims import overall_of
from mmemb_r1.evaluation.tasks import RetrievalTask, TaskSource

NUM_FRAMES = 8  # of a video, as in the benchmark's own evaluation
READERS: Mapping[str, Callable[[TaskBuilder], Any]] = {
    "image-text": image.read_image_text,
    "image-image": image.read_image_image,
    "video-labels": video.read_video_labels,
    "video-choices": video.read_video_choices,
    "video-search": video.read_video_search,
    **dict.fromkeys(video.QUESTIONS, video.read_video_questions),
    "moments": video.read_moments,
    "momentseeker": video.read_momentseeker,
    "beir": visdoc.read_beir,
}


def read_mmeb_tasks(
    folder: str | os.PathLike[str], *, names: Iterable[str] | None = None, num_frames: int | None = None
) -> TaskSource:
    """Read the tasks of a local copy when their turn comes, see `load_tasks`; `num_frames` is noted where given."""
    given = {} if num_frames is None else {"num_frames": num_frames}
    return TaskSource(load_tasks(folder, names, **given), {"dataset": "MMEB-V2", **given}, overall_of)


def find_tasks(folder: str | os.PathLike[str]) -> list[str]:
    """
    List the tasks and variants whose annotations are in a local copy, in the catalogue's order; media are not looked
    for. It is an error if there is no such folder, or the copy of a dataset lacks files.
    """
    root = _existing(folder)
    return [task.name for task in (*TASKS.values(), *VARIANTS.values()) if _has_annotations(task, root)]


def load_tasks(
    folder: str | os.PathLike[str], names: Iterable[str] | None = None, *, num_frames: int = NUM_FRAMES
) -> LocalTasks:
    """
    Load the tasks of a local copy of MMEB-V2. The folder holds

        annotations/<owner>/<dataset>/    copies of the Hub datasets of the annotations, each with its README.md;
                                          `<modality>-tasks/<dataset>/` is looked at, too
        image-tasks/...                   pictures, as the archives of TIGER-Lab/MMEB-V2 unpack
        video-tasks/frames/video_.../     frames
        visdoc-tasks/<task>/              pages, where the corpus does not hold them itself

    Args:
        folder: the root.
        names: names of tasks or groups, see `select`. Default: those of the 78 whose annotations are there.
        num_frames: frames that are kept of a video, evenly spread. Default: 8.

    Returns:
        A sequence that reads a task each time that it is asked for it: iterate once; its `names` are known before. Of
        each task all annotations are read then, and all media are looked for, but not opened.

    Raises:
        ValueError: if a name is unknown, annotations are missing, or there are none at all.
    """
    root = _existing(folder)
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; it has to be at least 1")
    if names is None:
        tasks = [task for task in TASKS.values() if _has_annotations(task, root)]
        if not tasks:
            raise ValueError(
                f"{root} holds the annotations of no MMEB-V2 task. Expected are copies of Hub datasets, such as "
                f"{annotation_folders(TASKS['DiDeMo'], root)[0]}; download_task(name, folder) puts them there."
            )
        return LocalTasks(tasks, root, num_frames)
    tasks = select(names)
    for task in tasks:
        _check_annotations(task, root)
    return LocalTasks(tasks, root, num_frames)


class LocalTasks(Sequence[RetrievalTask]):
    """Reads the tasks of a local copy, each when it is asked for; `names` are theirs, in order."""

    def __init__(self, tasks: Sequence[MMEBTask], folder: Path, num_frames: int) -> None:
        self._tasks, self._folder, self._num_frames = list(tasks), folder, num_frames
        self.names = [task.name for task in self._tasks]

    def __len__(self) -> int:
        return len(self._tasks)

    @overload
    def __getitem__(self, index: int) -> RetrievalTask: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RetrievalTask]: ...
    def __getitem__(self, index: int | slice) -> RetrievalTask | Sequence[RetrievalTask]:
        if isinstance(index, slice):
            return LocalTasks(self._tasks[index], self._folder, self._num_frames)
        task = self._tasks[index]
        builder = TaskBuilder(task, self._folder, self._num_frames)
        return builder.build(READERS[task.layout](builder))


def _existing(folder: str | os.PathLike[str]) -> Path:
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}; it has to hold a local copy of MMEB-V2")
    return root


def _check_annotations(task: MMEBTask, folder: Path) -> None:
    for config in task.configs:
        data_files(task, folder, config)


def _has_annotations(task: MMEBTask, folder: Path) -> bool:
    """Say whether they are there; raise an error if only some are."""
    if not any(place.is_dir() for place in annotation_folders(task, folder)):
        return False
    try:
        _check_annotations(task, folder)
    except ValueError:
        if task.modality == "image":  # one dataset for 36 tasks: it may well hold some of them
            return False
        raise
    return True
