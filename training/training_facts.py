"""What is told of a training: which data, which selection, which weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.training.vlm import weights_fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

    from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
    from mmemb_r1.training.adaptive_grpo_config import AdaptiveGRPOConfig
    from mmemb_r1.training.joint_config import JointConfig
    from mmemb_r1.training.selected import SelectedRationales

TRAINING_FILE = "training.json"


def training_facts(
    model: MMEmbR1Model,
    args: JointConfig,
    pairs: Dataset,
    selected: SelectedRationales | None,
    peft_config: Any | None = None,
) -> dict[str, Any]:
    """
    The facts of a joint phase, name -> value, for its model card. No path of this machine is among them.

    Args:
        model: before training.
        args: the arguments.
        pairs: the training pairs.
        selected: the rationales that are drawn from, if any.
        peft_config: of adapters, if any.
    """
    tasks = Counter(pairs["task"]) if "task" in pairs.column_names else {}
    facts: dict[str, Any] = {
        "phase": "joint",
        "started from weights": weights_fingerprint(model),
        "pairs": len(pairs),
    }
    if tasks:
        drawn = args.task_weights or tasks
        facts["tasks"] = ", ".join(f"{task} {drawn[task]:g}" for task in sorted(drawn) if drawn[task])
    facts["rationales"] = _rationales(args, pairs, selected)
    in_batch = args.train_batch_size * args.world_size - 1
    facts |= {
        "loss weights": ", ".join(f"({a},{b}) {weight:g}" for (a, b), weight in args.path_weights.items())
        + f"; rationale {args.rationale_weight:g}; gate {args.gate_weight:g}",
        "temperature": args.temperature,
        "pairs per step": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        "negatives": f"{in_batch} in batch, {args.num_hard_negatives} hard ones per pair",
        "learning rate": args.learning_rate,
        "seed": args.seed,
    }
    if args.freeze_vision_tower:
        facts["vision tower"] = "not trained"
    if peft_config is not None:
        facts["adapters"] = f"LoRA, rank {peft_config.r}, alpha {peft_config.lora_alpha}"
    return facts


def adaptive_facts(model: MMEmbR1Model, args: AdaptiveGRPOConfig, pairs: Dataset) -> dict[str, Any]:
    """The facts of an adaptive phase, name -> value, for its model card."""
    return {
        "phase": "adaptive (GRPO)",
        "started from weights": weights_fingerprint(model),
        "pairs": len(pairs),
        "rollouts per query": f"{args.num_generations}, of them direct {args.num_direct_rollouts}",
        "reward weights": f"format {args.format_weight:g}, alignment {args.alignment_weight:g}, "
        f"cost {args.cost_weight:g}",
        "rollouts per step": args.generation_batch_size,
        "learning rate": f"{args.learning_rate:g}, of the gate {args.gate_learning_rate:g}",
        "seed": args.seed,
    }


def write_facts(folder: Path, facts: Mapping[str, Any], steps: int) -> None:
    """Write the facts of a training and how long it has gone on beside a checkpoint."""
    text = json.dumps({**facts, "steps": steps}, indent=2, ensure_ascii=False) + "\n"
    (folder / TRAINING_FILE).write_text(text, encoding="utf-8")


def _rationales(args: JointConfig, pairs: Dataset, selected: SelectedRationales | None) -> str:
    if not args.use_rationales:
        return "none: the direct path alone"
    if selected is None:
        own = [name for name in ("query_rationale", "target_rationale") if name in pairs.column_names]
        return "those of the pairs table" if own else "none: the pairs table has none"
    found = len(selected.pair_ids.intersection(pairs["pair_id"]))
    workers = ", ".join(f"{worker} {number}" for worker, number in selected.workers.items())
    said = f"{selected.num_rationales} selected ones, for {found} of the {len(pairs)} pairs"
    return f"{said}; by worker: {workers}" if workers else said
