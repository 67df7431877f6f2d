from __future__ import annotations

import copy

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from datasets import Dataset

from mmemb_r1.atlas.pictures import augment
from mmemb_r1.training import JointConfig, JointTrainer

WHOLE = {"per_device_train_batch_size": 8, "sub_batch_size": 8, "temperature": 0.1}
GATE = {"gate.output.weight", "gate.output.bias"}


def logged(trainer, name="loss"):
    return [log[name] for log in trainer.state.log_history if name in log]


def moved(model, before):
    after = model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def training_loss(make_trainer, model, table, examples, **arguments):
    trainer = make_trainer(model, table, **{**WHOLE, **arguments})
    with torch.no_grad():
        return trainer.compute_loss(model, trainer.data_collator(examples), return_outputs=True)


def naive_nce(queries, targets, same, temperature=0.1):
    """Symmetric InfoNCE row by row: `queries` (B, D), `targets` (B + N, D), `same` the pairs that are no negatives."""
    losses, size = [], len(queries)
    for row in range(size):
        candidates = [j for j in range(len(targets)) if j == row or (row, j) not in same]
        others = [i for i in range(size) if i == row or (row, i) not in same]
        forward = queries[row] @ targets[candidates].T / temperature
        backward = targets[row] @ queries[others].T / temperature
        own = queries[row] @ targets[row] / temperature
        losses.append((forward.logsumexp(0) + backward.logsumexp(0)) / 2 - own)
    return torch.stack(losses)


def _probabilities(queries, targets, same, temperature=0.1):
    """`(B,)` of each query's target among its candidates."""
    scores = (queries @ targets.T / temperature).exp()
    return torch.stack(
        [
            scores[i, i] / sum(scores[i, j] for j in range(len(targets)) if (i, j) not in same)
            for i in range(len(queries))
        ]
    )


class TestTheLoss:
    def test_it_is_the_sum_of_its_parts(self, make_trainer, model, rows, visit):
        weights = {"rationale_weight": 2.0, "direct_reasoned_weight": 0.0, "reasoned_reasoned_weight": 0.0}
        loss, out = training_loss(make_trainer, model, rows, visit(rows, range(6)), **weights, num_length_chunks=1)
        query, target = out["query"], out["target"]
        assert query.path_mask.all() and not target.path_mask[:, 1:].any()
        nce = [naive_nce(query.embeddings[:, path], target.embeddings[:, 0], set()).mean() for path in (0, 1)]
        chunk = make_trainer(model, rows, **WHOLE, num_length_chunks=1).data_collator(visit(rows, range(6)))["query"]
        with torch.no_grad():
            logps = model(**chunk["chunks"][0]["features"]).rationale_logps
        assert loss.item() == pytest.approx((sum(nce) - 2 * logps.mean()).item(), rel=1e-5)

    def test_equal_pairs_are_no_negatives(self, make_trainer, vivid, rows, visit):
        examples = visit(rows, [0, 12, 1, 13, 0])  # red twice, by picture and by text, green likewise, and the first
        loss, out = training_loss(make_trainer, vivid, rows, examples, use_rationales=False)
        queries, targets = (out[side].embeddings[:, 0] for side in ("query", "target"))
        targets = targets[[0, 0, 1, 1, 0]]
        equal = [(0, 1), (0, 4), (1, 4), (2, 3)]
        expected = naive_nce(queries[[0, 1, 2, 3, 0]], targets, {*equal, *((b, a) for a, b in equal)}).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_hard_negatives_are_candidates_of_all_queries(self, make_trainer, vivid, rows, visit):
        examples = visit(rows, range(12, 15), num_hard_negatives=1)  # plain text, no rationales
        (_, out), (loss, hard) = (
            training_loss(make_trainer, vivid, rows, given, num_hard_negatives=number)
            for number, given in ((0, visit(rows, range(12, 15))), (1, examples))
        )
        names = ["red", "green", "blue", *(example["negatives"][0]["text"] for example in examples)]
        unique = list(dict.fromkeys(names))
        targets = hard["target"].embeddings[[unique.index(name) for name in names], 0]
        torch.testing.assert_close(targets[:3], out["target"].embeddings[:, 0], rtol=1e-4, atol=1e-5)
        same = {(row, 3 + place) for place, name in enumerate(names[3:]) for row in range(3) if names[row] == name}
        expected = naive_nce(out["query"].embeddings[:, 0], targets, same).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)

    def test_in_one_direction_queries_look_for_targets_alone(self, make_trainer, vivid, rows, visit):
        options = {"rationale_weight": 0.0, "use_rationales": False, "symmetric_loss": False}
        loss, out = training_loss(make_trainer, vivid, rows, visit(rows, range(6)), **options)
        scores = out["query"].embeddings[:, 0] @ out["target"].embeddings[:, 0].T / 0.1
        expected = torch.nn.functional.cross_entropy(scores, torch.arange(6))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_a_rationale_on_one_side_may_be_enough(self, make_trainer, vivid, rows, visit):
        weights = {"direct_direct_weight": 0.0, "reasoned_direct_weight": 0.0, "direct_reasoned_weight": 0.0}
        options = {**weights, "rationale_weight": 0.0, "num_length_chunks": 1}
        examples = visit(rows, range(6))  # rationales of the queries alone
        nothing, _ = training_loss(make_trainer, vivid, rows, examples, **options)
        loss, out = training_loss(make_trainer, vivid, rows, examples, one_sided_reasoning=True, **options)
        expected = naive_nce(out["query"].embeddings[:, 1], out["target"].embeddings[:, 0], set()).mean() / 2
        assert nothing == 0 and loss.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_matryoshka_adds_the_truncated_terms(self, make_trainer, vivid, rows, visit):
        def loss(**changes):
            options = {"rationale_weight": 0.0, **changes}
            return training_loss(make_trainer, vivid, rows, visit(rows, range(6)), **options)[0].item()

        vivid_half = copy.deepcopy(vivid)
        vivid_half.config.truncate_dim = 16
        vivid_half = type(vivid)(vivid_half.config)
        vivid_half.load_state_dict(vivid.state_dict())
        options = {**WHOLE, "rationale_weight": 0.0}
        half, _ = training_loss(make_trainer, vivid_half.eval(), rows, visit(rows, range(6)), **options)
        assert loss(matryoshka_dims=[16]) == pytest.approx(loss() + half.item(), rel=1e-5)

    def test_rounds_have_terms_of_their_own(self, make_trainer, model, mixed):
        def terms(rounds):
            whole = mixed.remove_columns("task")  # one task: every batch is the whole table
            trainer = make_trainer(model, whole, **WHOLE, max_reasoning_rounds=rounds, max_steps=1)
            trainer.train()
            return {name[4:] for log in trainer.state.log_history for name in log if name.startswith("nce_")}

        assert terms(1) == {"00", "10", "01", "11"}
        # of two segments are the thoughts of two queries, of which one's target has a thought, and of another target
        assert terms(2) == terms(3) == {"00", "10", "01", "11", "20", "21", "02"}

    def test_the_gates_part_is_of_queries_with_a_thought(self, make_trainer, vivid, rows, visit):
        examples = visit(rows, [0, 6, 7, 12])  # the last has none
        options = {"use_rationales": True, "num_length_chunks": 1, "gate_cost": 0.2}
        plain, out = training_loss(make_trainer, vivid, rows, examples, **options)
        whole, _ = training_loss(make_trainer, vivid, rows, examples, gate_weight=3.0, **options)
        query, targets = out["query"], out["target"].embeddings[[0, 1, 2, 0], 0]
        vectors = torch.where(query.path_mask[..., None], query.embeddings, query.embeddings[:, :1])
        same = {(0, 3), (3, 0)}  # "red" is the target of both
        gains = [_probabilities(vectors[:, path], targets, same) for path in (0, 1)]
        net = (gains[1] - gains[0] - 0.2)[:3]
        logits = query.gate_logits[:3, 0]
        losses = torch.where(net > 0, (-logits).exp().log1p(), logits.exp().log1p())
        expected = 3 * (losses * net.abs()).sum() / net.abs().sum()
        assert (whole - plain).item() == pytest.approx(expected.item(), rel=1e-3)

    @pytest.mark.parametrize("name", ["direct_direct_weight", "reasoned_direct_weight"])
    def test_a_term_without_weight_is_told_but_does_not_count(self, make_trainer, model, rows, name):
        table = rows.select(range(6))  # thoughts on the query side alone
        trainer = make_trainer(model, table, max_steps=1, rationale_weight=0.0, **{name: 0.0})
        trainer.train()
        (log,) = [log for log in trainer.state.log_history if "loss" in log]
        counted, told = ("nce_10", "nce_00") if name == "direct_direct_weight" else ("nce_00", "nce_10")
        assert log["loss"] == pytest.approx(log[counted], rel=1e-5) and log[told] > 0
        assert "accuracy_gap" in log

    def test_weights_by_posterior_count_in_the_rationales_alone(self, make_trainer, model, rows, visit):
        examples = visit(rows, [0, 1])
        examples[1]["query_weight"] = 0.25
        contrast, _ = training_loss(make_trainer, model, rows, examples, rationale_weight=0.0)
        whole, _ = training_loss(make_trainer, model, rows, examples)
        trainer = make_trainer(model, rows, **WHOLE, num_length_chunks=1)
        (chunk,) = trainer.data_collator(examples)["query"]["chunks"]
        with torch.no_grad():
            logps = model(**chunk["features"]).rationale_logps
        weights = torch.tensor([1.0, 0.25])[chunk["token_rows"]]
        assert (whole - contrast).item() == pytest.approx((-(weights * logps).sum() / weights.sum()).item(), rel=1e-4)


class TestTraining:
    def test_a_step_moves_every_parameter_but_the_gate(self, make_trainer, model, rows):
        before = copy.deepcopy(model.state_dict())
        trainer = make_trainer(model, rows, weight_decay=0.1)
        trainer.train()
        assert set(before) - moved(model, before) == GATE
        held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
        assert not held & {id(parameter) for parameter in model.gate.parameters()}
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_on_request_the_gate_moves_and_nothing_else_moves_differently(self, make_trainer, vivid, rows):
        def trained(**changes):
            model = copy.deepcopy(vivid)
            # not clipped: the gate's gradient would count in the norm
            trainer = make_trainer(model, rows, max_grad_norm=0.0, temperature=0.1, **changes)
            trainer.train()
            return model.state_dict(), trainer

        (still, _), (moving, trainer) = trained(), trained(gate_weight=1.0)
        assert {name for name in still if not torch.equal(still[name], moving[name])} == GATE
        assert len(logged(trainer, "gate")) == 4

    @pytest.mark.slow
    def test_the_losses_fall(self, make_trainer, model, rows):
        trainer = make_trainer(model, rows, max_steps=60, temperature=0.1)
        trainer.train()
        for name in ("nce_10", "rationale_query"):
            losses = logged(trainer, name)
            assert sum(losses[-5:]) < 0.7 * sum(losses[:5])

    def test_what_is_logged(self, make_trainer, model, rows):
        trainer = make_trainer(model, rows, max_steps=12)
        trainer.train()
        wanted = {
            *("nce_00", "nce_10", "nce_01", "nce_11", "rationale_query", "rationale_target", "negatives", "masked"),
            *("accuracy_direct", "accuracy_reasoned", "accuracy_gap", "utility_gap", "pays"),
            *("gate_prob", "gate_thinks", "gate_right", "tokens_per_second"),
        }
        names = set().union(*trainer.state.log_history)
        assert wanted <= names and "gate" not in names
        assert all(value > 0 for value in logged(trainer, "tokens_per_second"))
        for log in trainer.state.log_history[:-1]:
            weights = {"nce_01": 0.5, "nce_11": 0.5}
            parts = sum(
                weights.get(name, 1.0) * value for name, value in log.items() if name.startswith(("nce", "rat"))
            )
            assert log["loss"] == pytest.approx(parts, rel=1e-4)

    def test_a_log_is_the_mean_since_the_last(self, make_trainer, tiny, rows):
        one, two = (make_trainer(copy.deepcopy(tiny[0]), rows, logging_steps=steps) for steps in (1, 2))
        one.train()
        two.train()
        each = logged(one, "nce_00")
        assert logged(two, "nce_00") == pytest.approx([sum(each[:2]) / 2, sum(each[2:]) / 2], rel=1e-6)

    def test_without_rationales_only_the_direct_path_is_trained(self, make_trainer, model, rows):
        trainer = make_trainer(model, rows, use_rationales=False)
        trainer.train()
        names = set().union(*trainer.state.log_history)
        assert "nce_00" in names and not names & {"nce_10", "nce_01", "nce_11", "rationale_query"}

    def test_two_accumulated_batches_give_the_gradient_of_one(self, make_trainer, tiny, rows):
        def gradient(steps):
            model = copy.deepcopy(tiny[0])
            # one task of six rows: every batch holds all of them
            options = {"sub_batch_size": 6, "max_steps": 1, "learning_rate": 0.0, "max_grad_norm": 0.0}
            trainer = make_trainer(model, rows.select(range(6)), gradient_accumulation_steps=steps, **options)
            gradients = []
            trainer.create_optimizer()
            trainer.optimizer.register_step_pre_hook(
                lambda *_: gradients.append(model.vlm.get_input_embeddings().weight.grad.clone())
            )
            trainer.train()
            return gradients[0]

        once, twice = gradient(1), gradient(2)
        assert once.abs().max() > 1e-3
        assert torch.allclose(once, twice, atol=1e-4 * once.abs().max().item())

    def test_a_frozen_vision_tower_stays_as_it_is(self, make_trainer, model, rows):
        before = copy.deepcopy(model.state_dict())
        make_trainer(model, rows, freeze_vision_tower=True, max_steps=2).train()
        tower = {name for name in before if ".visual." in name}
        assert tower and set(before) - moved(model, before) == tower | GATE

    def test_the_seed_of_the_data_is_its_own(self, make_trainer, tiny, rows):
        def first(**seeds):
            trainer = make_trainer(copy.deepcopy(tiny[0]), rows, **seeds)
            return next(iter(trainer.get_train_dataloader()))["query"]["names"]

        assert first(seed=1, data_seed=5) == first(seed=2, data_seed=5) == first(seed=5) != first(seed=5, data_seed=6)


class TestWhatIsSeen:
    def test_epochs_see_the_pairs_in_different_orders(self, make_trainer, model, rows):
        trainer = make_trainer(model, rows, max_steps=-1, num_train_epochs=2)
        seen, collate = [], trainer.data_collator
        trainer.data_collator = lambda batch: seen.append([e["pair_id"] for e in batch]) or collate(batch)
        trainer.train()
        assert len(seen) == 6 and seen[:3] != seen[3:]

    @pytest.mark.parametrize("options", [{}, {"separate_equal_pairs": True}])
    def test_an_epoch_has_every_pair_once(self, make_trainer, model, rows, options):
        trainer = make_trainer(
            model,
            rows,
            eval_dataset=rows.remove_columns("pair_id"),
            **{"max_steps": -1, "per_device_train_batch_size": 8, "sub_batch_size": 4, **options},
        )
        loaders = {"train": trainer.get_train_dataloader(), "eval": trainer.get_eval_dataloader()}
        for loader in loaders.values():
            drawn = [visit.row for batch in loader.batch_sampler for visit in batch]
            assert sorted(drawn) == list(range(18)) and len(loader) == 3
        sizes = [len(batch["query"]["index"]) for batch in loaders["train"]]
        assert sizes == [8, 5, 5]

    def test_pairs_with_an_equal_side_are_kept_apart(self, make_trainer, model, make_pairs):
        """Which are equal is seen by their content: pictures that differ in their file alone."""
        pairs = [{"query": {"text": f"{row}"}, "target": {"text": f"say {row % 3}"}, "task": "a"} for row in range(9)]

        def met(**options):
            options |= {"max_steps": -1, "per_device_train_batch_size": 3, "sub_batch_size": 3}
            loader = make_trainer(model, make_pairs(pairs), **options).get_train_dataloader()
            return sum(3 - len(set(batch["target"]["keys"].tolist())) for batch in loader)

        assert met(separate_equal_pairs=True) == 0 < met()

    def test_small_tasks_come_more_often_with_an_exponent(self, make_trainer, model, rows):
        table = rows.select([*range(6), *range(12, 18), 6])
        trainer = make_trainer(model, table, task_size_exponent=0.0, max_steps=300)
        drawn = [visit.row for batch in trainer.get_train_dataloader().batch_sampler for visit in batch]
        assert drawn.count(12) / len(drawn) == pytest.approx(1 / 3, abs=0.05)

    def test_no_column_of_a_table_is_read_row_by_row(self, make_trainer, model, rows, monkeypatch):
        """It took a minute for each million rows, some times over, before the first step."""

        def read(column):
            raise AssertionError("a column is looped over")

        monkeypatch.setattr("datasets.arrow_dataset.Column.__iter__", read)
        selected = Dataset.from_dict({"pair_id": ["pair 0"], "side": ["query"], "text": ["It is red."]})
        other = rows.select([5]).map(lambda row: {**row, "pair_id": "elsewhere"})
        trainer = make_trainer(model, rows, eval_dataset=other, rationales=selected, separate_equal_pairs=True)
        assert len(next(iter(trainer.get_train_dataloader()))["query"]["index"]) == 6
        assert trainer.facts["tasks"] == "name 6, plain 6, show 6"
        with pytest.raises(AssertionError, match="looped over"):
            set(rows["task"])

    def test_steps_have_precedence_over_epochs(self, make_trainer, model, rows):
        trainer = make_trainer(model, rows, max_steps=5, num_train_epochs=1)
        trainer.train()
        assert trainer.state.global_step == 5 and len(logged(trainer)) == 5
        # all in one epoch, whose positions tell its visits apart
        assert len(make_trainer(model, rows, gradient_accumulation_steps=3).get_train_dataloader()) == 3 * 4

    def test_each_visit_draws_a_rationale(self, make_trainer, model, rows):
        selected = Dataset.from_dict(
            {"pair_id": ["pair 0"] * 2, "side": ["query"] * 2, "text": ["one way", "another"]}
        )
        options = {"task_weights": {"name": 1}, "sub_batch_size": 6, "max_steps": 8}
        trainer = make_trainer(model, rows, rationales=selected, **options)
        seen, collate = [], trainer.data_collator
        trainer.data_collator = lambda batch: seen.extend(batch) or collate(batch)
        trainer.train()
        said = [(example["pair_id"], *example["query_rationale"]) for example in seen]
        assert len(said) == 48
        assert {place for place in said if len(place) > 1} == {("pair 0", "one way"), ("pair 0", "another")}

    def test_the_best_rationale_may_be_the_only_one(self, make_trainer, model, rows):
        selected = Dataset.from_dict(
            {"pair_id": ["pair 0"] * 2, "side": ["query"] * 2, "text": ["rare", "best"], "posterior": [0.4, 0.6]}
        )
        trainer = make_trainer(model, rows, rationales=selected, best_rationale_only=True, task_weights={"name": 1})
        batches = trainer.get_train_dataloader()
        examples = [batches.dataset[drawn] for batch in batches.batch_sampler for drawn in batch]
        assert {one["query_rationale"][0] for one in examples if one["query_rationale"]} == {"best"}
        with pytest.raises(
            ValueError, match="best_rationale_only chooses among selected rationales, and there are no"
        ):
            make_trainer(model, rows, best_rationale_only=True)

    def test_workers_make_the_same_batches(self, make_trainer, tiny, rows):
        def losses(workers):
            options = {"dataloader_num_workers": workers, "augment": augment, "max_steps": 2}
            trainer = make_trainer(copy.deepcopy(tiny[0]), rows, **options)
            trainer.train()
            return logged(trainer)

        assert losses(2) == losses(0)


class TestEvaluation:
    @pytest.fixture
    def tables(self, rows):
        return rows.select(range(0, 18, 2)), rows.select(range(1, 18, 2))

    def test_its_terms_are_logged_beside_its_loss(self, make_trainer, model, tables):
        train, other = tables
        trainer = make_trainer(model, train, eval_dataset=other, eval_strategy="steps", eval_steps=2)
        trainer.train()
        found = [log for log in trainer.state.log_history if "eval_loss" in log]
        assert len(found) == 2
        names = {"eval_nce_00", "eval_rationale_query", "eval_accuracy_direct", "eval_negatives", "eval_gate_prob"}
        assert names <= set(found[0]) and not any(name.startswith("nce") for name in found[0])
        assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
        assert names <= trainer.evaluate().keys()  # `metric_for_best_model` is looked for there

    def test_training_is_the_same_with_it_and_without(self, make_trainer, tiny, tables):
        train, other = tables

        def losses(**options):
            model = copy.deepcopy(tiny[0])
            for module in model.modules():
                if hasattr(module, "attention_dropout"):
                    module.attention_dropout = 0.2
            trainer = make_trainer(model, train, **options)
            trainer.train()
            return logged(trainer), logged(trainer, "nce_00")

        assert losses() == losses(eval_dataset=other, eval_strategy="steps", eval_steps=1)

    def test_its_pictures_are_not_augmented(self, make_trainer, model, tables):
        def loss(**options):
            return make_trainer(model, tables[0], eval_dataset=tables[1], **options).evaluate()["eval_loss"]

        assert loss(augment=lambda picture, rng: picture.point(lambda value: 255 - value)) == loss()

    def test_of_another_table_or_of_none_it_is_refused(self, make_trainer, model, tables):
        trainer = make_trainer(model, tables[0], eval_dataset=tables[1])
        with pytest.raises(
            ValueError, match="evaluates on the eval_dataset that it was made with; leave the argument o"
        ):
            trainer.evaluate(tables[0])
        with pytest.raises(ValueError, match="nothing to evaluate on: JointTrainer was made without an eval_dataset"):
            make_trainer(model, tables[0]).evaluate()


class TestWhatIsNotFinite:
    @pytest.mark.parametrize(
        ("mini_batch_size", "use_rationales", "what"),
        [(None, False, "the embedding"), (None, True, "the loss on rationale tokens"), (4, True, "the embedding")],
    )
    def test_a_picture_is_blamed_on_its_pair(
        self, make_trainer, model, rows, visit, mini_batch_size, use_rationales, what
    ):
        options = {"mini_batch_size": mini_batch_size, "use_rationales": use_rationales, "num_length_chunks": 1}
        trainer = make_trainer(model, rows, **options)
        batch = trainer.data_collator(visit(rows, [0, 1, 2, 12]))  # three pictures and a text
        pixels = batch["query"]["chunks"][0]["features"]["pixel_values"]
        pictures = [row for row in batch["query"]["order"].argsort().tolist() if row < 3]
        place = pictures.index(1)
        pixels[place * len(pixels) // 3 : (place + 1) * len(pixels) // 3] = float("nan")
        message = f"after 0 steps {what} is not finite for the query of pair 'pair 1'. Look at these rows"
        with pytest.raises(FloatingPointError, match=message):
            trainer.training_step(model, batch)

    @pytest.mark.parametrize("mini_batch_size", [None, 2])
    def test_a_rationale_is_blamed_on_its_pair(self, make_trainer, model, rows, visit, mini_batch_size):
        trainer = make_trainer(model, rows, mini_batch_size=mini_batch_size)
        _poison(model.get_output_embeddings(), trainer, "green")
        batch = trainer.data_collator(visit(rows, [6, 7, 8]))
        message = "the loss on rationale tokens is not finite for the query of pair 'pair 7'. Look"
        with pytest.raises(FloatingPointError, match=message):
            trainer.training_step(model, batch)

    def test_a_term_is_blamed_on_its_rows(self, make_trainer, model, rows, visit, monkeypatch):
        from mmemb_r1.training.joint import forward as joint_loss

        def broken(*args):
            terms = path_terms(*args)
            for term in terms.at.values():
                term.target_to_query[1] = float("inf")
            return terms

        path_terms = joint_loss.path_terms
        monkeypatch.setattr(joint_loss, "path_terms", broken)
        trainer = make_trainer(model, rows, use_rationales=False)
        message = "term nce_00 at 32 dimensions is not finite for the query of pair 'pair 13'. Look"
        with pytest.raises(FloatingPointError, match=message):
            trainer.training_step(model, trainer.data_collator(visit(rows, [12, 13, 14])))

    def test_the_gate_is_blamed_on_its_queries(self, make_trainer, vivid, rows, visit):
        trainer = make_trainer(vivid, rows, gate_weight=1.0)
        vivid.gate.register_forward_hook(lambda *args: torch.full_like(args[-1], float("nan")))
        message = "the gate's loss is not finite for the query of pair 'pair 6', the query of pair 'pair 7'. Look"
        with pytest.raises(FloatingPointError, match=message):
            trainer.training_step(vivid, trainer.data_collator(visit(rows, [6, 7])))

    def test_training_stops_at_it(self, make_trainer, model, rows):
        with torch.no_grad():
            model.vlm.get_input_embeddings().weight.fill_(float("nan"))
        trainer = make_trainer(model, rows)
        with pytest.raises(FloatingPointError, match="after 0 steps"):
            trainer.train()
        assert trainer.state.global_step == 0


def test_options_of_the_data_loader_are_passed_on(make_trainer, model, rows):
    options = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 3, "dataloader_persistent_workers": False}
    loader = make_trainer(model, rows, **options).get_train_dataloader()
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (2, 3, False)
    assert make_trainer(model, rows, dataloader_num_workers=1).get_train_dataloader().persistent_workers


@pytest.mark.parametrize("largest", [128, 256])
def test_a_budget_that_the_model_does_not_have_is_told(make_trainer, model, rows, largest, caplog):
    make_trainer(model, rows, max_rationale_tokens=largest)
    assert ("the model writes at most 128" in caplog.text) is (largest > model.config.max_reasoning_tokens)


class TestSharded:
    def launched(self, model, table, processor, on_cpu, tmp_path, eval_dataset=None, **plugins):
        """A trainer where `accelerate launch` has set these plugins."""

        class Launched(JointTrainer):
            def create_accelerator_and_postprocess(self):
                super().create_accelerator_and_postprocess()
                self.is_deepspeed_enabled, self.is_fsdp_enabled = (
                    "deepspeed_plugin" in plugins,
                    "fsdp_plugin" in plugins,
                )
                vars(self.accelerator.state).update(plugins)

        try:
            args = JointConfig(**on_cpu, output_dir=str(tmp_path), per_device_train_batch_size=3, sub_batch_size=3)
            return Launched(model, args, table, processor, eval_dataset)
        finally:
            for name in plugins:
                vars(AcceleratorState()).pop(name, None)

    def test_deepspeed_is_refused(self, model, rows, processor, on_cpu, tmp_path):
        """It made as many optimiser steps of a batch as the batch had chunks."""
        with pytest.raises(ValueError, match="DeepSpeed takes an optimiser step with every backward pass"):
            self.launched(model, rows, processor, on_cpu, tmp_path, deepspeed_plugin=object())

    def test_retrieval_is_not_measured_with_sharded_weights(self, model, rows, processor, on_cpu, tmp_path):
        args = {**on_cpu, "eval_retrieval": ["never"]}
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
        with pytest.raises(ValueError, match="Retrieval can't be measured while FSDP shards the weights"):
            self.launched(
                model, rows, processor, args, tmp_path, fsdp_plugin=plugin, eval_dataset=rows.remove_columns("pair_id")
            )

    def test_fsdp2_is_told_to_return_float32(self, model, rows, processor, on_cpu, tmp_path):
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
        plugin.set_mixed_precision("bf16", override=True)
        self.launched(model, rows, processor, on_cpu, tmp_path, fsdp_plugin=plugin)
        assert plugin.mixed_precision_policy.output_dtype is None


def _poison(head, trainer, word):
    """Make the scores from which a word is predicted infinitely low."""
    (token, *_) = trainer.processing_class.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    forward = head.forward
    head.forward = lambda states: forward(states).index_fill(1, torch.tensor([token]), float("-inf"))
