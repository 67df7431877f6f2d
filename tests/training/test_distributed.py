"""Two processes have to give what one gives of the same global batch: losses, gradients, and the weights after them.

This file is also what `torchrun` starts.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets
from PIL import Image as Pictures
from tests.sharded_on_cpu import allow, fsdp2
from torch import Tensor, nn
from transformers import TrainerCallback

from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.training.distributed import (
    average_gradients,
    gather_rows,
    keep_float32,
    num_processes,
    pad_to,
    reduce_alike,
    summed,
)

ROOT = Path(__file__).resolve().parents[2]
PATHS = os.environ.get("PYTHONPATH", "").split(os.pathsep)
COLORS = ("red", "green", "blue", "white", "black", "gray")
GLOBAL_BATCH, STEPS, LEARNING_RATE = 8, 2, 0.02
TOLERANCE = 1e-5
HALF_ERROR = 0.06  # 0.039 was measured; 0.050 with embeddings and sums of gradients in bfloat16 too
ADAPTIVE: dict[str, dict[str, Any]] = {
    "adaptive": {"beta": 0.1},
    "adaptive with adapters": {"lora": True, "beta": 0.1},
    "adaptive with videos": {"videos": True, "beta": 0.1},
    "adaptive and anchored": {"lora": True, "direct_anchor": 0.9},
}
SEED = 3  # of the order: one process has no picture where the other has some, and one has rows with none, one and two
# Everything that processes have to agree on, at once.
COMMON: dict[str, Any] = {
    "num_hard_negatives": 1,
    "score_mask_margin": 0.01,
    "gate_weight": 0.5,
    "matryoshka_dims": [16],
    "max_reasoning_rounds": 2,
    "similarity_chunk_size": 3,
    "temperature": 0.1,
    "optim": "sgd",
}
BASE: dict[str, Any] = {
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cached": {"mini_batch_size": 3},
    "accumulated": {"gradient_accumulation_steps": 2},
    "cached and accumulated": {"gradient_accumulation_steps": 2, "mini_batch_size": 3},
    "an epoch": {"max_steps": -1, "num_train_epochs": 1, "mini_batch_tokens": 120},  # its last batches are odd
    "equal rows": {"task_weights": {"told": 1.0}},  # six of them: some occur twice in a batch of eight
    "anchored": {"lora": True, "direct_anchor": 0.9},
    "anchored and cached": {"lora": True, "direct_anchor": 0.9, "mini_batch_size": 3},
}
SHARDED: dict[str, dict[str, Any]] = {
    "sharded": {},
    "sharded and cached": {"mini_batch_size": 3},
    "sharded and accumulated": {"gradient_accumulation_steps": 2, "mini_batch_size": 3},
}
# The loss as it is by default: in float32 its gradients agree to a millionth; then they are computed in bfloat16.
DEFAULT: dict[str, Any] = {
    "num_hard_negatives": 0,
    "score_mask_margin": None,
    "gate_weight": 0.0,
    "matryoshka_dims": None,
    "max_reasoning_rounds": 1,
    "temperature": 0.02,
    "mini_batch_size": 3,
    "task_weights": {"seen": 1.0, "told": 1.0, "bare": 1.0},  # the batches of which HALF_ERROR was measured
    "max_grad_norm": 0.0,
    "learning_rate": 0.0,
}
HALF = {**DEFAULT, "bf16": True}  # computed in bfloat16, embeddings and loss in float32


def pairs() -> Dataset:
    """
    Of three tasks: pictures with rationales in two segments, text with rationales on both sides, and text without any.

    Sub-batches are of one task each, and each process gets one: sooner or later one of them sees no picture, or no
    rationale, which the other does.
    """
    rows = []
    for place, color in enumerate(COLORS):
        others = [{"text": other} for other in COLORS if other != color]
        seen = {"text": "color?", "image": [Pictures.new("RGB", (64, 64), color)]}
        thought = [f"It is {color}.", f"So say {color}."]
        rows.append(("seen", seen, {"text": color}, thought, [], others))
        told = {"text": f"say {color}"}, {"text": f"It is {color}."}
        rows.append(("told", *told, thought[:1], thought[1:] if place % 2 else [], others[:1]))
        rows.append(("bare", {"text": f"{color} {color}"}, {"text": color}, [], [], others[1:2]))
    given = {"text": Value("string"), "image": List(Image())}
    columns = ("task", "query", "target", "query_rationale", "target_rationale", "negatives")
    features = {"task": Value("string"), "query": given, "target": given, "negatives": List(given)}
    segments = List(Value("string"))
    return Dataset.from_list(
        [{"pair_id": str(row), **dict(zip(columns, values, strict=True))} for row, values in enumerate(rows)],
        Features({"pair_id": Value("string"), **features, "query_rationale": segments, "target_rationale": segments}),
    )


def fresh_model() -> tuple[Any, Any]:
    from mmemb_r1 import MMEmbR1Model
    from mmemb_r1.tiny import build_tiny_vlm

    texts = ["It is red. color? say blue white black So green gray"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = MMEmbR1Model.from_vlm(*build_tiny_vlm("qwen3_vl", texts=texts))
    model.logits_at_once = 3  # tokens: processes have different numbers of chunks
    return model, processor


MOVED = 0.02


class Move(TrainerCallback):
    """Lets trained weights be far from the first ones when training begins."""

    @torch.no_grad()
    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        draws = torch.Generator().manual_seed(0)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(MOVED * torch.randn(weight.shape, generator=draws))


def held_out() -> Dataset:
    """Pairs to measure on, an odd number of inputs for each of two processes."""
    rows = pairs().select(range(5))
    return rows.remove_columns("pair_id").add_column("pair_id", [f"held out {row}" for row in range(5)])


def train_until_refused(trainer: Any) -> float | None:
    """Train; return the least cosine of direct embeddings that the trainer refuses in the end, if it does."""
    try:
        trainer.train()
    except ValueError as error:
        return float(re.search(r"held out \d', is (\S+) \(10 queries and targets", str(error))[1])
    return None


def made_trainer(folder: Path, callbacks: Any = None, lora: bool = False, **fields: Any) -> Any:
    from mmemb_r1.training import JointConfig, JointTrainer
    from mmemb_r1.training.adapters import lora_config

    model, processor = fresh_model()
    args = JointConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": GLOBAL_BATCH // num_processes(),
            "sub_batch_size": GLOBAL_BATCH // 2,
            "max_steps": STEPS,
            **BASE,
            **COMMON,
            **fields,
        }
    )
    adapted = {"peft_config": lora_config(model, r=4), "eval_dataset": held_out()} if lora else {}
    callbacks = [*(callbacks or []), *([Move()] if lora else [])]
    return JointTrainer(model.train(), args, pairs(), processor, callbacks=callbacks, **adapted)


def whole(tensor: Any) -> Tensor:
    """A tensor that may be sharded; all processes have to ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Whole gradients, also of weights that are sharded."""
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {name: whole(grad).clone() for name, grad in found.items()}


def held(batch: Any) -> dict[str, bool]:
    """What there is in a batch, of this process."""
    chunks = [chunk for side in batch.values() for chunk in side["chunks"]]
    return {
        "pictures": any("pixel_values" in chunk["features"] for chunk in chunks),
        "rationales": any(len(chunk["token_weights"]) for chunk in chunks),
    }


def trained(folder: Path, **fields: Any) -> dict[str, Any]:
    """What a few steps come to: the logs, the gradients of each step, the weights after all, and what batches held."""
    gradients, batches = [], []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            gradients.append(gradients_of(model))

    trainer = made_trainer(folder, [Watch()], **fields)
    step = trainer.training_step

    def watched(model: nn.Module, batch: Any, *more: Any) -> Tensor:
        batches.append(held(batch))
        return step(model, batch, *more)

    trainer.training_step = watched
    refused = train_until_refused(trainer)
    logs = [
        {name: value for name, value in log.items() if not name.endswith(("_second", "_runtime"))}
        for log in trainer.state.log_history
    ]
    weights = {name: whole(weight.detach()).clone() for name, weight in trainer.model.named_parameters()}
    return {"logs": logs, "gradients": gradients, "weights": weights, "held": batches, "refused": refused}


def sharded(folder: Path, **fields: Any) -> dict[str, Any]:
    """The same of a model that FSDP2 shards, as accelerate does it, if there are several processes."""
    with fsdp2():
        return trained(folder, **fields)


def policy_pairs() -> Dataset:
    """The same, and queries with two pictures, and longer texts between them."""
    red, green = (Pictures.new("RGB", (64, 64), color) for color in ("red", "green"))
    both = {"query": {"text": "second color?", "image": [red, green]}, "target": {"text": "green"}}
    wide = {"query": {"text": "color? " * 3, "image": [red.resize((128, 64))]}, "target": {"text": "red"}}
    rows = pairs()
    given = [
        {**dict.fromkeys(rows.column_names, []), "task": "seen", "pair_id": name, **row}
        for name, row in (("both", both), ("wide", wide), ("both again", {**both, "target": {"text": "blue"}}))
    ]
    return concatenate_datasets([rows, Dataset.from_list(given, features=rows.features)])


def with_videos(rows: Dataset) -> Dataset:
    """The same, where the queries of text alone in the second half have a video too."""
    frames = [Pictures.new("RGB", (64, 64), color) for color in ("red", "green", "blue", "white")]
    query = {**rows.features["query"], "video": List(List(Image()))}
    given = [
        {**row, "query": {**row["query"], "video": [frames] * (place >= len(rows) / 2 and not row["query"]["image"])}}
        for place, row in enumerate(list(rows))
    ]
    return Dataset.from_list(given, features=Features({**rows.features, "query": query}))


def adaptive(folder: Path, lora: bool = False, videos: bool = False, **fields: Any) -> dict[str, Any]:
    """The same of the adaptive phase. A group's rollouts are drawn from a seed of its own, on whatever process."""
    from mmemb_r1.training import AdaptiveGRPOConfig, AdaptiveGRPOTrainer

    model, processor = fresh_model()
    with torch.no_grad():
        for weight in model.vlm.parameters():  # an untrained one hardly tells what it is shown
            weight.mul_(6.0 if weight.ndim > 1 else 1.0)
    gradients, held = [], []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            gradients.append(gradients_of(model))

    args = AdaptiveGRPOConfig(
        **BASE,
        output_dir=str(folder),
        per_device_train_batch_size=2 * GLOBAL_BATCH // num_processes(),  # rollouts: two groups of two processes each
        num_generations=4,
        max_reasoning_tokens=4,
        max_steps=3,
        target_probability_temperature=0.1,
        num_candidates=4,
        optim="sgd",
        seed=SEED,
        **fields,
    )
    model = model.train()
    if lora:
        from mmemb_r1.training.adapters import lora_config, with_adapters

        model = with_adapters(model, lora_config(model, r=4))
    table = with_videos(policy_pairs()) if videos else policy_pairs()
    anchored = args.direct_anchor is not None
    callbacks, other = [Watch(), *([Move()] if anchored else [])], held_out() if anchored else None
    trainer = AdaptiveGRPOTrainer(model, args, table, processor, callbacks=callbacks, eval_dataset=other)
    assert trainer.is_fsdp_enabled or len(trainer._gate_inputs) == len(table)
    roll_out, size = trainer._roll_out, args.num_generations

    def seeded(prompts: list[Any]) -> dict[str, Any]:
        rows, gate_logits, columns, first_direct = trainer._rows, [], [], []
        for start in range(0, len(prompts), size):
            trainer._rows = rows[start : start + size]
            torch.manual_seed(int(trainer._rows[0]))
            columns.append(roll_out(prompts[start : start + size]))
            gate_logits.append(trainer._gate_logits)
            first_direct += [trainer._first_direct] if anchored else []
        trainer._rows, trainer._gate_logits = rows, torch.cat(gate_logits)
        if anchored:
            trainer._first_direct = torch.cat(first_direct)
        counts, films = (
            [sum(part["type"] == kind for turn in chat for part in turn["content"]) for chat in prompts]
            for kind in ("image", "video")
        )
        held.append({"pictures": bool(sum(counts)), "counts": sorted(set(counts)), "videos": bool(sum(films))})
        return {name: value and sum((part[name] for part in columns), []) for name, value in columns[0].items()}

    trainer._roll_out = seeded
    refused = train_until_refused(trainer)
    names = (
        "loss",
        "grad_norm",
        "gate/prob",
        "gate/thinks",
        "utility_gap",
        "contrastive",
        "rationale/tokens",
        "reward",
    )
    logs = [{name: log[name] for name in names} for log in trainer.state.log_history if "loss" in log]
    assert len(trainer._gate_inputs) == len(table)
    weights = {name: whole(weight.detach()).clone() for name, weight in trainer.model.named_parameters()}
    return {"logs": logs, "gradients": gradients, "weights": weights, "held": held, "refused": refused}


def gate_gradient(folder: Path) -> dict[str, Any]:
    """
    Of one step: the gradient of the gate's bias, averaged over the processes, and what it has to be made of: p (1 - p)
    (Q_reasoned - Q_direct) of each of the own groups. Processes draw other numbers of tokens.
    """
    from mmemb_r1.training import AdaptiveGRPOConfig, AdaptiveGRPOTrainer

    model, processor = fresh_model()
    with torch.no_grad():
        for weight in model.vlm.parameters():
            weight.mul_(6.0 if weight.ndim > 1 else 1.0)
        model.gate.output.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.vlm.get_output_embeddings().weight[model.config.end_think_token_id] *= 3  # some rationales end early
    found: dict[str, Any] = {}

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            found["gradient"] = float(model.gate.output.bias.grad)

    args = AdaptiveGRPOConfig(
        **{**BASE, "learning_rate": 0.0},
        output_dir=str(folder),
        per_device_train_batch_size=12,
        num_generations=4,
        max_steps=1,
        max_reasoning_tokens=9,
        contrastive_weight=0.0,
        min_decision_prob=0.0,
        max_grad_norm=0,
        target_probability_temperature=0.1,
    )
    trainer = AdaptiveGRPOTrainer(model.train(), args, policy_pairs(), processor, callbacks=[Watch()])
    scored = trainer._generate_and_score_completions

    def watched(inputs: Any) -> Any:
        batch = scored(inputs)
        probs, rewards = trainer._gate_logits.double().sigmoid(), trainer._rewards.double().view(-1, 4)
        gap = rewards[:, 1:].mean(dim=1) - rewards[:, 0]  # of each group the first is direct
        found["terms"] = (probs * (1 - probs) * gap).tolist()
        found["tokens"] = int((batch["completion_mask"] * batch["tool_mask"])[:, 1:].sum())
        return batch

    trainer._generate_and_score_completions = watched
    trainer.train()
    return found


def searched(folder: Path) -> dict[str, float]:
    """What an evaluation measures, of whose inputs each process embeds a part."""
    from mmemb_r1.training import JointConfig, JointTrainer

    model, processor = fresh_model()
    with torch.no_grad():
        for weight in model.vlm.parameters():
            weight.mul_(6.0 if weight.ndim > 1 else 1.0)
    model.config.max_reasoning_tokens = 4
    args = JointConfig(
        **BASE,
        output_dir=str(folder),
        per_device_train_batch_size=GLOBAL_BATCH // num_processes(),
        sub_batch_size=GLOBAL_BATCH // 2,
        eval_retrieval=["never", "always", "auto"],
    )
    table = pairs()
    train, other = table.select(range(0, 18, 2)), table.select(range(1, 18, 2))
    trainer = JointTrainer(model.train(), args, train, processor, eval_dataset=other)
    return {
        name: value
        for name, value in trainer.evaluate().items()
        if not name.endswith(("_second", "_runtime", "_time"))
    }


def exchanged(rank: int) -> dict[str, Any]:
    """Both processes' part in an exchange of tensors that differ in all sizes."""
    own = torch.arange(2.0 * (rank + 1) ** 2).reshape(rank + 1, 1, 2 * (rank + 1)).requires_grad_()
    rows = gather_rows(own)
    (rows * torch.arange(1.0, rows.numel() + 1).reshape(rows.shape)).sum().backward()
    weights = {name: nn.Parameter(torch.zeros(2)) for name in ("used by both", "by the first", "by none", "frozen")}
    weights["frozen"].requires_grad_(False)
    weights["used by both"].grad = torch.full((2,), 1.0 + rank)
    weights["by the first"].grad = torch.full((2,), 3.0) if rank == 0 else None
    average_gradients(weights.values())
    return {
        "rows": rows.tolist(),
        "own gradient": own.grad.tolist(),
        "bools": gather_rows(torch.tensor([[True, rank == 0]])).tolist(),
        "keys": gather_rows(torch.tensor([2**62 + rank] * rank, dtype=torch.long)).tolist(),
        "sum": summed(own.new_tensor([1.0 + rank], requires_grad=True)).tolist(),
        "averages": {name: None if value.grad is None else value.grad.tolist() for name, value in weights.items()},
    }


def results(folder: Path) -> dict[str, Any]:
    """All cases on as many processes as there are."""
    found = {name: trained(folder / name, **fields) for name, fields in CASES.items()}
    found |= {name: sharded(folder / name, **fields) for name, fields in SHARDED.items()}
    found["sharded by default"] = sharded(folder / "default", **DEFAULT)
    if num_processes() > 1:
        found["sharded in bfloat16"] = sharded(folder / "half", **HALF)
        with fsdp2():
            found["adaptive, sharded"] = adaptive(folder / "adaptive-sharded", **ADAPTIVE["adaptive"])
    found |= {name: adaptive(folder / name, **fields) for name, fields in ADAPTIVE.items()}
    found["gate gradient"] = gate_gradient(folder / "gate")
    return found | {"searched": searched(folder / "searched")}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    done = subprocess.run(
        [sys.executable, *launcher, "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", __file__, str(folder)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)]),
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, Any]:
    """What one process finds of the same."""
    return results(tmp_path_factory.mktemp("one"))


def tolerance_of(case: str) -> float:
    """Without gradient caching and several losses there are fewer sums whose order differs."""
    return 1e-6 if case in ADAPTIVE else TOLERANCE


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The norm of the difference of two gradients as a whole, relative to the first one's."""
    assert one.keys() == other.keys()
    ours, theirs = (torch.cat([grads[name].flatten() for name in one]).double() for grads in (one, other))
    return float((ours - theirs).norm() / ours.norm())


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """
    The greatest one between tensors of the same name, relative to the greatest number in each, or to a hundredth of
    the greatest number of all where that is more: what nearly vanishes is rounding.
    """
    assert one.keys() == other.keys()
    scales = {name: float(value.abs().max()) for name, value in one.items()}
    least = 0.01 * max(scales.values())
    return max(float((one[name] - other[name]).abs().max()) / max(scale, least) for name, scale in scales.items())


def used(one: dict[str, Tensor], sharded: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of a sharded model, without those of weights that nothing used: these have to be zeros."""
    assert not any(sharded[name].any() for name in sharded.keys() - one.keys())
    return {name: sharded[name] for name in one}


def error(one: dict[str, Any], sharded: dict[str, Any]) -> float:
    """The norm of the difference between the gradients of all steps, relative to that of one process's gradients."""
    steps = [(ours, used(ours, theirs)) for ours, theirs in zip(one["gradients"], sharded["gradients"], strict=True)]
    apart = sum(float((ours[name] - theirs[name]).square().sum()) for ours, theirs in steps for name in ours)
    return (apart / sum(float(value.square().sum()) for ours, _ in steps for value in ours.values())) ** 0.5


@pytest.mark.slow
class TestTwoProcesses:
    @pytest.mark.parametrize("case", [*CASES, *SHARDED, *ADAPTIVE])
    def test_have_the_losses_of_one(self, one, two, case):
        tolerance = tolerance_of(case)
        for process in two:
            for ours, theirs in zip(one[case]["logs"], process[case]["logs"], strict=True):
                assert theirs == pytest.approx(ours, rel=tolerance, abs=tolerance)

    @pytest.mark.parametrize("case", [*CASES, *ADAPTIVE])
    def test_have_the_gradients_and_weights_of_one(self, one, two, case):
        for process in two:
            for ours, theirs in zip(one[case]["gradients"], process[case]["gradients"], strict=True):
                assert difference(ours, theirs) < TOLERANCE
            first = (found[case]["gradients"][0] for found in (one, process))  # later ones are of weights that differ
            assert case not in ADAPTIVE or distance(*first) < tolerance_of(case)
            assert difference(one[case]["weights"], process[case]["weights"]) < tolerance_of(case)
        same = [torch.equal(weight, two[1][case]["weights"][name]) for name, weight in two[0][case]["weights"].items()]
        assert all(same)

    @pytest.mark.parametrize("case", SHARDED)
    def test_have_the_gradients_and_weights_of_one_if_the_model_is_sharded(self, one, two, case):
        for process in two:
            for ours, theirs in zip(one[case]["gradients"], process[case]["gradients"], strict=True):
                assert difference(ours, used(ours, theirs)) < TOLERANCE
            assert difference(one[case]["weights"], process[case]["weights"]) < TOLERANCE

    def test_have_the_gradient_of_one_to_a_millionth_if_the_model_is_sharded(self, one, two):
        for process in two:
            assert error(one["sharded by default"], process["sharded by default"]) < 1e-6

    def test_have_nearly_the_gradient_of_one_if_the_model_is_sharded_and_computes_in_bfloat16(self, one, two):
        for process in two:
            assert 1e-3 < error(one["sharded by default"], process["sharded in bfloat16"]) < HALF_ERROR

    def test_train_adaptively_as_one_if_the_model_is_sharded(self, one, two):
        """Rollouts, the first model, the gate's own coordinates and all: processes decode other numbers of steps."""
        for process in two:
            ours, theirs = one["adaptive"], process["adaptive, sharded"]
            for expected, log in zip(ours["logs"], theirs["logs"], strict=True):
                assert log == pytest.approx(expected, rel=1e-6, abs=1e-6)
            for expected, found in zip(ours["gradients"], theirs["gradients"], strict=True):
                assert not any(found[name].any() for name in found.keys() - expected.keys())  # unused ones get zeros
                assert difference(expected, {name: found[name] for name in expected}) < TOLERANCE
            assert difference(ours["weights"], theirs["weights"]) < 1e-6

    def test_give_the_gate_the_policy_gradient_of_all_groups(self, two):
        """Every group counts the same, though processes hold other numbers of tokens, by which TRL's loss divides."""
        first, second = (process["gate gradient"] for process in two)
        terms = [*first["terms"], *second["terms"]]
        assert first["tokens"] != second["tokens"] and len(terms) == 6 and max(map(abs, terms)) > 1e-4
        assert first["gradient"] == second["gradient"] == pytest.approx(-sum(terms) / len(terms), rel=0, abs=1e-9)

    def test_were_given_what_breaks_such_runs(self, one, two):
        """Otherwise the other tests would show little: one process sees no picture, or no rationale."""
        for what in ("pictures", "rationales"):
            for case in ("plain", *SHARDED):
                by_process = [[batch[what] for batch in process[case]["held"]] for process in two]
                assert any(first != second for first, second in zip(*by_process, strict=True)), (what, case)
                assert any(batch[what] for batch in one[case]["held"])
        for case in ADAPTIVE:
            held = list(zip(*(process[case]["held"] for process in two), strict=True))
            assert any(first["pictures"] != second["pictures"] for first, second in held), held
            assert any({1, 2} <= set(batch["counts"]) for step in held for batch in step), held
            assert any(set(batch["counts"]) >= {0, 1} for step in held for batch in step), held
            if ADAPTIVE[case].get("videos"):
                assert any(first["videos"] != second["videos"] for first, second in held), held
        moved = one["plain"]["gradients"][0]
        assert all(moved[name].any() for name in ("vlm.model.visual.patch_embed.proj.weight", "gate.output.weight"))

    @pytest.mark.parametrize("case", [case for case in (*CASES, *ADAPTIVE) if "anchored" in case])
    def test_measure_together_how_far_direct_embeddings_moved(self, one, two, case):
        assert 0 < one[case]["refused"] < 0.9
        for process in two:
            assert process[case]["refused"] == pytest.approx(one[case]["refused"], abs=2e-6)

    def test_measure_retrieval_together(self, one, two):
        assert {"eval_never_hit@1", "eval_always_mean_reasoning_tokens", "eval_auto_mrr"} <= one["searched"].keys()
        for process in two:
            assert process["searched"] == pytest.approx(one["searched"], rel=TOLERANCE)

    def test_exchange_rows_of_any_size(self, two):
        first, second = (process["exchanged"] for process in two)
        for name in ("rows", "bools", "keys", "sum", "averages"):
            assert first[name] == second[name]
        assert first["rows"] == [[[0, 1, 0, 0]], [[0, 1, 2, 3]], [[4, 5, 6, 7]]]
        assert first["bools"] == [[True, True], [True, False]]
        assert first["keys"] == [2**62 + 1]  # the first process has none
        assert first["sum"] == [3]

    def test_get_gradients_of_their_own_rows_alone(self, two):
        assert two[0]["exchanged"]["own gradient"] == [[[1, 2]]]
        assert two[1]["exchanged"]["own gradient"] == [[[5, 6, 7, 8]], [[9, 10, 11, 12]]]

    def test_average_gradients_and_count_unused_ones_as_zero(self, two):
        assert two[0]["exchanged"]["averages"] == {
            "used by both": [1.5, 1.5],
            "by the first": [1.5, 1.5],
            "by none": None,
            "frozen": None,
        }


class TestOneProcess:
    """Nothing is exchanged."""

    def test_rows_stay_what_they_are(self):
        rows = torch.zeros(2, 3, requires_grad=True)
        assert num_processes() == 1 and gather_rows(rows) is rows

    def test_a_sum_has_no_gradient_and_is_another_tensor(self):
        value = torch.ones(2, requires_grad=True)
        total = summed(value)
        assert total.equal(value) and not total.requires_grad
        assert summed(total).data_ptr() != total.data_ptr()

    def test_gradients_stay_what_they_are(self):
        parameter = nn.Parameter(torch.zeros(2))
        average_gradients([parameter])
        assert parameter.grad is None

    def test_padding_has_no_gradient(self):
        rows = torch.ones(1, 2, 1, requires_grad=True)
        wide = pad_to(rows, (3, 2, 2))
        assert wide.shape == (3, 2, 2) and wide.sum() == 2
        (2 * wide).sum().backward()
        assert rows.grad.tolist() == [[[2], [2]]]


@pytest.mark.parametrize("returned", [True, False])
def test_fsdp2_returns_float32_whatever_it_computes_in(tmp_path, returned, processor, tiny):
    """With accelerate's policy for bfloat16 everything that the model returns was bfloat16, and so was the loss."""
    import torch.distributed as dist
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16", override=True)
    if returned:
        keep_float32(plugin)
        assert plugin.mixed_precision_policy.reduce_dtype == torch.float32
    model = copy.deepcopy(tiny[0])
    batch = render(processor, to_conversations(["say red", "blue"]))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for part in (*model.vlm.get_decoder().layers, model):
            fully_shard(part, mesh=mesh, mp_policy=plugin.mixed_precision_policy)
        output = model(**batch, labels=batch["input_ids"])
    finally:
        dist.destroy_process_group()
    expected = torch.float32 if returned else torch.bfloat16
    for value in (output.embeddings, output.gate_logits, output.rationale_logps):
        assert value.dtype == expected
    assert output.last_hidden_state.dtype == torch.bfloat16


def test_a_torch_that_cant_shard_such_batches_is_refused(monkeypatch):
    from torch.distributed.fsdp import FSDPModule

    class Sharded(FSDPModule, nn.Linear):
        def __new__(cls, *sizes):
            return nn.Linear.__new__(cls)

    model = Sharded(1, 1)
    reduce_alike(model)  # one process has nothing to reduce
    monkeypatch.setattr("mmemb_r1.training.distributed.num_processes", lambda: 2)
    monkeypatch.delattr(FSDPModule, "set_reduce_scatter_unused_params", raising=False)
    with pytest.raises(ValueError, match="one process's batch has pictures and another's has none; update torch"):
        reduce_alike(model)
    reduce_alike(nn.Linear(1, 1))


def main(folder: Path) -> None:
    """What each of the two processes does."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    allow()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.save({"exchanged": exchanged(rank), **results(folder / f"process-{rank}")}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
