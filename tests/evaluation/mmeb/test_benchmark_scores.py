"""
Scores against those of the benchmark's own evaluation (VLM2Vec), written here from what is known of it: each row names
its candidates and the right ones, candidates are embedded once per name, ranked by cosine among those of the row
("local") or of all rows ("global"), and scored with cut-offs.
"""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tests.mmeb_copy import image_rows, video_rows

from mmemb_r1.evaluation.mmeb import TASKS
from mmemb_r1.evaluation.mmeb.catalogue import MVBENCH
from mmemb_r1.evaluation.mmeb.video import LABELS
from mmemb_r1.evaluation.scoring import score_queries

METRICS = {
    "rank": ("hit@1", "hit@5", "hit@10"),
    "graded": ("hit@1", "recall@5", "ndcg_linear@5", "ndcg_linear@10", "ndcg_exponential@5"),
}
DRAWS = 4


class Row(NamedTuple):
    """What the benchmark's evaluation keeps of a row: candidates by name, each as what is embedded; and the labels."""

    candidates: dict[str, str]
    labels: list[str]
    grades: list[float] | None = None


def row_of(layout: str, row: dict[str, Any], root: Path) -> Row:
    if layout == "image-text":
        return Row({text: text for text in row["tgt_text"]}, row["tgt_text"][:1])
    if layout == "image-image":
        return Row({path: path for path in row["tgt_img_path"]}, row["tgt_img_path"][:1])
    if layout == "video-labels":
        return Row({row["pos_text"]: row["pos_text"]}, [row["pos_text"]])
    if layout == "video-choices":
        return Row({text: text for text in row["neg_text"]}, [row["pos_text"]])
    if layout == "video-search":
        name = next(Path(value).stem for key, value in row.items() if key in ("video", "video_id", "videoID", "id"))
        return Row({name: name}, [name])
    if layout == "nextqa":
        options = [row[f"a{place}"] for place in range(5)]
        return Row({option: option for option in options}, [options[row["answer"]]])
    if layout == "mvbench":
        named = {text: f"({letter}) {text}" for letter, text in zip("ABCDE", row["candidates"], strict=False)}
        return Row({name: name for name in named.values()}, [named[row["answer"]]])
    if layout in ("video-mme", "egoschema"):
        options = row["options" if layout == "video-mme" else "option"]
        right = "ABCD".index(row["answer"]) if layout == "video-mme" else int(row["answer"])
        return Row({option: option[option.find(". ") :].strip(". ") for option in options}, [options[right]])
    if layout == "activitynetqa":
        return Row({"yes": "yes", "no": "no"}, [row["answer"]])
    if layout == "moments":
        folder = root / Path(row["video_path"]).stem
        clips = {str(clip): f"{folder.name}/{clip.name}" for clip in folder.iterdir() if clip.name != "query"}
        return Row(clips, [clip for clip in clips if Path(clip).name.startswith("positive")])
    right, wrong = ([clip["output_path"] for clip in row[f"{side}_frames"]] for side in ("positive", "negative"))
    return Row({path: path.replace("/", "_").split(".mp4")[0] for path in [*right, *wrong]}, right)


def embedded(value: dict[str, Any], root: Path) -> str:
    """What one of our candidates is, in the words of [`row_of`]."""
    if "video" in value:
        folder = Path(value["video"][0]).parent
        return folder.relative_to(root / "video_frames" if folder.parent.name == "video_frames" else root).as_posix()
    return str(Path(value["image"]).relative_to(root)) if "image" in value else value["text"]


@cache
def vector(*of: Any) -> np.ndarray:
    seed = int.from_bytes(blake2b(repr(of).encode(), digest_size=8).digest(), "big")
    drawn = np.random.default_rng(seed).standard_normal(4)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def benchmark_score(metric: str, ranking: list[str], row: Row, pairs: dict[str, float]) -> float:
    name, k = metric.split("@")
    top = ranking[: int(k)]
    if name == "hit":
        return float(any(one in row.labels for one in top))
    if name == "recall":
        return len(set(top) & set(row.labels)) / len(set(row.labels))
    gain = (lambda grade: 2**grade - 1) if name.endswith("exponential") else float
    discounted = [
        sum(gain(grade) / np.log2(place + 2) for place, grade in enumerate(grades))
        for grades in ([pairs.get(one, 0) for one in top], sorted(pairs.values(), reverse=True)[: int(k)])
    ]
    return discounted[0] / discounted[1]


def benchmark_scores(
    rows: list[Row], pool: str, metric: str, queries: np.ndarray, draw: int, pair: Any
) -> list[float]:
    everything: dict[str, str] = {}
    for row in rows:
        for name, content in row.candidates.items():
            everything.setdefault(name, content)
    scores = []
    for row, query in zip(rows, queries, strict=True):
        names = list(everything if pool == "global" else row.candidates)
        cosines = np.array([query @ vector(draw, everything[name]) for name in names])
        scores.append(
            benchmark_score(
                metric, [names[place] for place in np.argsort(-cosines)], row, pair(row.labels, row.grades)
            )
        )
    return scores


def own_pairs(labels: list[str], grades: list[float] | None) -> dict[str, float]:
    return dict(zip(labels, grades or [1.0] * len(labels), strict=True))


def shuffled_pairs(labels: list[str], grades: list[float] | None) -> dict[str, float]:
    """The benchmark's way: grades are put on an unordered set of the pages, whose order they don't have."""
    return own_pairs(labels[::-1], grades)


def both_scores(task: Any, rows: list[Row], root: Path, pair: Any) -> list[tuple[list[float], list[float]]]:
    """Score random vectors by ours and by the benchmark's: per draw and metric the scores of all queries, twice."""
    pool, pairs = "global" if task.pools is None else "local", []
    family = METRICS["rank" if task.metric == "hit@1" else "graded"]
    pages = TASKS[task.name].modality == "visdoc"
    contents = list(task.candidate_ids) if pages else [embedded(value, root) for value in task.candidates]
    for draw in range(DRAWS):
        right = np.stack([vector(draw, row.candidates[row.labels[0]]) for row in rows])
        queries = right + np.stack([1.2 * vector(draw, "query", number) for number in range(len(rows))])
        scored = score_queries(task, queries, np.stack([vector(draw, content) for content in contents]))
        for metric in family:
            theirs = benchmark_scores(rows, pool, metric, queries, draw, pair)
            pairs.append((scored.metrics[metric].tolist(), theirs))
    return pairs


def corpus(name: str) -> list[str]:
    long = TASKS[name].meta_task == "visdoc/visrag"
    return [f"{'page ' * 20}{number}.jpg" if long else str(number) for number in range(5)]


def page_rows(name: str, relevant: list[dict[int, float]]) -> list[Row]:
    pages = corpus(name)
    everything = {page: page for page in pages}
    return [
        Row(everything, [pages[number] for number in grades], [float(grade) for grade in grades.values()])
        for grades in relevant
    ]


def write_grades(copy: Any, name: str, relevant: list[dict[int, float]]) -> None:
    pages: list[Any] = corpus(name)
    pages = pages if TASKS[name].meta_task == "visdoc/visrag" else [int(page) for page in pages]
    rows = [
        {"query-id": query, "corpus-id": pages[number], "score": int(grade)}
        for query, grades in enumerate(relevant)
        for number, grade in grades.items()
    ]
    copy.rows(name, rows, "qrels")


ONE_EACH = {task.layout: name for name, task in TASKS.items() if task.layout != "mvbench"}.values()
ALL = [name if name in ONE_EACH else pytest.param(name, marks=pytest.mark.slow) for name in TASKS]


@pytest.mark.parametrize("name", ALL)
def test_scores_are_those_of_the_benchmark(name, copy, miniature):
    wanted = miniature(name)
    root = copy.root / wanted.media
    if wanted.modality == "visdoc":
        relevant = [{0: 1, 1: 1}, {1: 1}, {3: 1, 4: 1, 2: 1}]
        write_grades(copy, name, relevant)
        rows, pair = page_rows(name, relevant), shuffled_pairs  # equal grades: whichever page gets which
    else:
        if wanted.layout == "mvbench":
            raw = [{"candidates": ["up", "down", "left"], "answer": "down"}] * len(MVBENCH)
        else:
            raw = image_rows(wanted, copy) if wanted.modality == "image" else video_rows(wanted, copy)
        rows, pair = [row_of(wanted.layout, dict(row), root) for row in raw], own_pairs
        if wanted.layout == "video-labels":
            everything = {label: label for label in LABELS[name]}
            rows = [row._replace(candidates={**row.candidates, **everything}) for row in rows]
    seen = set()
    for ours, theirs in both_scores(copy.load(name), rows, root, pair):
        assert ours == pytest.approx(theirs, abs=1e-9)
        seen.update(ours)
    assert len(seen) > 1, "the draws tell nothing apart"


def test_pages_of_several_grades(copy, miniature):
    """Where grades differ, the benchmark may give a page another one's: with its own, scores are equal."""
    name = "ViDoRe_esg_reports_v2_multilingual"
    wanted, relevant = miniature(name), [{0: 1, 1: 2}, {1: 2}, {3: 1, 4: 1, 2: 2}]
    write_grades(copy, name, relevant)
    task, rows = copy.load(name), page_rows(name, relevant)
    for ours, theirs in both_scores(task, rows, copy.root / wanted.media, own_pairs):
        assert ours == pytest.approx(theirs, abs=1e-9)
    other = both_scores(task, rows, copy.root / wanted.media, shuffled_pairs)
    assert max(abs(np.mean(ours) - np.mean(theirs)) for ours, theirs in other) > 0.01
