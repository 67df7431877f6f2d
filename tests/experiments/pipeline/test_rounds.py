from __future__ import annotations

from experiments.atlas_workers.wording import phrasings
from experiments.pipeline.rounds import sentences, with_segments
from experiments.pipeline.tasks import POOLED, of_tasks
from mmemb_r1.atlas.hashing import seeded_rng


def test_rationales_fall_into_as_many_sentences_as_they_have_steps(small_atlas):
    pairs, seen = of_tasks(small_atlas.pairs["train"], POOLED), 0
    for pair_id, segments in zip(pairs["pair_id"], pairs["query_rationale"], strict=True):
        said = phrasings(segments)
        for text in {said[0], said[int(seeded_rng(pair_id).integers(len(said)))]}:
            assert len(sentences(text)) == len(segments), text
            assert " ".join(sentences(text)) == text
            seen += len(segments) > 1
    assert seen > 20


def test_segments_stand_beside_their_text():
    from datasets import Dataset

    table = with_segments(Dataset.from_dict({"text": ["It is a. So b.", "That is all here. The end."]}))
    assert table["segments"][1] == ["That is all here.", "The end."]
