from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from mmemb_r1.training.joint import forward
from mmemb_r1.training.joint.collator import IGNORED
from mmemb_r1.training.joint.forward import RandomState, Vectors, encode, in_order

EVERYTHING = {
    "temperature": 0.1,
    "per_device_train_batch_size": 8,
    "sub_batch_size": 8,
    "max_reasoning_rounds": 2,
    "num_hard_negatives": 2,
    "matryoshka_dims": [8],
    "gate_weight": 0.7,
    "gate_cost": 0.0,
    "rationale_weight": 0.5,
    "score_mask_margin": 0.3,
    "similarity_chunk_size": 3,
}


def with_dropout(model, share=0.2):
    layers = [module for module in model.modules() if hasattr(module, "attention_dropout")]
    assert layers
    for layer in layers:
        layer.attention_dropout = share
    return model


def step(make_trainer, model, table, examples, seed=None, **arguments):
    """Loss and gradients of one step over some examples."""
    trainer = make_trainer(model, table, **{**EVERYTHING, **arguments})
    if seed is not None:
        torch.manual_seed(seed)
    loss = trainer.training_step(model, trainer.data_collator(examples))
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss, gradients


def assert_same(ours, theirs, tolerance):
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=tolerance)
    assert ours[1].keys() == theirs[1].keys() and len(ours[1]) > 40
    for name, gradient in theirs[1].items():
        largest = gradient.abs().max().item()
        torch.testing.assert_close(ours[1][name], gradient, rtol=tolerance, atol=tolerance * largest)
        assert largest > 0, name


@pytest.fixture
def examples(visit, mixed):
    return visit(mixed, num_hard_negatives=2)


class TestGradientCaching:
    @pytest.mark.parametrize("mini_batch_size", [1, 3, 100])
    def test_loss_and_gradients_are_the_uncached_ones(self, make_trainer, vivid, mixed, examples, mini_batch_size):
        vivid.double()
        plain = step(make_trainer, copy.deepcopy(vivid), mixed, examples)
        cached = step(make_trainer, vivid, mixed, examples, mini_batch_size=mini_batch_size)
        assert {"gate.output.weight", "gate.output.bias"} <= set(plain[1])
        assert_same(cached, plain, 1e-5)

    @pytest.mark.parametrize("mini_batch_tokens", [1, 90, 400])
    def test_a_budget_of_tokens_changes_neither(self, make_trainer, vivid, mixed, examples, mini_batch_tokens):
        """However a batch is parted, it is the whole batch's loss."""
        vivid.double()
        passes = []
        plain = step(make_trainer, copy.deepcopy(vivid), mixed, examples)
        vivid.register_forward_hook(lambda module, args, output: passes.append(len(output.embeddings)))
        parted = step(make_trainer, vivid, mixed, examples, mini_batch_tokens=mini_batch_tokens)
        assert_same(parted, plain, 1e-6)
        assert len(set(passes)) > 1 or mini_batch_tokens == 1  # chunks have the tokens in common, not the inputs

    def test_dropout_is_the_same_in_both_passes(self, make_trainer, vivid, mixed, examples):
        with_dropout(vivid.double())

        def run(seed, **arguments):
            return step(make_trainer, copy.deepcopy(vivid), mixed, examples, seed, rationale_weight=0.0, **arguments)

        # seven different queries and nine targets and negatives: both ways make two chunks of each side
        plain = run(1, num_length_chunks=2)
        assert_same(run(1, mini_batch_size=6), plain, 1e-5)
        assert run(2, num_length_chunks=2)[0].item() != pytest.approx(plain[0].item(), rel=1e-3)

    def test_dropout_of_the_rationale_tokens_is_that_of_the_vectors(self, make_trainer, vivid, mixed, examples):
        with_dropout(vivid)
        trainer = make_trainer(vivid, mixed, mini_batch_size=3, **EVERYTHING)
        seen = []
        vivid.register_forward_hook(lambda module, args, output: seen.append(output.embeddings.detach().clone()))
        before = torch.get_rng_state()
        trainer.training_step(vivid, trainer.data_collator(examples))
        assert len(seen) == 2 * 7
        for first, second in zip(seen[:7], seen[7:], strict=True):
            assert torch.equal(first, second)
        assert not torch.equal(torch.get_rng_state(), before)  # the next step has another

    @pytest.mark.parametrize("mini_batch_size", [None, 3])
    def test_accumulated_steps_have_the_mean_gradient(self, make_trainer, vivid, mixed, examples, mini_batch_size):
        vivid.double()
        options = {"mini_batch_size": mini_batch_size, "gate_weight": 0.0}
        parts = [step(make_trainer, copy.deepcopy(vivid), mixed, part, **options) for part in _halves(examples)]
        trainer = make_trainer(vivid, mixed, gradient_accumulation_steps=2, **{**EVERYTHING, **options})
        losses = [trainer.training_step(vivid, trainer.data_collator(part)) for part in _halves(examples)]
        gradients = {
            name: parameter.grad for name, parameter in vivid.named_parameters() if parameter.grad is not None
        }
        zeros = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
        mean = {name: sum((part[1] | zeros | part[1])[name] for part in parts) / 2 for name in gradients}
        assert_same((sum(losses), gradients), (sum(part[0] for part in parts) / 2, mean), 1e-5)

    @pytest.mark.parametrize("options", [{"mini_batch_tokens": 1}, {"num_length_chunks": 6}])
    def test_idle_chunks_change_neither_loss_nor_gradient(
        self, make_trainer, vivid, rows, visit, options, monkeypatch
    ):
        """Where weights are sharded, every process makes as many passes as the one with the most chunks."""
        vivid.double()
        examples = visit(rows, [6, 6, 6, 6, 7, 7])  # two of each side are left

        def run(others):
            model = copy.deepcopy(vivid)
            trainer = make_trainer(model, rows, temperature=0.1, gate_weight=1.0, **options)
            batch = trainer.data_collator(examples)
            trainer.is_fsdp_enabled = True
            monkeypatch.setattr(forward, "greatest", lambda own: own + others)
            loss = trainer.training_step(model, batch)
            gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
            return len(batch["query"]["chunks"]), loss, gradients

        (few, *plain), (many, *idle) = run(0), run(3)
        assert (few, many) == (2, 5)
        assert_same(idle, plain, 1e-5)

    def test_it_is_a_part_of_training(self, make_trainer, vivid, mixed):
        """The same through `train`, with clipping and the optimiser."""

        def weights(**arguments):
            model = copy.deepcopy(vivid).double()
            arguments = {**EVERYTHING, "learning_rate": 1e-3, "max_steps": 2, **arguments}
            trainer = make_trainer(model, mixed, gradient_accumulation_steps=2, optim="sgd", **arguments)
            trainer.train()
            losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
            return losses, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

        plain, cached = weights(), weights(mini_batch_size=3)
        assert cached[0] == pytest.approx(plain[0], rel=1e-4)
        torch.testing.assert_close(cached[1], plain[1], rtol=1e-5, atol=1e-7)

    def test_the_vocabulary_is_left_alone_in_the_first_pass(self, make_trainer, vivid, mixed, examples):
        trainer = make_trainer(vivid, mixed, mini_batch_size=3, **EVERYTHING)
        seen = []
        vivid.get_output_embeddings().register_forward_hook(
            lambda module, args, output: seen.append((len(output[0]), output[0].requires_grad))
        )
        batch = trainer.data_collator(examples)
        trainer.training_step(vivid, batch)
        chunks = [chunk for side in batch.values() for chunk in side["chunks"]]
        number = [len(chunk["token_weights"]) for chunk in chunks]
        assert seen == [(0, False)] * len(chunks) + [(count, True) for count in number]


def _halves(examples):
    return examples[:4], examples[4:]


class TestEncode:
    def test_vectors_and_tokens_are_the_models(self, make_trainer, vivid, mixed, examples):
        collator = make_trainer(vivid, mixed, **EVERYTHING).data_collator
        (chunk, *_) = collator(examples)["query"]["chunks"]
        with torch.no_grad():
            vectors, logps = encode(vivid, chunk)
            output = vivid(**chunk["features"])
            hidden = vivid(**chunk["features"]).last_hidden_state[:, :-1]
        labels = chunk["features"]["labels"][:, 1:]
        wanted = labels != IGNORED
        scores = functional.log_softmax(vivid.get_output_embeddings()(hidden[wanted]), dim=-1)
        assert torch.equal(vectors.embeddings, output.embeddings) and torch.equal(vectors.path_mask, output.path_mask)
        assert torch.equal(vectors.gate_logits, output.gate_logits)
        torch.testing.assert_close(logps, scores.gather(1, labels[wanted][:, None]).squeeze(1))

    def test_on_request_no_tokens_are_scored_and_the_batch_stays_as_it_is(self, make_trainer, vivid, mixed, examples):
        collator = make_trainer(vivid, mixed, **EVERYTHING).data_collator
        chunk = collator(examples)["query"]["chunks"][-1]
        before = chunk["features"]["labels"].clone()
        vectors, logps = encode(vivid, chunk, with_tokens=False)
        assert len(logps) == 0 < len(chunk["token_weights"])
        assert torch.equal(chunk["features"]["labels"], before)
        torch.testing.assert_close(vectors.embeddings, encode(vivid, chunk)[0].embeddings)


def test_chunks_are_put_together_in_order():
    parts = [
        Vectors(torch.full((2, 1, 3), 1.0), torch.ones(2, 1, dtype=torch.bool), torch.tensor([[10.0], [11.0]])),
        Vectors(
            torch.full((1, 2, 3), 2.0),
            torch.ones(1, 2, dtype=torch.bool),
            torch.tensor([[20.0, 21.0]]).requires_grad_(),
        ),
    ]
    whole = in_order({"order": torch.tensor([2, 0, 1])}, parts)
    assert whole.gate_logits.tolist() == [[20.0, 21.0], [10.0, 0.0], [11.0, 0.0]]
    assert whole.path_mask.tolist() == [[True, True], [True, False], [True, False]]
    assert whole.embeddings[..., 0].tolist() == [[2.0, 2.0], [1.0, 0.0], [1.0, 0.0]]
    assert whole.embeddings.shape == (3, 2, 3) and whole.gate_logits.requires_grad


def test_what_an_idle_chunk_gives_is_left_out():
    idle = Vectors(torch.full((1, 1, 3), 9.0), torch.ones(1, 1, dtype=torch.bool), torch.full((1, 1), 9.0))
    own = Vectors(torch.zeros(2, 1, 3), torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1))
    assert in_order({"order": torch.tensor([1, 0])}, [own, idle]).embeddings.tolist() == [[[0.0] * 3]] * 2


def test_a_random_state_is_restored_for_a_while():
    device = torch.device("cpu")
    state = RandomState.now(device)
    first = torch.rand(3)
    between = torch.get_rng_state()
    with state.restored(device):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), between)
