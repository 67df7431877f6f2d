"""Share between the trainers of both phases: checkpoints to resume from, the order of queries, the training record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open
from trl.trainer.utils import RepeatSampler

TRAINING_FILE = "training.json"
STATE_FILE = "trainer_state.json"  # what `Trainer` writes last
SECRETS = ("hub_token",)  # fields of a config that are never written
_NAME = re.compile(r"checkpoint-(\d+)")


def last_checkpoint(folder: Path) -> str | None:
    """
    Find the last checkpoint that is complete.

    A process that is killed while it saves leaves a part of one, a full disk leaves files that end early. `Trainer`
    would go on from that part: without its last file from the first step, with whatever weights are there.

    Returns:
        Its path, for `resume_from_checkpoint`; `None` if there is none, or no such folder.
    """
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return next((str(path) for _, path in sorted(found, reverse=True) if _is_complete(path)), None)


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        for weights in checkpoint.glob("*.safetensors"):
            with safe_open(weights, framework="pt"):
                pass
    except (FileNotFoundError, json.JSONDecodeError, SafetensorError):
        return False
    # what torch writes are ZIP archives, whose directory comes last
    return all(is_zipfile(path) for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth", ".bin"))


def with_earlier_phases(facts: Mapping[str, Any], checkpoint: str | Path) -> dict[str, Any]:
    """
    Add to the facts of a phase, under `before`, those of the phases that made the checkpoint it began with, in order.

    Args:
        facts: name -> value, for the model card.
        checkpoint: a folder, or a Hub id, of which nothing is known here.
    """
    path = Path(checkpoint) / TRAINING_FILE
    if not path.is_file():
        return dict(facts)
    earlier = json.loads(path.read_text(encoding="utf-8"))
    return {**facts, "before": [*earlier.pop("before", []), earlier]}


def write_facts(folder: Path, facts: Mapping[str, Any], steps: int) -> None:
    """Write the facts of a training and how long it has gone on beside a checkpoint."""
    text = json.dumps({**facts, "steps": steps}, indent=2, ensure_ascii=False) + "\n"
    (folder / TRAINING_FILE).write_text(text, encoding="utf-8")


class TokensLeftOut:
    """Mixed into a config, before TRL's: tokens are not pickled, so that `training_args.bin` holds none."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: None if name in SECRETS else value for name, value in vars(self).items()}


class PhaseTrainer:
    """
    Mixed into a trainer of TRL's, before it.

    Attributes:
        facts: the training record, beside each checkpoint and in the model card: name -> value.
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
        """Send nothing: unlike TRL's own trainers, these report to nobody what is trained."""

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]
        if self.is_world_process_zero():
            self.save_facts(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    def save_facts(self, folder: Path) -> None:
        """Write what was trained, on which data, from which weights, beside a checkpoint."""
        write_facts(folder, self.facts, self.state.global_step)


class EpochSampler(RepeatSampler):
    """
    Repeat rows as TRL's sampler does, in an order that follows from the seed and the number of the epoch.

    TRL's own goes on drawing from one generator, so that a run that is resumed in its second epoch sees the first
    one's order again.

    Args:
        epoch: returns the number of the epoch that begins.
        **kwargs: those of [`~trl.trainer.utils.RepeatSampler`].
    """

    def __init__(self, *, epoch: Callable[[], int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + self._epoch())
        return super().__iter__()
