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
from mmemb_r1.progress import progress_bar, step_of

NUM_FRAMES = 8  # of a video, as in the benchmark's own evaluation
INSTRUCTIONS = ("task", "none")
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
    folder: str | os.PathLike[str],
    *,
    names: Iterable[str] | None = None,
    num_frames: int | None = None,
    instructions: str | None = None,
) -> TaskSource:
    """
    Read the tasks of a local copy when their turn comes, see `load_tasks`; options are noted where given. All of them
    are checked before: no task is embedded where another one can't be.
    """
    options = {"num_frames": num_frames, "instructions": instructions}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    tasks = load_tasks(folder, names, **given)
    tasks.check()
    return TaskSource(tasks, {"dataset": "MMEB-V2", **given}, overall_of)


def find_tasks(folder: str | os.PathLike[str]) -> list[str]:
    """
    List the tasks and variants whose annotations are in a local copy, in the catalogue's order; media are not looked
    for. It is an error if there is no such folder, or the copy of a dataset lacks files.
    """
    root = _existing(folder)
    return [task.name for task in (*TASKS.values(), *VARIANTS.values()) if _has_annotations(task, root)]


def load_tasks(
    folder: str | os.PathLike[str],
    names: Iterable[str] | None = None,
    *,
    num_frames: int | None = None,
    instructions: str = INSTRUCTIONS[0],
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
        num_frames: frames that are kept of a video, evenly spread. Default: as in the benchmark's own evaluation, 8;
            in MomentSeeker all that are in its folder.
        instructions: `"task"`, the default, gives queries and candidates the instructions of their task, as the
            benchmark's own evaluation does; with `"none"` they have none, so that the model's default holds.

    Returns:
        A sequence that reads a task each time that it is asked for it: iterate once; its `names` are known before. Of
        each task all annotations are read then, and all media are looked for, but not opened.

    Raises:
        ValueError: if a name or an option is unknown, annotations are missing, or there are none at all.
    """
    root = _existing(folder)
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; it has to be at least 1")
    if instructions not in INSTRUCTIONS:
        raise ValueError(f"instructions={instructions!r}; allowed: {', '.join(INSTRUCTIONS)}")
    given = instructions == INSTRUCTIONS[0]
    if names is None:
        tasks = [task for task in TASKS.values() if _has_annotations(task, root)]
        if not tasks:
            raise ValueError(
                f"{root} holds the annotations of no MMEB-V2 task. Expected are copies of Hub datasets, such as "
                f"{annotation_folders(TASKS['DiDeMo'], root)[0]}; download_task(name, folder) puts them there."
            )
        return LocalTasks(tasks, root, num_frames, given)
    tasks = select(names)
    for task in tasks:
        _check_annotations(task, root)
    return LocalTasks(tasks, root, num_frames, given)


class LocalTasks(Sequence[RetrievalTask]):
    """Reads the tasks of a local copy, each when it is asked for; `names` are theirs, in order."""

    def __init__(
        self, tasks: Sequence[MMEBTask], folder: Path, num_frames: int | None, instructions: bool = True
    ) -> None:
        self._tasks, self._folder, self._num_frames, self._instructions = list(tasks), folder, num_frames, instructions
        self.names = [task.name for task in self._tasks]

    def check(self) -> None:
        """
        Look for all that the tasks need: annotations are read, pictures and frames looked for, but not opened.

        Raises:
            ValueError: that says of each task that can't be run what is missing, how much of it, and how to get it.
        """
        faults, whole = [], []
        with progress_bar() as bar, step_of(bar, "checking tasks", len(self)) as advance:
            for task in self._tasks:
                try:
                    builder, _ = self._read(task)
                    builder.media.check()
                    whole.append(task.name)
                except (ValueError, OSError) as error:  # all are told of, and raised
                    faults.append(str(error))
                advance(1)
        if faults:
            rest = f"\nThe others are whole; to run them alone, name them: {','.join(whole)}" if whole else ""
            raise ValueError("\n".join(faults) + rest)

    def __len__(self) -> int:
        return len(self._tasks)

    @overload
    def __getitem__(self, index: int) -> RetrievalTask: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RetrievalTask]: ...
    def __getitem__(self, index: int | slice) -> RetrievalTask | Sequence[RetrievalTask]:
        if isinstance(index, slice):
            return LocalTasks(self._tasks[index], self._folder, self._num_frames, self._instructions)
        builder, pages = self._read(self._tasks[index])
        return builder.build(pages)

    def _read(self, task: MMEBTask) -> tuple[TaskBuilder, Any]:
        number = self._num_frames or (None if task.all_frames else NUM_FRAMES)
        builder = TaskBuilder(task, self._folder, number, self._instructions)
        return builder, READERS[task.layout](builder)


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
