"""What the trainers of the phases have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmemb_r1.training.training_facts import write_facts


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
