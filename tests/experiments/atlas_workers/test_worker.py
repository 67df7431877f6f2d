from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from experiments.atlas_workers import worker as atlas_worker
from experiments.atlas_workers.scripted import BEHAVIOURS
from experiments.atlas_workers.wording import phrasings
from experiments.atlas_workers.worker import AtlasWorker
from mmemb_r1.atlas import build_atlas
from mmemb_r1.training.rationales.worker import Failure, Rationale, RationaleRequest, WorkerError
from mmemb_r1.training.tables import StoredInputs

SIDES = ("query", "target")
SEEDS = (1, 2)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    import matplotlib

    # a plain font that has a few of the objects: the task of the second font is there too
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    small = {
        "size": 32,
        "num_countries": 12,
        "num_objects": 120,
        "generated_rows": 5,
        "num_drawings": 12,
        "second_font": font,
    }
    return build_atlas(tmp_path_factory.mktemp("atlas") / "small", **small)


def worker(atlas, behaviour="correct", **options):
    return AtlasWorker(name="oracle", atlas=atlas.directory, behaviour=behaviour, **options)


def texts(answers):
    return [[rationale.text for rationale in answer] for answer in answers]


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.slow
def test_every_input_of_every_split_and_side_is_known(atlas, behaviour):
    oracle = worker(atlas, behaviour)
    tasks = set()
    for pairs in atlas.pairs.values():
        tasks |= set(pairs["task"])
        for side in SIDES:
            inputs = StoredInputs(pairs, side)
            answers = oracle.draw([RationaleRequest(value, side, SEEDS) for value in inputs])
            for value, answer, segments in zip(inputs, answers, pairs[f"{side}_rationale"], strict=True):
                assert bool(segments) == (side == "query" or "image" in value)
                assert len(answer) == (len(SEEDS) if segments else 0)
                assert all(isinstance(rationale, Rationale) for rationale in answer)
                for rationale in answer:
                    assert (rationale.num_tokens, rationale.finish_reason) == (len(rationale.text.split()), "stop")
                    if behaviour == "correct":
                        assert rationale.text in phrasings(segments)
    assert "picture-name-noto" in tasks


def test_correct_is_gold_about_half_of_the_time(atlas):
    pairs = atlas.pairs["train"]
    answers = worker(atlas).draw([RationaleRequest(value, "query", SEEDS) for value in StoredInputs(pairs, "query")])
    golds = [" ".join(segments) for segments in pairs["query_rationale"]]
    right = [text == gold for said, gold in zip(texts(answers), golds, strict=True) for text in said]
    assert 0.4 < sum(right) / len(right) < 0.6


def test_candidates_are_known_as_targets(atlas):
    inputs = StoredInputs(atlas.candidates, "input")
    answers = worker(atlas).draw([RationaleRequest(value, "target", (0,)) for value in inputs])
    assert [len(answer) for answer in answers] == [int("image" in value) for value in inputs]
    assert not any(isinstance(rationale, Failure) for answer in answers for rationale in answer)


def test_a_picture_counts_by_its_pixels(atlas, tmp_path):
    row = next(row for row in atlas.pairs["test"] if row["task"] == "flag-capital")
    (picture,) = row["query"]["image"]
    buffer = io.BytesIO()
    picture.save(buffer, "BMP")  # other bytes, same pixels
    (tmp_path / "flag.png").write_bytes(buffer.getvalue())
    forms = [
        [picture],
        picture,
        [{"bytes": buffer.getvalue(), "path": None}],
        {"bytes": None, "path": str(tmp_path / "flag.png")},
        buffer.getvalue(),
        str(tmp_path / "flag.png"),
    ]
    oracle = worker(atlas, "confused")
    requests = [RationaleRequest({"text": row["query"]["text"], "image": form}, "query", SEEDS) for form in forms]
    first, *others = texts(oracle.draw(requests))
    assert len(first) == 2 and all(other == first for other in others)


def test_an_answer_depends_on_input_and_seed_alone(atlas):
    inputs = StoredInputs(atlas.pairs["train"], "query")[::40]
    oracle = worker(atlas, "verbose")
    together = texts(oracle.draw([RationaleRequest(value, "query", (5, 6, 7)) for value in inputs]))
    requests = [RationaleRequest(value, "query", (seed,)) for value in inputs for seed in (5, 6, 7)]
    alone = [texts(oracle.draw([request]))[0][0] for request in requests]
    assert [text for said in together for text in said] == alone
    assert len(set(together[0])) > 1


def test_what_is_not_in_the_atlas_fails_alone(atlas):
    known = StoredInputs(atlas.pairs["train"], "query")[0]
    strange = [
        {"text": "capital of Atlantis?"},
        {"text": known["text"], "image": Image.new("RGB", (32, 32), "red")},
        {"image": [{"bytes": b"no picture", "path": None}]},
    ]
    requests = [RationaleRequest(value, "query", SEEDS) for value in [*strange, known]]
    *failed, answered = worker(atlas).draw(requests)
    for failures, reason in zip(failed, ["not in the Atlas", "not in the Atlas", "can't be read"], strict=True):
        assert len(failures) == 2 and all(reason in failure.reason for failure in failures)
    assert all(isinstance(rationale, Rationale) for rationale in answered)
    # the text of an answer is no question
    (answer,) = worker(atlas).draw([RationaleRequest({"text": "Beijing"}, "query", (0,))])
    assert isinstance(answer[0], Failure)


def test_definition_is_the_content_and_the_behaviour(atlas, tmp_path):
    moved = Path(shutil.copytree(atlas.directory, tmp_path / "moved"))
    definition = worker(atlas, batch_size=1).definition
    assert definition == AtlasWorker("other", moved, "correct", num_samples=9).definition
    assert definition != worker(atlas, "format").definition
    assert json.loads(json.dumps(definition)) == definition


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"behaviour": "wise"}, "worker 'oracle': behaviour is 'wise'; allowed: correct, confused, verbose, format"),
        ({"atlas": "missing"}, "worker 'oracle': atlas is 'missing', which holds no Atlas. .*mmemb-r1 atlas build"),
        ({"atlas": 3}, "worker 'oracle': atlas is '3', which holds no Atlas"),
        ({"num_samples": 0}, "worker 'oracle': num_samples is 0; allowed"),
        ({"batch_size": "8"}, "worker 'oracle': batch_size is '8'; allowed"),
    ],
)
def test_wrong_keys(atlas, options, message):
    with pytest.raises(ValueError, match=message):
        AtlasWorker(**{"name": "oracle", "atlas": atlas.directory, "behaviour": "correct", **options})


def test_an_atlas_of_another_version_stops_the_run(atlas, tmp_path):
    other = Path(shutil.copytree(atlas.directory, tmp_path / "other"))
    manifest = json.loads((other / "atlas.json").read_text())
    manifest["arguments"]["seed"] += 1
    (other / "atlas.json").write_text(json.dumps({**manifest, "content_hash": "another"}))
    with pytest.raises(WorkerError, match="worker 'oracle': .*built by another version of the package"):
        AtlasWorker("oracle", other, "correct").draw([])


def test_a_missing_source_package_stops_the_run(atlas, monkeypatch):
    def missing(_):
        raise ImportError("pip install 'mmemb-r1[atlas]'")

    atlas_worker._remember.cache_clear()
    monkeypatch.setattr(atlas_worker, "recall", missing)
    with pytest.raises(WorkerError, match=r"worker 'oracle': pip install 'mmemb-r1\[atlas\]'"):
        worker(atlas).draw([])
