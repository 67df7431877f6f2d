from __future__ import annotations

from hashlib import sha256

import pytest

from mmemb_r1.atlas import atlas_texts, build_atlas, load_atlas, pair_features
from mmemb_r1.atlas.build import SPLITS
from mmemb_r1.atlas.card import SOURCES
from mmemb_r1.atlas.tables import PICTURE_SETS

ARGUMENTS = {
    "size": 32,
    "num_countries": 12,
    "num_objects": 10,
    "generated_rows": 5,
    "num_drawings": 12,
    "second_font": None,
}
EVALUATION = SPLITS[1:]


def png_bytes(pairs):
    """PNG bytes of every query picture, row by row."""
    images = pairs.data.table.column("query").combine_chunks().field("image")
    return {sha256(image["bytes"]).hexdigest() for row in images.to_pylist() for image in row}


def files(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_same_arguments_give_the_same_bytes(tmp_path):
    first = build_atlas(tmp_path / "first", **ARGUMENTS)
    second = build_atlas(tmp_path / "second", **ARGUMENTS)
    assert files(first.directory) == files(second.directory)
    other = build_atlas(tmp_path / "other", **ARGUMENTS, seed=1)
    assert other.manifest["content_hash"] != first.manifest["content_hash"]
    assert set(other.pairs["train"]["entity"]) != set(first.pairs["train"]["entity"])


@pytest.mark.slow
def test_second_call_loads_and_other_arguments_replace(tmp_path):
    directory = tmp_path / "new" / "atlas"
    build_atlas(directory, **ARGUMENTS)
    written = (directory / "atlas.json").stat().st_mtime_ns
    build_atlas(directory, **ARGUMENTS)
    assert (directory / "atlas.json").stat().st_mtime_ns == written
    replaced = build_atlas(directory, **{**ARGUMENTS, "num_objects": 12})
    assert replaced.manifest["arguments"]["num_objects"] == 12
    assert [path.name for path in directory.parent.iterdir()] == ["atlas"]  # nothing is left behind


def test_a_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is no Atlas"):
        build_atlas(tmp_path, **ARGUMENTS)
    with pytest.raises(ValueError, match="exists and is no Atlas"):
        build_atlas(tmp_path / "thesis.txt", **ARGUMENTS)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_load_without_an_atlas_says_how_to_build_one(tmp_path):
    with pytest.raises(ValueError, match="mmemb-r1 atlas build"):
        load_atlas(tmp_path)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"size": 8}, "size is 8; it must be at least 16"),
        ({"num_objects": 0}, "num_objects is 0"),
        ({"num_objects": 5000}, "num_objects is 5000, but there are only"),
        ({"num_countries": 3}, "num_countries is 3"),
        ({"num_countries": 500}, "num_countries is 500, but there are only"),
        ({"generated_rows": 0}, "generated_rows is 0"),
        ({"num_drawings": 5}, "num_drawings is 5; it must be at least 6"),
        ({"second_font": "no/such.ttf"}, "which is no file"),
    ],
)
def test_arguments_out_of_range(tmp_path, argument, message):
    with pytest.raises(ValueError, match=message):
        build_atlas(tmp_path / "atlas", **{**ARGUMENTS, **argument})
    assert not (tmp_path / "atlas").exists()


def test_columns_and_types(small_atlas):
    for split in SPLITS:
        pairs = small_atlas.pairs[split]
        assert pairs.features == pair_features()
        assert len(set(pairs["pair_id"])) == len(pairs)
        assert all(pair_id.startswith(f"{split}/") for pair_id in pairs["pair_id"])
        assert set(pairs["complexity"]) == {"simple", "multi-hop", "perceptual", "mixed"}


def test_pictures_come_back_as_rgb_of_the_size(small_atlas):
    for row in small_atlas.pairs["test"]:
        images = row["query"]["image"]
        assert all((image.mode, image.size) == ("RGB", (32, 32)) for image in images)
        if row["task"].startswith("compare-"):
            assert len(images) == 2


def test_every_target_is_once_among_its_candidates(small_atlas):
    keys = list(zip(small_atlas.candidates["candidate_set"], small_atlas.candidates["candidate_id"], strict=True))
    assert len(set(keys)) == len(keys)
    inputs = dict(zip(keys, small_atlas.candidates["input"], strict=True))
    for split in SPLITS:
        for row in small_atlas.pairs[split]:
            candidate = inputs[row["candidate_set"], row["target_id"]]
            assert candidate["text"] == row["target"]["text"]
            shown, wanted = ([image.tobytes() for image in value["image"]] for value in (candidate, row["target"]))
            # training shows other renderings than those that are searched
            assert len(shown) == len(wanted) and (shown == wanted) == (split != "train" or not shown)


def test_texts_within_a_candidate_set_differ(small_atlas):
    rows = small_atlas.candidates.filter(lambda name: name not in PICTURE_SETS, input_columns="candidate_set")
    texts = [(row["candidate_set"], row["input"]["text"]) for row in rows]
    assert len(set(texts)) == len(texts)


def test_the_last_segment_names_the_answer(small_atlas):
    for split in SPLITS:
        for row in small_atlas.pairs[split]:
            assert 1 <= len(row["query_rationale"]) <= 3
            if row["target"]["text"] is None:
                assert row["target_rationale"] == row["query_rationale"][-1:]
            else:
                assert row["target"]["text"] in row["query_rationale"][-1]
                assert row["target_rationale"] == []


def test_evaluation_renderings_are_held_out(small_atlas):
    seen = png_bytes(small_atlas.pairs["train"])
    for split in EVALUATION:
        shown = png_bytes(small_atlas.pairs[split])
        assert shown and not shown & seen
        seen |= shown


def test_all_path_pairs_can_occur_in_training(small_atlas):
    train = small_atlas.pairs["train"]
    assert all(train["query_rationale"])
    assert {bool(rationale) for rationale in train["target_rationale"]} == {True, False}


def test_card_names_sources_licences_seed_and_counts(small_atlas):
    card = (small_atlas.directory / "README.md").read_text(encoding="utf-8")
    for package, (_, licence) in SOURCES.items():
        assert any(package in line and licence in line for line in card.splitlines())
    for needed in ("CC BY-SA 4.0", "OpenMoji", "CC BY 4.0", "* seed: 0", small_atlas.manifest["content_hash"]):
        assert needed in card
    for name in ("same-tone", "same-clock", "mixed-sum", "mixed-time"):
        assert f"`{name}`" in card  # how it is split
    assert "| same-clock | 12 | 0.0833 |" in card  # candidates, chance
    assert f"| all | {' | '.join(str(len(small_atlas.pairs[split])) for split in SPLITS)} |" in card


def test_texts_hold_questions_answers_rationales_and_candidates(small_atlas):
    texts = atlas_texts(small_atlas)
    assert texts == sorted(set(texts))
    for text in ("What is this?", "This is the flag of Japan.", "Japan", "capital of Japan?", "Tokyo", "36"):
        assert text in texts


@pytest.mark.slow
def test_the_default_atlas_is_as_large_as_promised(tmp_path):
    atlas = build_atlas(tmp_path / "atlas", second_font=None)
    assert len(atlas.pairs["test"]) >= 1500
    tests = atlas.manifest["counts"]["test"]
    assert all(tests[f"flag-{relation}"] >= 50 for relation in ("capital", "region", "currency", "language", "tld"))
    assert 180 <= atlas.manifest["counts"]["train"]["picture-name-flag"] <= 220
