"""Record what an adaptive phase was run with."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.training.adapters import adapter_facts
from mmemb_r1.training.adaptive.config import AdaptiveGRPOConfig
from mmemb_r1.training.base_trainer import pairs_facts
from mmemb_r1.training.vlm import weights_fingerprint


def adaptive_facts(model: MMEmbR1Model, args: AdaptiveGRPOConfig, pairs: Dataset) -> dict[str, Any]:
    """Record what an adaptive phase was run with, name -> value, for the model card."""
    direct = args.num_direct_rollouts if args.decisions == "stratified" else "as the gate decides"
    return {
        "phase": "adaptive (GRPO)",
        "started from weights": weights_fingerprint(model),
        **pairs_facts(pairs),
        "rollouts per query": f"{args.num_generations}, of them direct {direct}",
        "reward weights": ", ".join(f"{name} {weight:g}" for name, weight in args.all_rewards.items()),
        "rollouts per step": args.generation_batch_size,
        "learning rate": f"{args.learning_rate:g}, of the gate {args.gate_learning_rate:g}",
        "seed": args.seed,
        **({} if args.sides == "query" else {"sides that reason": args.sides}),
        **adapter_facts(next(iter(getattr(model, "peft_config", {}).values()), None)),
    }
