"""
Look up the 78 tasks of MMEB-V2, and six variants that count for nothing but can be run.

They are data, one per line of `catalogue.json`: datasets, folders and instructions as VLM2Vec-V2 (arXiv 2507.04590)
and the benchmark's own evaluation have them, and the numbers of queries that its published result files state.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from types import MappingProxyType

MODALITIES = ("image", "video", "visdoc")
METRICS = {"image": "hit@1", "video": "hit@1", "visdoc": "ndcg_linear@5"}
NUM_TASKS = 78

# The two page tasks of the out-of-domain group were wrong until November 2025: name in use -> name of the old data.
# Their numbers of queries are the same, their scores are not: 39.4 against 62.2 for the group.
OLD_PAGES = {"ViDoSeek-page-fixed": "ViDoSeek-page", "MMLongBench-page-fixed": "MMLongBench-page"}
MVBENCH = (
    "episodic_reasoning", "action_sequence", "action_prediction", "action_antonym", "fine_grained_action",
    "unexpected_action", "object_existence", "object_interaction", "object_shuffle", "moving_direction",
    "action_localization", "scene_transition", "action_count", "moving_count", "moving_attribute", "state_change",
    "fine_grained_pose", "character_order", "egocentric_navigation", "counterfactual_inference",
)  # fmt: skip


@dataclass(frozen=True)
class MMEBTask:
    """
    Describes a task: what it is, and where and how its data lie.

    Attributes:
        name: as on the leaderboard.
        modality, meta_task: `"image"`, `"video"` or `"visdoc"`; and its group, say `"image/classification"`.
        dataset, config, split: Hub id of the annotations, their configuration (several in MVBench, and always three in
            BEIR layouts) and split.
        layout: how rows are read, a key of `loading.READERS`.
        pool: `"local"`, a query competes with the candidates of its own row; `"global"`, with those of all rows.
        num_queries: how many there have to be; with `first_rows` the task is so many rows of a longer table.
        media: folder of pictures or frames, from the root of the local copy, as the benchmark's evaluation names it.
        packed: where the published archive unpacks them, if that is another folder.
        columns: what the layout looks for -> the column of this dataset that holds it.
        query_instruction, candidate_instruction: of all inputs of that side; `None` where rows bring their own, or
            where there is none.
        language: only queries whose `language` this is.
        all_frames: whether a video is all frames in its folder, and not some of them.
    """

    name: str
    modality: str
    meta_task: str
    dataset: str
    split: str
    layout: str
    pool: str
    num_queries: int
    media: str
    packed: str | None = None
    config: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    query_instruction: str | None = None
    candidate_instruction: str | None = None
    language: str | None = None
    first_rows: bool = False
    all_frames: bool = False

    @property
    def media_folders(self) -> tuple[str, ...]:
        """List the folders where its pictures or frames may be."""
        return (self.media,) if self.packed is None else (self.media, self.packed)

    @property
    def metric(self) -> str:
        """Name the main metric, that of the modality."""
        return METRICS[self.modality]

    @property
    def configs(self) -> tuple[str | None, ...]:
        """List the configurations of the dataset that the task reads."""
        if self.layout == "beir":
            return ("queries", "corpus", "qrels")
        return MVBENCH if self.layout == "mvbench" else (self.config,)

    @property
    def groups(self) -> dict[str, str]:
        """Name its groups for `RetrievalTask`: kind of group -> group."""
        return {"modality": self.modality, "meta_task": self.meta_task}


MEDIA_REPOSITORY = "TIGER-Lab/MMEB-V2"


@dataclass(frozen=True)
class Archive:
    """Names an archive of pictures or frames of several tasks."""

    parts: tuple[str, ...]  # files of the repository that make it when put one after the other
    folder: str  # where it is unpacked, from the root of the local copy
    top: str = ""  # folder inside the archive that all is in, and that is left out


_FRAMES = "video-tasks/frames"
ARCHIVES = (
    Archive(("image-tasks/mmeb_v1.tar.gz",), "image-tasks", "MMEB"),
    Archive((f"{_FRAMES}/video_cls.tar.gz",), f"{_FRAMES}/video_cls"),
    Archive((f"{_FRAMES}/video_ret.tar.gz",), f"{_FRAMES}/video_ret"),
    Archive((f"{_FRAMES}/video_mret.tar.gz",), f"{_FRAMES}/video_mret", "video_mret"),
    Archive(tuple(f"{_FRAMES}/video_qa.tar.gz-{number:02}" for number in range(5)), f"{_FRAMES}/video_qa", "video_qa"),
)
UNPACKED = ".unpacked.json"  # in the folder of an archive: which one was unpacked there, in full


def archive_of(task: MMEBTask) -> Archive | None:
    """Find the archive of a task's pictures or frames; `None` where these are among the annotations."""
    return next((archive for archive in ARCHIVES if f"{task.media}/".startswith(f"{archive.folder}/")), None)


def _read_tasks(kind: str) -> Mapping[str, MMEBTask]:
    """Read `catalogue.json`: name -> task."""
    entries = json.loads(files(__package__).joinpath("catalogue.json").read_text(encoding="utf-8"))[kind]
    return MappingProxyType({entry["name"]: MMEBTask(**entry) for entry in entries})


TASKS = _read_tasks("tasks")
# Two of the old page data, which count in an overall instead of the fixed ones; MomentSeeker before cases that stood
# twice were removed; and ViDoRe-v2 with its English questions alone.
VARIANTS = _read_tasks("variants")
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        group: tuple(task.name for task in TASKS.values() if group in (task.modality, task.meta_task))
        for group in dict.fromkeys(name for task in TASKS.values() for name in (task.modality, task.meta_task))
    }
)


def task_named(name: str) -> MMEBTask:
    """
    Look up a task or a variant by its name; an error suggests names that are close.

    >>> task_named("ViDoSeek-page-fixed").dataset
    'VLM2Vec/ViDoSeek-page-fixed'
    """
    if name in TASKS:
        return TASKS[name]
    if name in VARIANTS:
        return VARIANTS[name]
    raise ValueError(f"MMEB-V2 has no task {name!r}{_suggestion(name, [*TASKS, *VARIANTS])}")


def select(names: Iterable[str] | None = None) -> list[MMEBTask]:
    """
    Find tasks by their names or groups, in the catalogue's order, variants last.

    Args:
        names: of tasks and variants, or groups: a modality (`"video"`) or a meta-task (`"image/qa"`). `None`: all 78.

    Raises:
        ValueError: if nothing is named, or a name is unknown; it suggests names that are close.

    >>> [task.name for task in select(["image/grounding", "DiDeMo"])]
    ['MSCOCO', 'RefCOCO', 'RefCOCO-Matching', 'Visual7W-Pointing', 'DiDeMo']
    """
    if names is None:
        return list(TASKS.values())
    wanted: set[str] = set()
    for name in names:
        if name in GROUPS:
            wanted.update(GROUPS[name])
        elif name in TASKS or name in VARIANTS:
            wanted.add(name)
        else:
            hint = _suggestion(name, [*TASKS, *VARIANTS, *GROUPS])
            raise ValueError(f"MMEB-V2 has no task or group {name!r}{hint}")
    if not wanted:
        raise ValueError(f"no task is named; allowed: names of tasks, and the groups {', '.join(GROUPS)}")
    return [task for task in (*TASKS.values(), *VARIANTS.values()) if task.name in wanted]


def group_named(name: str) -> tuple[str, ...]:
    """List the names of the tasks in a modality or a meta-task."""
    if name not in GROUPS:
        raise ValueError(f"MMEB-V2 has no group {name!r}{_suggestion(name, list(GROUPS))}")
    return GROUPS[name]


def _suggestion(name: str, known: list[str]) -> str:
    lowered = {one.lower(): one for one in known}  # the case is the commonest mistake
    close = difflib.get_close_matches(name.lower(), list(lowered), n=3)
    return (
        f"; did you mean {' or '.join(lowered[one] for one in close)}?" if close else f"; it has: {', '.join(known)}"
    )
