"""What a training pushes loads from the Hub as what it is; what would not load is never pushed."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from mmemb_r1 import MMEmbR1
from mmemb_r1.training import pushing
from mmemb_r1.training.joint.run import JointRun, train_joint
from mmemb_r1.training.pushing import check_pushes, stage

REPO = "org/trained"


@pytest.fixture
def run(hub, tiny_checkpoint, tmp_path):
    """`run(**settings)`: train two steps, with checkpoints after each, and return the folder."""
    rows = [
        {"pair_id": str(place), "query": {"text": f"say {word}"}, "target": {"text": word}}
        for place, word in enumerate(("red", "green", "blue", "white"))
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "pairs.parquet")

    def train(lora=None, **settings):
        fields = {
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "sub_batch_size": 4,
            "learning_rate": 1e-2,
            "save_steps": 1,
            "use_cpu": True,
            "bf16": False,
            "activation_checkpointing": False,
            "disable_tqdm": True,
            "push_to_hub": True,
            "hub_always_push": True,
            "hub_model_id": REPO,
            **settings,
        }
        output = tmp_path / "run"
        arguments = {"model": str(tiny_checkpoint), "pairs": tmp_path / "pairs.parquet", "output": output}
        train_joint(JointRun(**arguments, settings=fields, lora=lora))
        return output

    return train


def vector(folder):
    return torch.as_tensor(MMEmbR1(str(folder), device="cpu").encode(["say red"], reasoning="never"))


def folders(hub):
    return {name.partition("/")[0] for name in hub.files(REPO) if "/" in name}


def commits(hub):
    """Message -> commit, of the training's."""
    return {message: commit for commit, message in hub.repositories[REPO].messages.items()}


@pytest.mark.parametrize(
    ("strategy", "beside"),
    [
        ("end", set()),
        ("every_save", set()),
        ("checkpoint", {"last-checkpoint"}),
        ("all_checkpoints", {"checkpoint-1", "checkpoint-2"}),
    ],
)
def test_what_is_pushed_loads(hub, run, tmp_path, strategy, beside):
    output = run(hub_strategy=strategy)
    assert folders(hub) == beside
    steps = [f"Training in progress, step {step}" for step in (1, 2)]
    found = commits(hub)
    for step, message in enumerate(steps, start=1):
        assert (message in found) == (strategy != "end")
        if message in found:
            target = tmp_path / f"step-{step}"
            write(hub, found[message], target)
            assert vector(target).equal(vector(output / "checkpoints" / f"checkpoint-{step}"))
    write(hub, found["End of training"], tmp_path / "end")
    assert vector(tmp_path / "end").equal(vector(output / "model"))
    assert not vector(tmp_path / "end").equal(vector(output / "checkpoints" / "checkpoint-1"))
    for name in beside:
        assert (tmp_path / "end" / name / "optimizer.pt").is_file()
        last = output / "checkpoints" / ("checkpoint-2" if name == "last-checkpoint" else name)
        assert vector(tmp_path / "end" / name).equal(vector(last))
    assert not list((output / "checkpoints").glob("_push*"))


def write(hub, commit, folder):
    """Write what a commit holds into a folder."""
    for name, content in hub.files(REPO, commit).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_adapters_are_merged_at_the_end_and_not_pushed_before(hub, run, tmp_path):
    with pytest.raises(ValueError, match=r"hub_strategy='every_save' would push adapters.*Set hub_strategy to end"):
        run(lora={"r": 2})
    assert not hub.repositories
    output = run(lora={"r": 2}, hub_strategy="end")
    write(hub, hub.head(REPO), tmp_path / "end")
    assert vector(tmp_path / "end").equal(vector(output / "model"))


def test_a_repository_has_to_be_named(hub, run):
    with pytest.raises(ValueError, match="push_to_hub needs hub_model_id"):
        run(hub_model_id=None)
    assert not hub.repositories


def test_sharded_checkpoints_are_refused():
    args = SimpleNamespace(hub_model_id=REPO, hub_strategy="checkpoint")
    with pytest.raises(ValueError, match="would push sharded checkpoints, which no library loads.*FULL_STATE_DICT"):
        check_pushes(args, has_adapters=False, is_sharded=True)
    check_pushes(args, has_adapters=False, is_sharded=False)


@pytest.mark.parametrize("missing", ["modules.json", "model.safetensors", "modeling_mmemb_r1.py"])
def test_a_checkpoint_that_does_not_load_is_not_pushed(tiny_checkpoint, tmp_path, missing):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint-1"))
    (folder / "optimizer.pt").write_bytes(b"state")
    record = {"phase": "joint", "steps": 1}
    names = {path.name for path in stage(folder, record).iterdir()}
    assert names == {path.name for path in folder.iterdir()} - {"optimizer.pt"} | {"README.md", "training.json"}
    assert "optimizer.pt" in {path.name for path in stage(folder, record, whole=True).iterdir()}
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=missing.partition(".")[0]):
        stage(folder, record)


def test_a_push_that_fails_is_told_and_training_goes_on(hub, run, caplog, monkeypatch):
    def refused(folder, message):
        raise OSError("no space left on the Hub")

    def upload_folder(self, *, folder_path, commit_message, run_as_future=False, **more):
        if run_as_future:
            return self.run_as_future(refused, folder_path, commit_message)
        return original(self, folder_path=folder_path, commit_message=commit_message, **more)

    original = pushing.hub_api().__class__.upload_folder
    monkeypatch.setattr(pushing.hub_api().__class__, "upload_folder", upload_folder)
    run(hub_strategy="every_save")
    assert "was not pushed to org/trained: no space left on the Hub. Training goes on." in caplog.text
    assert "End of training" in commits(hub)
