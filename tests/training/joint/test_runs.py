"""Runs of the joint phase as a whole: what they refuse to start on, write, and go on from."""

from __future__ import annotations

import copy
import json
from functools import partial

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from mmemb_r1 import MMEmbR1, MMEmbR1Model
from mmemb_r1.atlas.pictures import augment
from mmemb_r1.cli._options import load_model
from mmemb_r1.training import JointConfig, JointTrainer
from mmemb_r1.training.adapters import lora_config

SELECTED = {
    "pair_id": ["pair 0", "pair 0", "pair 1", "pair 1", "pair 7", "pair 7"],
    "side": ["query"] * 4 + ["target"] * 2,
    "text": ["It is red.", "Red it is.", "It is green.", "Grass is green.", "It is green.", "Green."],
    "posterior": [0.5, 0.5, 0.3, 0.7, 0.4, 0.6],
}


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    """Kills a run at the beginning of a step, when its checkpoint is some steps old."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def with_dropout(model):
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.2
    return model


class TestResuming:
    """With everything that is random: augmentation, rationales, hard negatives and dropout."""

    @pytest.mark.parametrize(
        "options",
        [
            {"max_steps": 4, "mini_batch_size": 4},
            # killed in the second epoch
            {"max_steps": -1, "num_train_epochs": 2, "mini_batch_tokens": 150, "separate_equal_pairs": True},
            pytest.param(
                {
                    "max_steps": 4,
                    "gradient_accumulation_steps": 2,
                    "mini_batch_size": None,
                    "dataloader_num_workers": 1,
                },
                marks=pytest.mark.slow,
            ),
        ],
        ids=["steps, gradient caching", "epochs, a budget of tokens", "accumulation, a worker"],
    )
    def test_the_losses_are_those_of_an_undisturbed_run(self, make_trainer, tiny, rows, tmp_path, options):
        epochs = options["max_steps"] < 0
        common = {"augment": augment, "num_hard_negatives": 1, "save_strategy": "steps", "save_steps": 2, **options}
        if epochs:
            common |= {"save_steps": 4}

        def trainer(folder):
            selected = Dataset.from_dict(SELECTED)
            model = with_dropout(copy.deepcopy(tiny[0]))
            return make_trainer(model, rows, rationales=selected, output_dir=str(tmp_path / folder), **common)

        def losses(run):
            names = ("loss", "nce_00", "nce_10", "rationale_query", "grad_norm")
            return [{name: log.get(name) for name in names} for log in run.state.log_history if "loss" in log]

        whole = trainer("whole")
        whole.train()
        part = trainer("part")
        part.add_callback(KillAt(common["save_steps"] + 1))
        with pytest.raises(Killed):
            part.train()
        rest = trainer("part")
        rest.train(resume_from_checkpoint=True)
        assert len(losses(whole)) == (6 if epochs else 4) == rest.state.global_step
        assert losses(rest) == losses(whole)
        for name, weight in whole.model.state_dict().items():
            assert torch.equal(weight, rest.model.state_dict()[name]), name

    def test_without_the_random_state_it_would_not(self, make_trainer, tiny, rows, tmp_path):
        """That dropout and all draws do count in the test above."""

        def losses(seed):
            model = with_dropout(copy.deepcopy(tiny[0]))
            trainer = make_trainer(model, rows, seed=seed, data_seed=0, max_steps=1, use_rationales=False)
            trainer.train()
            return [log["loss"] for log in trainer.state.log_history if "loss" in log]

        assert losses(1) == losses(1) != losses(2)


class TestWriting:
    @pytest.fixture
    def trained(self, make_trainer, model, rows):
        trainer = make_trainer(model, rows, save_strategy="steps", save_steps=2, max_steps=2)
        trainer.train()
        return trainer

    def test_what_was_trained_loads_and_embeds(self, trained, processor, rows, tmp_path):
        trained.save_model(str(tmp_path / "trained"))
        again = MMEmbR1Model.from_pretrained(str(tmp_path / "trained"))
        inputs = ["say red", {"text": "color?", "image": rows[0]["query"]["image"]}]
        options = {"reasoning": "always", "max_reasoning_tokens": 4}
        ours = MMEmbR1.from_model(trained.model.eval(), processor).encode(inputs, **options)
        theirs = MMEmbR1.from_model(again.eval(), processor).encode(inputs, **options)
        assert abs(ours - theirs).max() == 0

    @pytest.mark.parametrize("adapted", [False, True])
    def test_a_checkpoint_loads_as_what_it_is_in_all_loaders(self, adapted, model, processor, rows, tmp_path, on_cpu):
        start, folder = str(tmp_path / "start"), tmp_path / "checkpoints" / "checkpoint-1"
        prompts = {"query": "Find the color."}
        MMEmbR1.from_model(model, processor, prompts=prompts).save_pretrained(start)
        model = MMEmbR1(start, device="cpu")[0].model
        args = JointConfig(
            **on_cpu,
            output_dir=str(folder.parent),
            per_device_train_batch_size=3,
            sub_batch_size=3,
            max_steps=1,
            save_steps=1,
            learning_rate=0.01,
        )
        peft_config = lora_config(model, r=2) if adapted else None
        trainer = JointTrainer(model.train(), args, rows, processor, peft_config=peft_config)
        trainer.train()
        expected = MMEmbR1.from_model(trainer.model.eval(), processor).encode(["say red", "green"], reasoning="never")
        before = MMEmbR1(start, device="cpu").encode(["say red", "green"], reasoning="never")
        assert abs(expected - before).max() > 1e-3
        for load in (partial(SentenceTransformer, trust_remote_code=True), MMEmbR1, load_model):
            loaded = load(str(folder), device="cpu")
            assert abs(loaded.encode(["say red", "green"], reasoning="never") - expected).max() < 1e-6
            assert loaded.prompts["query"] == prompts["query"]
        assert (folder / "config.json").exists() is not adapted

    def test_a_folder_of_the_model_alone_is_never_taken_for_another_one(self, model, processor, tmp_path):
        expected = MMEmbR1.from_model(model.eval(), processor).encode(["say red"])
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        for load in (partial(SentenceTransformer, trust_remote_code=True), MMEmbR1, load_model):
            assert abs(load(str(tmp_path), device="cpu").encode(["say red"]) - expected).max() < 1e-6
        (tmp_path / "modules.json").unlink()
        with pytest.raises(ValueError, match="is no mmemb-r1 checkpoint: it has no modules.json"):
            MMEmbR1(str(tmp_path), device="cpu")

    def test_facts_lie_beside_each_checkpoint(self, trained, rows, tmp_path):
        facts = json.loads((tmp_path / "checkpoints" / "checkpoint-2" / "training.json").read_text(encoding="utf-8"))
        assert facts == {**trained.facts, "steps": 2}
        assert facts["pairs"] == len(rows)

    def test_the_card_tells_them(self, trained, tmp_path):
        trained.save_model()
        trained.create_model_card(dataset_name="some/pairs")
        card = (tmp_path / "checkpoints" / "README.md").read_text(encoding="utf-8")
        for fact in ("some/pairs", trained.facts["started from weights"], trained.facts["loss weights"]):
            assert fact in card
        assert {"mmemb-r1", "joint"} <= set(trained.model.model_tags)

    def test_tensorboard_gets_every_number(self, make_trainer, model, rows, tmp_path, monkeypatch):
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
        make_trainer(model, rows, report_to=["tensorboard"], max_steps=2).train()
        (file,) = (tmp_path / "events").rglob("events.out.tfevents.*")
        events = accumulator.EventAccumulator(str(file))
        events.Reload()
        tags = set(events.Tags()["scalars"])
        assert {"train/loss", "train/nce_00", "train/gate_prob", "train/tokens_per_second"} <= tags
        assert [event.step for event in events.Scalars("train/nce_00")] == [1, 2]


class TestRefusing:
    @pytest.mark.parametrize("column", ["query", "target"])
    def test_a_table_that_lacks_a_column(self, make_trainer, model, rows, column):
        message = f"the pairs table has no column '{column}'; needed: pair_id, query, target. It has: pair_id, task, "
        with pytest.raises(ValueError, match=message):
            make_trainer(model, rows.remove_columns(column))

    def test_an_empty_table(self, make_trainer, model, rows):
        with pytest.raises(ValueError, match="the pairs table has no rows; give it at least one pair"):
            make_trainer(model, rows.select([]))
        with pytest.raises(ValueError, match="the evaluation table has no rows; give it at least one pair"):
            make_trainer(model, rows, eval_dataset=rows.select([]))

    def test_what_is_no_table(self, make_trainer, model, rows):
        message = (
            "the pairs table is a list; allowed: datasets.Dataset. Read a Parquet file with mmemb_r1.training.tab"
        )
        with pytest.raises(ValueError, match=message):
            make_trainer(model, list(rows))
        with pytest.raises(ValueError, match="the pairs table is a NoneType; allowed"):
            make_trainer(model, None)
        with pytest.raises(ValueError, match="the evaluation table is a dict; allowed"):
            make_trainer(model, rows, eval_dataset={"eval": rows})

    def test_a_pair_that_is_there_twice(self, make_trainer, model, rows):
        with pytest.raises(
            ValueError, match="the pairs table: the pair_id 'pair 3' is there twice, in the rows 1 and 2"
        ):
            make_trainer(model, rows.select([0, 3, 3]))

    def test_an_empty_input(self, make_trainer, model, make_pairs):
        table = make_pairs([{"query": {"text": "a"}, "target": {"text": "b"}}, {"query": {"text": " "}, "target": {}}])
        with pytest.raises(
            ValueError, match=r"row 1 \(pair_id 'pair 1'\), counted from 0, has no query; give it a text"
        ):
            make_trainer(model, table)

    def test_evaluation_on_what_is_trained_on(self, make_trainer, model, rows):
        message = (
            "2 pairs, 'pair 4' for one, are in the pairs table and in the evaluation table: what was trained on can't"
        )
        with pytest.raises(ValueError, match=message):
            make_trainer(model, rows.select(range(6)), eval_dataset=rows.select([4, 5, 6]))
        make_trainer(model, rows.select(range(6)).remove_columns("pair_id"), eval_dataset=rows.select([4]))  # unknown

    def test_selected_rationales_of_nothing_or_of_other_pairs(self, make_trainer, model, rows):
        with pytest.raises(
            ValueError, match="The selected table has no column 'text'; it has: pair_id, side, posterior"
        ):
            make_trainer(model, rows, rationales=Dataset.from_dict(SELECTED).remove_columns("text"))
        with pytest.raises(ValueError, match="None of the 3 pairs of the selected table is in the pairs table"):
            make_trainer(model, rows.select([2, 3]), rationales=Dataset.from_dict(SELECTED))

    def test_tasks_that_are_not_there(self, make_trainer, model, rows):
        trainer = make_trainer(model, rows, task_weights={"nmae": 1.0})
        with pytest.raises(ValueError, match=r"task_weights names \['nmae'\]; the data has the tasks"):
            trainer.train()
