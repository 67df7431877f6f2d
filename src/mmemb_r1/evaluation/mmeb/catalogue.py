"""
The 78 tasks of MMEB-V2 as data, and six variants that count for nothing but can be run.

Facts from VLM2Vec-V2 (arXiv 2507.04590) and the benchmark's own evaluation: datasets, folders, instructions, and the
numbers of queries that its published result files state.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

MODALITIES = ("image", "video", "visdoc")
METRICS = {"image": "hit@1", "video": "hit@1", "visdoc": "ndcg_linear@5"}
NUM_TASKS = 78

# The two page tasks of the out-of-domain group were wrong until November 2025: name in use -> name of the old data.
# Their numbers of queries are the same, their scores are not: 39.4 against 62.2 for the group.
OLD_PAGES = {"ViDoSeek-page-fixed": "ViDoSeek-page", "MMLongBench-page-fixed": "MMLongBench-page"}


@dataclass(frozen=True)
class MMEBTask:
    """
    One task: what it is, and where and how its data lie.

    Attributes:
        name: as on the leaderboard.
        modality: `"image"`, `"video"` or `"visdoc"`.
        meta_task: its group with the modality in front, say `"image/classification"`.
        dataset: Hub id of the annotations.
        config: their configuration, or `None`; several in MVBench, and always three in BEIR layouts.
        split: their split.
        layout: how rows are read, a key of `loading.READERS`.
        pool: `"local"`, a query competes with the candidates of its own row; `"global"`, with those of all rows.
        num_queries: how many there have to be.
        media: folder of pictures or frames, from the root of the local copy.
        columns: what the layout looks for -> the column of this dataset that holds it.
        query_instruction, candidate_instruction: of all inputs of that side; `None` where rows bring their own, or
            where there is none.
        language: only queries whose `language` this is.
        first_rows: the task is the first `num_queries` rows of a longer table.
    """

    name: str
    modality: str
    meta_task: str
    dataset: str
    config: str | None
    split: str
    layout: str
    pool: str
    num_queries: int
    media: str
    columns: Mapping[str, str] = field(default_factory=dict)
    query_instruction: str | None = None
    candidate_instruction: str | None = None
    language: str | None = None
    first_rows: bool = False

    @property
    def metric(self) -> str:
        """The main metric, that of the modality."""
        return METRICS[self.modality]

    @property
    def configs(self) -> tuple[str | None, ...]:
        """All configurations of the dataset that the task reads."""
        if self.layout == "beir":
            return ("queries", "corpus", "qrels")
        return MVBENCH if self.layout == "mvbench" else (self.config,)

    @property
    def groups(self) -> dict[str, str]:
        """Kind of group -> group, for `RetrievalTask`."""
        return {"modality": self.modality, "meta_task": self.meta_task}


def _image(meta_task: str, layout: str, *names: str) -> list[MMEBTask]:
    return [
        MMEBTask(
            name=name,
            modality="image",
            meta_task=f"image/{meta_task}",
            dataset="ziyjiang/MMEB_Test_Instruct",
            config=name,
            split="test",
            layout=layout,
            pool="local",
            num_queries=1000,
            media="image-tasks",
        )
        for name in names
    ]


_IMAGE = [
    *_image("classification", "image-text", "ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397"),
    *_image("classification", "image-text", "Place365", "ImageNet-A", "ImageNet-R", "ObjectNet", "Country211"),
    *_image("qa", "image-text", "OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA"),
    *_image("qa", "image-text", "Visual7W", "ScienceQA", "VizWiz", "GQA", "TextVQA"),
    *_image("retrieval", "image-image", "VisDial", "CIRR", "VisualNews_t2i"),
    *_image("retrieval", "image-text", "VisualNews_i2t"),
    *_image("retrieval", "image-image", "MSCOCO_t2i"),
    *_image("retrieval", "image-text", "MSCOCO_i2t"),
    *_image("retrieval", "image-image", "NIGHTS", "WebQA", "FashionIQ", "Wiki-SS-NQ", "OVEN", "EDIS"),
    *_image("grounding", "image-image", "MSCOCO", "RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing"),
]

# Questions about a video: the same words for all of them.
ANSWER = (
    "Given a video and a question, select the most accurate answer from the provided candidates. Return only the "
    "exact text of your chosen answer."
)
WATCH = "Understand the content of the provided video."

MVBENCH = (
    "episodic_reasoning", "action_sequence", "action_prediction", "action_antonym", "fine_grained_action",
    "unexpected_action", "object_existence", "object_interaction", "object_shuffle", "moving_direction",
    "action_localization", "scene_transition", "action_count", "moving_count", "moving_attribute", "state_change",
    "fine_grained_pose", "character_order", "egocentric_navigation", "counterfactual_inference",
)  # fmt: skip


def _video(
    name: str,
    meta_task: str,
    num_queries: int,
    layout: str,
    *,
    columns: Mapping[str, str] | None = None,
    dataset: str | None = None,
    config: str | None = None,
    split: str = "test",
    folder: str | None = None,
    query: str | None = None,
    candidate: str | None = None,
    pool: str = "local",
    first_rows: bool = False,
) -> MMEBTask:
    group = {"classification": "cls", "qa": "qa", "retrieval": "ret", "moment-retrieval": "mret"}[meta_task]
    return MMEBTask(
        name=name,
        modality="video",
        meta_task=f"video/{meta_task}",
        dataset=dataset or f"VLM2Vec/{name}",
        config=config,
        split=split,
        layout=layout,
        pool=pool,
        num_queries=num_queries,
        media=f"video-tasks/frames/video_{group}/{folder or name}",
        columns=MappingProxyType(dict(columns or {})),
        query_instruction=query,
        candidate_instruction=candidate,
        first_rows=first_rows,
    )


def _video_class(
    name: str, num_queries: int, query: str, *, dataset: str | None = None, folder: str | None = None
) -> MMEBTask:
    return _video(
        name, "classification", num_queries, "video-labels", dataset=dataset, folder=folder, query=query, pool="global"
    )


def _video_search(
    name: str,
    num_queries: int,
    query: str,
    *,
    dataset: str | None = None,
    config: str | None = None,
    split: str = "test",
    **columns: str,
) -> MMEBTask:
    return _video(
        name,
        "retrieval",
        num_queries,
        "video-search",
        columns=columns,  # `video`, its name, or `file`, a path that ends in it; and `text`
        dataset=dataset,
        config=config,
        split=split,
        query=query,
        candidate=WATCH,
        pool="global",
    )


_SCENE = "Find the clip that corresponds to the described scene in the given video:"
_CLIP = "Understand the content of the provided video clip."  # of MomentSeeker; which query, its rows say
_VIDEO = [
    _video_class(
        "K700",
        1000,
        "Recognize the category of the video content.",
        dataset="VLM2Vec/Kinetics-700",
    ),
    _video(
        "SmthSmthV2",
        "classification",
        1000,
        "video-choices",
        folder="SSv2",
        query="What actions or object interactions are being performed by the person in the video?",
        first_rows=True,
    ),
    _video_class("HMDB51", 1000, "What actions or objects interactions are the person in the video doing?"),
    _video_class("UCF101", 1000, "What activities or sports are being performed by the person in the video?"),
    _video_class("Breakfast", 433, "Recognize the breakfast type that the person is cooking in the video."),
    _video("MVBench", "qa", 4000, "mvbench", split="train", query=ANSWER),
    _video("Video-MME", "qa", 2700, "video-mme", query=ANSWER),
    _video("NExTQA", "qa", 8564, "nextqa", config="MC", query=ANSWER),
    _video("EgoSchema", "qa", 500, "egoschema", config="Subset", query=ANSWER),
    _video("ActivityNetQA", "qa", 1000, "activitynetqa", query=ANSWER),
    _video_search(
        "DiDeMo", 1004, "Find a video that includes the following described scenes:", file="video", text="caption"
    ),
    _video_search(
        "MSR-VTT",
        1000,
        "Find a video that contains the following visual content:",
        video="video_id",
        text="caption",
        config="test_1k",
    ),
    _video_search(
        "MSVD",
        670,
        "Find the video snippet that corresponds to the given summary:",
        video="video_id",
        text="caption",
    ),
    _video_search("VATEX", 4478, "Select a video that fits the description provided:", video="videoID", text="enCap"),
    _video_search(
        "YouCook2",
        3179,
        "Find a video that demonstrates the following action while making a recipe:",
        video="id",
        text="sentence",
        dataset="lmms-lab/YouCook2",
        split="val",
    ),
    _video("QVHighlight", "moment-retrieval", 1083, "moments", query=_SCENE, candidate=WATCH),
    _video("Charades-STA", "moment-retrieval", 727, "moments", folder="Charades_STA", query=_SCENE, candidate=WATCH),
    _video("MomentSeeker", "moment-retrieval", 1602, "momentseeker", candidate=_CLIP),
]


def _visdoc(
    name: str,
    meta_task: str,
    dataset: str,
    num_queries: int,
    *,
    split: str = "test",
    media: str | None = None,
    language: str | None = None,
) -> MMEBTask:
    return MMEBTask(
        name=name,
        modality="visdoc",
        meta_task=f"visdoc/{meta_task}",
        dataset=dataset,
        config=None,
        split=split,
        layout="beir",
        pool="global",
        num_queries=num_queries,
        media=f"visdoc-tasks/{media or name}",
        query_instruction="Find a document image that matches the given query:",
        candidate_instruction="Understand the content of the provided document image.",
        language=language,
    )


_VIDORE_V1 = {
    "arxivqa": ("arxivqa_test_subsampled_beir", 500),
    "docvqa": ("docvqa_test_subsampled_beir", 451),
    "infovqa": ("infovqa_test_subsampled_beir", 494),
    "tabfquad": ("tabfquad_test_subsampled_beir", 280),
    "tatdqa": ("tatdqa_test_beir", 1646),
    "shiftproject": ("shiftproject_test_beir", 100),
    "syntheticDocQA_artificial_intelligence": ("syntheticDocQA_artificial_intelligence_test_beir", 100),
    "syntheticDocQA_energy": ("syntheticDocQA_energy_test_beir", 100),
    "syntheticDocQA_government_reports": ("syntheticDocQA_government_reports_test_beir", 100),
    "syntheticDocQA_healthcare_industry": ("syntheticDocQA_healthcare_industry_test_beir", 100),
}
# Their queries in four languages; human-labeled ones in English alone.
_VIDORE_V2 = {"biomedical_lectures_v2": 640, "economics_reports_v2": 232, "esg_reports_v2": 228}
_VISRAG = {"ArxivQA": 816, "ChartQA": 63, "MP-DocVQA": 591, "SlideVQA": 556, "InfoVQA": 718, "PlotQA": 863}

_VISDOC = [
    *(
        _visdoc(f"ViDoRe_{name}", "vidore-v1", f"vidore/{dataset}", num_queries)
        for name, (dataset, num_queries) in _VIDORE_V1.items()
    ),
    _visdoc(
        "ViDoRe_esg_reports_human_labeled_v2",
        "vidore-v2",
        "vidore/esg_reports_human_labeled_v2",
        52,
        media="esg_reports_human_labeled_v2",
    ),
    *(
        _visdoc(
            f"ViDoRe_{name}_multilingual", "vidore-v2", f"vidore/{name}", num_queries, media=f"{name}_multilingual"
        )
        for name, num_queries in _VIDORE_V2.items()
    ),
    *(
        _visdoc(f"VisRAG_{name}", "visrag", f"openbmb/VisRAG-Ret-Test-{name}", num_queries, split="train")
        for name, num_queries in _VISRAG.items()
    ),
    _visdoc("ViDoSeek-page-fixed", "ood", "VLM2Vec/ViDoSeek-page-fixed", 1142),
    _visdoc("ViDoSeek-doc", "ood", "VLM2Vec/ViDoSeek", 1142),
    _visdoc("MMLongBench-page-fixed", "ood", "VLM2Vec/MMLongBench-page-fixed", 838),
    _visdoc("MMLongBench-doc", "ood", "VLM2Vec/MMLongBench-doc", 838),
]

TASKS: Mapping[str, MMEBTask] = MappingProxyType({task.name: task for task in (*_IMAGE, *_VIDEO, *_VISDOC)})

VARIANTS: Mapping[str, MMEBTask] = MappingProxyType(
    {
        task.name: task
        for task in (
            # they count in an overall of the old data, instead of the fixed ones
            _visdoc("ViDoSeek-page", "ood", "VLM2Vec/ViDoSeek-page", 1142),
            _visdoc("MMLongBench-page", "ood", "VLM2Vec/MMLongBench", 838),
            # as it was before cases that stood twice were removed
            _video(
                "MomentSeeker_1k8",
                "moment-retrieval",
                1800,
                "momentseeker",
                folder="MomentSeeker",
                candidate=_CLIP,
            ),
            *(
                _visdoc(
                    f"ViDoRe_{name}",
                    "vidore-v2",
                    f"vidore/{name}",
                    num_queries // 4,
                    media=name,
                    language="english",
                )
                for name, num_queries in _VIDORE_V2.items()
            ),
        )
    }
)
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        group: tuple(task.name for task in TASKS.values() if group in (task.modality, task.meta_task))
        for group in dict.fromkeys(name for task in TASKS.values() for name in (task.modality, task.meta_task))
    }
)


def task_named(name: str) -> MMEBTask:
    """
    The task of this name, or the variant.

    Raises:
        ValueError: if there is none; it suggests names that are close.

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
    Tasks by their names or groups.

    Args:
        names: names of tasks and variants, or groups: a modality (`"video"`) or a meta-task (`"image/qa"`). `None`:
            all 78. A task that is named twice is there once.

    Returns:
        The tasks in the catalogue's order, variants last.

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
    """
    Names of the tasks in a modality or a meta-task.

    Raises:
        ValueError: if there is no such group.
    """
    if name not in GROUPS:
        raise ValueError(f"MMEB-V2 has no group {name!r}{_suggestion(name, list(GROUPS))}")
    return GROUPS[name]


def _suggestion(name: str, known: list[str]) -> str:
    lowered = {one.lower(): one for one in known}  # the case is the commonest mistake
    close = difflib.get_close_matches(name.lower(), list(lowered), n=3)
    return (
        f"; did you mean {' or '.join(lowered[one] for one in close)}?" if close else f"; it has: {', '.join(known)}"
    )
