"""Record what a joint phase was run with."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.training.adapters import adapter_facts
from mmemb_r1.training.base_trainer import NO_RATIONALES, pairs_facts
from mmemb_r1.training.joint.config import JointConfig
from mmemb_r1.training.joint.data import SelectedRationales
from mmemb_r1.training.vlm import weights_fingerprint


def joint_facts(
    model: MMEmbR1Model,
    args: JointConfig,
    pairs: Dataset,
    selected: SelectedRationales | None,
    peft_config: Any | None = None,
) -> dict[str, Any]:
    """
    Record what a joint phase was run with, name -> value, for the model card; no path of this machine is among it.
    """
    facts: dict[str, Any] = {"phase": "joint", "started from weights": weights_fingerprint(model)}
    weights: Any = args.task_weights  # no longer a flag's JSON
    facts |= pairs_facts(pairs, weights)
    if "tasks" in facts and args.task_size_exponent != 1:
        facts["tasks"] += f"; drawn by their size to the power of {args.task_size_exponent:g}"
    facts["rationales"] = _describe_rationales(args, pairs, selected)
    in_batch = args.train_batch_size * args.world_size - 1
    facts |= {
        "loss weights": ", ".join(f"({a},{b}) {weight:g}" for (a, b), weight in args.path_weights.items())
        + f"; rationale {args.rationale_weight:g}; gate {args.gate_weight:g}"
        + ("" if args.symmetric_loss else "; from queries to targets alone")
        + ("; one side with a rationale is enough for (1,1)" if args.one_sided_reasoning else ""),
        "temperature": args.temperature,
        "pairs per step": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        "negatives": f"{in_batch} in batch, {args.num_hard_negatives} hard ones per pair",
        "learning rate": args.learning_rate,
        "seed": args.seed,
        "gate": "trained" if args.gate_weight else "not trained",
    }
    if args.augment_pictures:
        facts["pictures"] = "augmented"
    if args.freeze_vision_tower:
        facts["vision tower"] = "not trained"
    return facts | adapter_facts(peft_config)


def _describe_rationales(args: JointConfig, pairs: Dataset, selected: SelectedRationales | None) -> str:
    if not args.use_rationales:
        return f"{NO_RATIONALES}the direct path alone"
    if selected is None:
        own = [name for name in ("query_rationale", "target_rationale") if name in pairs.column_names]
        return "those of the pairs table" if own else f"{NO_RATIONALES}the pairs table has none"
    found = selected.covered(pairs)
    workers = ", ".join(f"{worker} {number}" for worker, number in selected.workers.items())
    text = f"{selected.num_rationales} selected ones, for {found} of the {len(pairs)} pairs"
    text += ", of each the best alone" if selected.best_only else ""
    return f"{text}; by worker: {workers}" if workers else text
