"""What the trainers of both phases share: checkpoints to resume from, the order of queries, the training record."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl.trainer.utils import RepeatSampler

from mmemb_r1.training.vlm import weights_fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

    from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
    from mmemb_r1.training.adaptive.config import AdaptiveGRPOConfig
    from mmemb_r1.training.joint.config import JointConfig
    from mmemb_r1.training.joint.data import SelectedRationales


STATE_FILE = "trainer_state.json"  # what `Trainer` writes last
_NAME = re.compile(r"checkpoint-(\d+)")


def last_checkpoint(folder: Path) -> str | None:
    """
    The last checkpoint that is complete.

    A process that is killed while it saves leaves a part of one. `Trainer` would go on from that part: without its
    last file from the first step, with whatever weights are there.

    Args:
        folder: the trainer's `output_dir`; it may be missing.

    Returns:
        Its path, for `resume_from_checkpoint`; `None` if there is none.
    """
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return next((str(path) for _, path in sorted(found, reverse=True) if _is_complete(path)), None)


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


TRAINING_FILE = "training.json"


def with_earlier_phases(facts: Mapping[str, Any], checkpoint: str | Path) -> dict[str, Any]:
    """
    The facts of a phase, and under `before` those of the phases that made the checkpoint it began with, in order.

    Args:
        facts: name -> value, for the model card.
        checkpoint: a folder, or a Hub id, of which nothing is known here.
    """
    path = Path(checkpoint) / TRAINING_FILE
    if not path.is_file():
        return dict(facts)
    earlier = json.loads(path.read_text(encoding="utf-8"))
    return {**facts, "before": [*earlier.pop("before", []), earlier]}


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


class PhaseTrainer:
    """
    Mixed into a trainer of TRL's, before it.

    Attributes:
        facts: what is told of the training, beside each checkpoint and in the model card.
    """

    _paper = {
        "title": "MMEmb-R1: Reasoning-Enhanced Multimodal Embedding with Pair-Aware Selection and Adaptive Control",
        "id": "2604.06156",
    }
    args: Any
    state: Any
    is_world_process_zero: Any
    facts: dict[str, Any]

    def _send_telemetry(self) -> None:
        """Nobody is told what is trained here, unlike in TRL's own trainers."""

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]
        if self.is_world_process_zero():
            self.save_facts(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    def save_facts(self, folder: Path) -> None:
        """Write what was trained, on which data, from which weights, beside a checkpoint."""
        write_facts(folder, self.facts, self.state.global_step)


class EpochSampler(RepeatSampler):
    """
    TRL's sampler, whose order in an epoch follows from the seed and the epoch's number.

    TRL's own goes on drawing from one generator, so that a run that is resumed in its second epoch sees the first
    one's order again.

    Args:
        epoch: tells the number of the epoch that begins.
        **kwargs: those of [`~trl.trainer.utils.RepeatSampler`].
    """

    def __init__(self, *, epoch: Callable[[], int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + self._epoch())
        return super().__iter__()
