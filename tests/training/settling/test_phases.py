"""No row ends a training: what can't be trained on is refused, or left out and listed, before the first step."""

from __future__ import annotations

import re

import pytest
from datasets import Dataset
from tests.training.adaptive.conftest import trainer_of  # noqa: F401
from tests.training.settling.conftest import FAULTS, LIMIT

from mmemb_r1.training.joint.data import DrawnRow
from mmemb_r1.training.joint.run import JointRun, train_joint
from mmemb_r1.training.settling import settle as settling

pytestmark = pytest.mark.usefixtures("one_thread")
SKIP = {"on_error": "skip", "max_skipped": 0.1, "max_input_tokens": LIMIT}
MEANT = {
    "truncated": r"3\.jpg' can't be read \(.*[Tt]runcated",
    "missing": r"there is no image file '.*3\.jpg'",
    "too long": rf"it has \d+ tokens.*; allowed: max_input_tokens={LIMIT}",
}


class TestJoint:
    @pytest.mark.parametrize("fault", FAULTS)
    @pytest.mark.parametrize("side", ["query", "target"])
    def test_a_row_is_refused_before_the_first_step(self, make_trainer, model, table_with, fault, side):
        with pytest.raises(ValueError, match=rf"1 of the 12 pairs .* row 3, pair 'pair 3', .*{MEANT[fault]}") as said:
            make_trainer(model, table_with(fault, side=side), max_input_tokens=LIMIT)
        assert "leave such rows out with on_error='skip'" in str(said.value)
        assert "`mmemb-r1 pairs check` lists all of them" in str(said.value)

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_row_is_left_out(self, make_trainer, model, table_with, fault):
        trainer = make_trainer(model, table_with(fault), max_steps=2, **SKIP)
        trainer.train()  # as many rows as the table has: all that are left are used
        (one,) = trainer.settlement.skipped
        assert one[:4] == ("the pairs table", 3, "pair 3", "query")
        assert re.search(MEANT[fault], one.reason)
        assert (trainer.facts["pairs"], trainer.state.global_step) == (11, 2)

    def test_a_row_of_the_evaluation_table_is_left_out(self, make_trainer, model, table_with, rows):
        trainer = make_trainer(model, rows, eval_dataset=table_with("missing").remove_columns("pair_id"), **SKIP)
        assert [one[:4] for one in trainer.settlement.skipped] == [("the evaluation table", 3, None, "query")]
        assert "eval_loss" in trainer.evaluate()

    def test_negatives_count_where_they_are_used(self, make_trainer, model, table_with):
        rows = table_with(number=6).to_list()
        rows[2]["negatives"] = [{"text": "no", "image": []}, {"text": "", "image": ["nowhere.png"]}]
        table = Dataset.from_list(rows)
        make_trainer(model, table)
        with pytest.raises(
            ValueError, match="1 of the 6 .* row 2, pair 'pair 2', negatives 1: there is no image file"
        ):
            make_trainer(model, table, num_hard_negatives=1)

    def test_a_rationale_that_is_too_long_goes_and_its_pair_stays(self, make_trainer, model, table_with):
        table = table_with("too long rationale")
        with pytest.raises(ValueError, match=r"1 rationales .* too long: row 3.*max_rationale_tokens=50"):
            make_trainer(model, table, max_rationale_tokens=50)
        trainer = make_trainer(model, table, max_rationale_tokens=50, on_error="skip", max_skipped=0, max_steps=2)
        trainer.train()
        (one,) = trainer.settlement.skipped
        assert one[:4] == ("the pairs table", 3, "pair 3", "query rationale") and trainer.facts["pairs"] == 12

    def test_rows_behind_one_that_is_gone_keep_their_rationales(self, make_trainer, model, table_with):
        table = table_with("missing", row=1)
        long = table.to_list()
        long[5]["query_rationale"] = ["It is red. " * LIMIT]
        trainer = make_trainer(
            model, Dataset.from_list(long), max_rationale_tokens=50, on_error="skip", max_skipped=0.1
        )
        pairs = trainer._pairs["train"]
        without = [
            one["pair_id"]
            for one in (pairs[DrawnRow(row, 0, row)] for row in range(len(pairs)))
            if not one["query_rationale"]
        ]
        assert without == ["pair 5"]

    def test_selected_rationales_that_are_too_long_are_told_by_worker(self, make_trainer, model, table_with):
        written = [("a", "It is red."), ("a", "It is red. " * LIMIT), ("b", "It is blue."), ("b", "Blue.")]
        selected = Dataset.from_list(
            [{"pair_id": "pair 2", "side": "query", "worker": name, "text": text} for name, text in written]
        )
        with pytest.raises(
            ValueError, match=r"1 rationales .* too long \(50.0% of a's \(1 of 2\)\): row 1, pair 'pair 2'"
        ):
            make_trainer(model, table_with(), rationales=selected, max_rationale_tokens=50)
        trainer = make_trainer(model, table_with(), rationales=selected, max_rationale_tokens=50, on_error="skip")
        assert trainer.facts["rationales"].startswith("3 selected ones, for 1 of the 12 pairs; by worker: a 1, b 2")
        assert [one.worker for one in trainer.settlement.skipped] == ["a"]

    def test_a_rationale_counts_with_its_prompt(self, make_trainer, model, table_with):
        selected = Dataset.from_list([{"pair_id": "pair 2", "side": "query", "text": "It is red. " * 12}])
        with pytest.raises(ValueError, match=r"it has \d+ tokens after a prompt of \d+; allowed: max_input_tokens=60"):
            make_trainer(model, table_with(), rationales=selected, max_input_tokens=LIMIT)

    def test_more_than_the_cap_is_refused_with_counts(self, make_trainer, model, table_with):
        with pytest.raises(ValueError, match=r"1 of the 12 pairs .* a share of 0\.08333, more than max_skipped=0\.05"):
            make_trainer(model, table_with("missing"), on_error="skip", max_skipped=0.05)

    def test_a_picture_that_goes_away_later_is_named_with_its_pair(self, make_trainer, model, table_with, folder):
        trainer = make_trainer(model, table_with(), max_steps=2)
        (folder / "pictures" / "3.jpg").unlink()
        with pytest.raises(ValueError, match=r"the query of pair 'pair 3' can't be read.*it goes on from the last"):
            trainer.train()

    def test_so_it_is_with_an_augmentation(self, make_trainer, model, table_with, folder):
        trainer = make_trainer(model, table_with(), max_steps=2, augment=lambda picture, rng: picture)
        (folder / "pictures" / "3.jpg").unlink()
        with pytest.raises(ValueError, match=r"the query of pair 'pair 3' can't be read"):
            trainer.train()


class TestAdaptive:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_row_is_refused_before_the_first_step(self, trainer_of, model, table_with, fault):  # noqa: F811
        with pytest.raises(ValueError, match=rf"1 of the 12 pairs .* row 3, pair 'pair 3', query: .*{MEANT[fault]}"):
            trainer_of(model, table_with(fault), max_input_tokens=LIMIT)

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_row_is_left_out(self, trainer_of, model, table_with, fault):  # noqa: F811
        trainer = trainer_of(model, table_with(fault), **SKIP)
        assert [one[:4] for one in trainer.settlement.skipped] == [("the pairs table", 3, "pair 3", "query")]
        assert [row["pair_id"] for row in trainer.train_dataset][2:4] == ["pair 2", "pair 4"]
        assert trainer.facts["pairs"] == 11

    @pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
    def test_the_other_rows_are_trained_on(self, trainer_of, model, table_with):  # noqa: F811
        trainer = trainer_of(model, table_with("truncated", number=6), max_steps=2, **{**SKIP, "max_skipped": 0.2})
        trainer.train()  # three queries in a step: all that are left come
        assert trainer.state.global_step == 2

    def test_what_is_drawn_needs_room(self, trainer_of, model, table_with):  # noqa: F811
        with pytest.raises(
            ValueError, match=r"it has \d+ tokens and 67 that may follow; allowed: max_input_tokens=70"
        ):
            trainer_of(model, table_with(), max_reasoning_tokens=64, max_input_tokens=70)

    def test_targets_of_the_joint_phase_are_read_too(self, trainer_of, model, table_with, rows):  # noqa: F811
        joint = table_with("missing", side="target").remove_columns("query")
        trainer = trainer_of(model, rows.remove_columns("negatives"), joint_pairs=joint, **SKIP)
        (one,) = trainer.settlement.skipped
        assert one[:4] == ("the pairs of the joint phase", 3, "pair 3", "target")


class TestInAFolder:
    @pytest.fixture
    def run(self, table_with, tiny_checkpoint, folder, on_cpu):
        def build(fault, **settings):
            path = folder / "pairs.parquet"
            table_with(fault).to_parquet(str(path))
            steps = {"per_device_train_batch_size": 4, "sub_batch_size": 2, "max_steps": 1, "save_steps": 1}
            return JointRun(
                model=str(tiny_checkpoint), pairs=path, output=folder / "run", settings={**on_cpu, **steps, **settings}
            )

        return build

    def test_what_is_left_out_is_listed(self, run, folder, lines):
        train_joint(run("truncated", **SKIP))
        (one,) = lines(folder / "run" / "skipped.jsonl")
        assert (one["table"], one["row"], one["pair_id"], one["side"]) == ("the pairs table", 3, "pair 3", "query")
        assert "can't be read" in one["reason"]
        assert (folder / "run" / "model" / "model.safetensors").exists()
        card = (folder / "run" / "model" / "README.md").read_text()
        assert "| left out as broken or too long | 1 of the pairs table |" in card and "| pairs | 11 |" in card

    def test_a_run_that_was_refused_goes_on_after_the_row_is_left_out(self, run, folder):
        with pytest.raises(ValueError, match="pair 'pair 3'"):
            train_joint(run("truncated"))
        assert not (folder / "run" / "run.json").exists()
        train_joint(run("truncated", **SKIP))
        train_joint(run("truncated", **{**SKIP, "max_skipped": 0.5, "max_steps": 2}))  # leaves out the same

    def test_a_run_that_would_leave_out_other_rows_is_another_one(self, run, folder):
        train_joint(run("truncated", **SKIP))
        other = run("truncated", **{**SKIP, "max_steps": 2})
        (folder / "pictures" / "5.jpg").unlink()
        with pytest.raises(
            ValueError, match=r"other settings or data: skipped was '1, .*', is now '2, .*accept-changes"
        ):
            train_joint(JointRun(**{**vars(other), "settings": {**other.settings, "max_skipped": 0.5}}))


def test_without_anything_to_leave_out_there_is_no_list(tmp_path):
    settling.write_skipped(tmp_path, [settling.Skipped("the pairs table", 1, None, "query", "broken")])
    assert (tmp_path / "skipped.jsonl").exists()
    settling.write_skipped(tmp_path, [])
    assert not (tmp_path / "skipped.jsonl").exists()
