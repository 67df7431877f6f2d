from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.atlas_workers.worker import recall


def test_the_question_behind_each_row(small_atlas):
    _, asked = recall(small_atlas)
    for pairs in small_atlas.pairs.values():
        columns = pairs.flatten().select_columns(["pair_id", "query.text", "target_id", "entity"])
        for row in columns:
            question = asked[row["pair_id"]]
            assert (question.text, question.answer, question.entity) == tuple(row.values())[1:]


@pytest.mark.parametrize("changed", [{"seed": 1}, {"num_objects": 29}, {"generated_rows": 19}])
def test_an_atlas_of_other_knowledge_is_refused(small_atlas, changed):
    arguments = {**small_atlas.manifest["arguments"], **changed}
    other = replace(small_atlas, manifest={**small_atlas.manifest, "arguments": arguments})
    with pytest.raises(ValueError, match="built by another version of the package .* mmemb-r1 atlas build --output"):
        recall(other)
