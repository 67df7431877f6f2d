from __future__ import annotations

from mmemb_r1.atlas.build import SPLITS
from mmemb_r1.atlas.splits import digit_indices

EVALUATION = SPLITS[1:]
ALL_SHOW = ("picture-name-", "name-picture", "fact-")


def entities(pairs, wanted):
    rows = zip(pairs["task"], pairs["complexity"], pairs["entity"], strict=True)
    return {entity for task, complexity, entity in rows if wanted(task, complexity)}


def countries_of_multi_hop(pairs):
    joined = entities(pairs, lambda task, kind: kind == "multi-hop" and not task.startswith("digits-"))
    return {code for entity in joined for code in entity.split("+")}


def assert_disjoint(groups):
    seen = set()
    for group in groups:
        assert group and not group & seen
        seen |= group


def test_multi_hop_countries_are_disjoint(small_atlas):
    assert_disjoint([countries_of_multi_hop(small_atlas.pairs[split]) for split in SPLITS])


def test_simple_questions_of_evaluation_are_of_its_own_countries(small_atlas):
    for split in EVALUATION:
        pairs = small_atlas.pairs[split]
        asked = entities(pairs, lambda task, kind: kind == "simple" and (task.startswith("fact-") or "flag" in task))
        assert asked == countries_of_multi_hop(pairs)


def test_digit_images_are_disjoint(small_atlas):
    pictures = [entities(small_atlas.pairs[split], lambda task, _: task.startswith("digits-")) for split in SPLITS]
    assert_disjoint([{index for key in keys for index in digit_indices(key)} for keys in pictures])


def test_objects_of_evaluation_splits_are_disjoint_and_all_trained(small_atlas):
    objects = [entities(small_atlas.pairs[split], lambda task, _: task == "picture-name-object") for split in SPLITS]
    assert objects[0] == set().union(*objects[1:])
    assert_disjoint(objects[1:])


def test_train_teaches_every_fact_and_every_name(small_atlas):
    def taught(pairs):
        rows = pairs.select_columns(["task", "entity", "target_id"])
        return {(row["task"], row["entity"], row["target_id"]) for row in rows if row["task"].startswith(ALL_SHOW)}

    train = taught(small_atlas.pairs["train"].filter(lambda kind: kind == "simple", input_columns="complexity"))
    for split in EVALUATION:
        own = small_atlas.pairs[split].filter(lambda kind: kind == "simple", input_columns="complexity")
        assert taught(own) <= train


def test_every_fact_of_a_chain_is_taught_as_text(small_atlas):
    train = small_atlas.pairs["train"]
    simple = train.filter(lambda kind: kind == "simple", input_columns="complexity")
    taught = {segment for segments in simple["query_rationale"] for segment in segments}
    for split in SPLITS:
        for row in small_atlas.pairs[split].select_columns(["task", "query_rationale"]):
            if row["task"].startswith(("flag-", "neighbour-", "fact-flag")):
                assert set(row["query_rationale"]) <= taught
