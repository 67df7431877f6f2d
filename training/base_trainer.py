"""Share between the trainers of both phases: checkpoints to resume from, the order of queries, the training record."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from zipfile import is_zipfile

from accelerate.utils import DistributedType
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file
from trl.trainer.utils import RepeatSampler

from mmemb_r1.model_card.validation import is_repo_id
from mmemb_r1.modeling.files_mmemb_r1 import as_new, copy_content
from mmemb_r1.modeling.modeling_mmemb_r1 import write_modules
from mmemb_r1.runs import read_json, write_json
from mmemb_r1.training.distributed import average_gradients, without_adapters
from mmemb_r1.training.logs import log_figures
from mmemb_r1.training.pushing import PushesWholeCheckpoints
from mmemb_r1.training.settling.settle import Settlement
from mmemb_r1.training.tables import tasks_of

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)
Config = TypeVar("Config")
TRAINING_FILE = "training.json"
NO_RATIONALES = "none: "  # begins what a record tells of the rationales of a training that had none
RECORD = "training_record"  # attribute of a model that was trained in this process
ENCODING_FILE = "config_sentence_transformers.json"  # prompts and similarity
STATE_FILE = "trainer_state.json"  # what `Trainer` writes last
_AVERAGED_HERE = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU)
_NAME = re.compile(r"checkpoint-(\d+)")


def last_checkpoint(folder: Path) -> str | None:
    """
    Find the path of the last checkpoint that is complete, for `resume_from_checkpoint`; `None` if there is none.

    A process that is killed while it saves leaves a part of one, a full disk leaves files that end early. `Trainer`
    would go on from that part: without its last file from the first step, with whatever weights are there.
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


def with_help(config_class: type[Config]) -> type[Config]:
    """Give each field of a config the text about it in the class's docstring as the help of its flag."""
    entries = r"^    (\w+)(?: \([^\n]*\))?:\s+(.+?)(?=\n    \w|\n\n|\Z)"
    texts = dict(re.findall(entries, inspect.getdoc(config_class) or "", re.MULTILINE | re.DOTALL))
    for one in dataclasses.fields(config_class):  # type: ignore[arg-type]
        if one.name in texts:
            one.metadata = MappingProxyType({"help": " ".join(texts[one.name].split())})
    return config_class


def drop_second_look(config: Any) -> None:
    """Take the second look out of a config, with a warning: it was fitted to what is about to change."""
    if config.second_look is not None:
        logger.warning(
            "The model has a second look, which was fitted to the gate and the vectors that it had; it is dropped. "
            "Fit one anew with `mmemb-r1 train gate --second-look`."
        )
        config.second_look = None


def pairs_facts(pairs: Dataset, weights: Mapping[str, float] | None = None) -> dict[str, Any]:
    """
    Record how many pairs a phase was trained on, and of which tasks: so many each, or drawn with these `weights`.
    """
    facts: dict[str, Any] = {"pairs": len(pairs)}
    if "task" in pairs.column_names:
        drawn = weights or Counter(tasks_of(pairs))
        facts["tasks"] = ", ".join(f"{task} {drawn[task]:g}" for task in sorted(drawn) if drawn[task])
    return facts


def with_earlier_phases(facts: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """
    Add to a phase's facts, as `before`, those of the phases that made the model it begins with, in order: what a phase
    in this process left on the model, or else what lies beside the checkpoint that it was loaded from.
    """
    earlier = getattr(model, RECORD, None) or _saved_record(model.config.name_or_path)
    if earlier is None:
        return dict(facts)
    last = {name: value for name, value in earlier.items() if name != "before"}
    return {**facts, "before": [*earlier.get("before", []), last]}


def _saved_record(source: str) -> dict[str, Any] | None:
    """Read the training record of a folder or a Hub id; `None` if there is none, or the Hub does not answer."""
    if not source or not (Path(source).is_dir() or is_repo_id(source)):
        return None
    raised = ("missing_entries", "connection_errors", "gated_repo")
    path = cached_file(source, TRAINING_FILE, **{f"_raise_exceptions_for_{name}": False for name in raised})
    return None if path is None else read_json(Path(path))


def with_changes(facts: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """
    Add to a phase's facts, as the last of `before`, those that a checkpoint of the phase was made with, if they were
    others: a run that goes on with other settings or tables was trained with the former ones, too.
    """
    path = checkpoint / TRAINING_FILE
    if not path.is_file():
        return dict(facts)
    made = read_json(path)
    before = made.pop("before", [])
    now = {name: value for name, value in facts.items() if name != "before"}
    if {name: value for name, value in made.items() if name != "steps"} != json.loads(json.dumps(now)):
        before = [*before, made]
    return now | ({"before": before} if before else {})


def write_facts(folder: Path, facts: Mapping[str, Any], steps: int) -> None:
    """Write the facts of a training and how long it has gone on beside a checkpoint."""
    write_json(folder / TRAINING_FILE, {**facts, "steps": steps})


class PhaseTrainer(PushesWholeCheckpoints):
    """
    Mixed into a trainer of TRL's, before it. Its `facts` are the training record, beside each checkpoint; a line of
    its log holds its `figures`.
    """

    _paper = {
        "title": "MMEmb-R1: Reasoning-Enhanced Multimodal Embedding with Pair-Aware Selection and Adaptive Control",
        "id": "2604.06156",
    }
    accelerator: Any
    args: Any
    model: Any
    state: Any
    is_world_process_zero: Any
    facts: dict[str, Any]
    settlement: Settlement  # which rows are trained on
    figures: ClassVar[tuple[str, ...]] = ("loss", "grad_norm", "learning_rate")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        log_figures(self, self.figures)
        drop_second_look(without_adapters(self.model).config)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and leave the record on the model, for a phase that goes on with it in this process."""
        result = super().train(*args, **kwargs)  # type: ignore[misc]
        model = without_adapters(self.accelerator.unwrap_model(self.model))
        setattr(model, RECORD, {**self.facts, "steps": self.state.global_step})
        return result

    def _send_telemetry(self) -> None:
        """Send nothing: unlike TRL's own trainers, these report to nobody what is trained."""

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]
        if self.is_world_process_zero():
            steps = self.state.global_step
            write_facts(Path(self.args.output_dir) / f"checkpoint-{steps}", self.facts, steps)

    def _record(self) -> dict[str, Any]:
        return {**self.facts, "steps": self.state.global_step}

    def average_gradients(self) -> None:
        """Average gradients over the processes before a step of the optimiser, but of a model that FSDP2 shards."""
        if self.accelerator.sync_gradients and self.accelerator.distributed_type in _AVERAGED_HERE:
            average_gradients(self.model.parameters())

    def encoding_file(self) -> Path | None:
        """Find the prompts and the similarity of the checkpoint that training began with, if it had any."""
        start = self.model.config.name_or_path
        found = start and cached_file(
            start, ENCODING_FILE, local_files_only=True, _raise_exceptions_for_missing_entries=False
        )
        return Path(found) if found else None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save such that sentence-transformers loads the model, or adapters, with the prompts that it began with."""
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        write_modules(folder)
        if found := self.encoding_file():
            copy_content(found, Path(folder, ENCODING_FILE))
        as_new(Path(folder).glob("*.safetensors"))


class EpochSampler(RepeatSampler):
    """
    Repeat rows as TRL's sampler does, in an order that follows from the seed and the number of the epoch that begins,
    which `epoch` returns.

    TRL's own goes on drawing from one generator, so that a run that is resumed in its second epoch sees the first
    one's order again.
    """

    def __init__(self, *, epoch: Callable[[], int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + self._epoch())
        return super().__iter__()
