"""What evaluation measures, a search through the index measures: the same ranks on a small Atlas."""

from __future__ import annotations

import pytest
from datasets import Dataset, Features, Image, List, Value

from mmemb_r1.evaluation import Settings, read_query_rows, rows_path, run_evaluation
from mmemb_r1.evaluation.atlas_tasks import atlas_tasks
from mmemb_r1.evaluation.scoring import TIE_TOLERANCE
from mmemb_r1.index import Index, build_index

CANDIDATES = Features({"id": Value("string"), "text": Value("string"), "image": List(Image())})


def rank(hits, targets):
    """The rank of the best target; where others have the same score, after these, as evaluation counts."""
    best = max(hit.score for hit in hits if hit.id in targets)
    return 1 + sum(hit.score >= best - TIE_TOLERANCE for hit in hits if hit.id not in targets)


@pytest.mark.slow
def test_ranks_equal_those_of_evaluate(model, small_atlas, tmp_path):
    atlas = small_atlas
    pairs = atlas.pairs["test"].select(range(0, len(atlas.pairs["test"]), 20))
    tasks = atlas_tasks(pairs, atlas.candidates)
    modes, run = ("never", "always"), tmp_path / "run"
    measured = run_evaluation(model, tasks, Settings(modes=modes), output=run, progress=False)
    indexes = {}
    for task in tasks:
        names = tuple(task.candidate_ids)
        if names not in indexes:
            records = [
                {"id": name, "text": value.get("text"), "image": value.get("image", [])}
                for name, value in zip(names, task.candidates, strict=True)
            ]
            folder = tmp_path / f"index-{len(indexes)}"
            build_index(Dataset.from_list(records, features=CANDIDATES), model, folder)
            indexes[names] = Index.open(folder, model)
        for mode in modes:
            results = indexes[names].search(task.queries, len(names), reasoning=mode)
            ranks = [rank(result.hits, wanted) for result, wanted in zip(results, task.relevance, strict=True)]
            assert ranks == list(read_query_rows(rows_path(run, task.name, mode))["rank"]), task.name
            score = measured["tasks"][task.name]["modes"][mode]["score"]
            assert sum(one == 1 for one in ranks) / len(ranks) == pytest.approx(score)
    assert len(tasks) > 3
