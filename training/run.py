"""Describe a training as a value, made from a recipe, flags or Python: what is trained, on which tables, and how."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from mmemb_r1.file_formats import read_yaml
from mmemb_r1.fingerprint import folder_digest
from mmemb_r1.modeling.files_mmemb_r1 import as_new
from mmemb_r1.modeling.options_mmemb_r1 import nearest_name
from mmemb_r1.runs import explained_writing, record_run
from mmemb_r1.tables.columns import ColumnMap, PairForm
from mmemb_r1.tables.pairs import table_digest, table_name
from mmemb_r1.training.base_config import SECRETS, check_anchored
from mmemb_r1.training.base_trainer import (
    NO_RATIONALES,
    STATE_FILE,
    TRAINING_FILE,
    PhaseTrainer,
    last_checkpoint,
    with_changes,
)
from mmemb_r1.training.settling.settle import Settlement, write_skipped
from mmemb_r1.training.tables import read_pairs

if TYPE_CHECKING:
    from datasets import Dataset

    from mmemb_r1.tables.pairs import Source


LENGTH_OF_RUN = ("max_steps", "num_train_epochs")  # a longer run may go on from a shorter one
# Beginnings of fields that change no result, up to rounding: how much runs at once, what is written and logged, and
# what is too long, for which rows that leaves out is recorded itself.
CHANGES_NOTHING = (
    *("mini_batch_", "similarity_chunk_size", "num_length_chunks", "activation_checkpointing"),
    *("dataloader_", "disable_tqdm", "eval_", "hub_", "log_", "logging_", "push_to_hub", "report_to", "run_name"),
    *("output_dir", "per_device_eval_", "save_"),
    *(
        "on_error",
        "max_skipped",
        "max_input_tokens",
        "max_rationale_tokens",
    ),
)
MODEL_OPTIONS = ("dtype", "attn_implementation")
TRAINED_ON = ("pairs", "rationales", "joint_pairs")  # fields of runs: what is only measured is not among it
TABLES = (*TRAINED_ON, "eval_pairs")


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """
    Describe a training.

    Args:
        model: what to start from: a folder or a Hub id.
        pairs: the pairs table, see [`~mmemb_r1.tables.pairs.open_pairs`] for what it may be.
        output: `output/model` is what was trained; a run that was stopped goes on from `output/checkpoints`.
        base: where relative paths of pictures and videos in all tables start. Default: the folder of each table.
        columns: our name of a column -> that of the pairs table, and of other tables of pairs, unless one has ours.
        settings: fields of the config, `config_class`, and their values; others are a `ValueError`.
        accept_changes: whether a run that was begun with other settings or data goes on with these.
    """

    model: str
    pairs: Source
    output: Path
    base: Path | None = None
    columns: ColumnMap | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    accept_changes: bool = False

    config_class: ClassVar[type]
    sections: ClassVar[dict[str, str]] = {"columns": "columns"}  # mappings of a recipe -> fields of this class

    def __post_init__(self) -> None:
        check_fields(self.settings, self.config_class)
        check_types(self.fields, self.config_class)
        PairForm(self.columns)

    def told(self) -> dict[str, Any]:
        """Tell for the model card the tables by name and content, and which of their rows were taken."""
        tables = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return table_facts({name: table for name, table in tables.items() if name in TRAINED_ON})

    @property
    def rows(self) -> dict[str, Any]:
        """Which rows of the pairs are read, as arguments of `read_pairs`: all."""
        return {}

    @property
    def fields(self) -> dict[str, Any]:
        """The settings as the config takes them, with numbers that YAML took for text, and checkpoints in `output`."""
        defaults = {one.name: one.default for one in dataclasses.fields(self.config_class)}
        settings = {name: as_number(name, value, defaults[name]) for name, value in self.settings.items()}
        return {"report_to": [], **settings, "output_dir": str(self.output / "checkpoints")}

    def read_table(self, path: Source, required: Sequence[str] = ()) -> Dataset:
        """Read one of the tables; arguments and errors as of [`~mmemb_r1.training.tables.read_pairs`]."""
        return read_pairs(path, required, base=self.base)

    def read_pairs(self, required: Sequence[str] = ()) -> Dataset:
        """Read the pairs to train on; arguments and errors as of [`~mmemb_r1.training.tables.read_pairs`]."""
        return read_pairs(self.pairs, required, columns=self.columns, base=self.base, **self.rows)

    def read_other_pairs(self, path: Source, required: Sequence[str] = ()) -> Dataset:
        """Read pairs beside those to train on, with `columns` unless the table has ours."""
        return read_pairs(path, required, columns=self.columns, unless_ours=True, base=self.base)

    def config(self) -> Any:
        """Make the config. It looks at the machine: without a GPU, `use_cpu` has to be set."""
        return self.config_class(**self.fields)

    def identity(self) -> dict[str, Any]:
        """
        Return what makes this run another one than those with another model, other settings or tables, for `run.json`.

        A model in a folder counts by its content: it may move, and others may take its place. Tokens are left out.
        """
        found: dict[str, Any] = {}
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if one.name not in ("output", "base", "settings", "accept_changes") and value is not None:
                found[one.name] = table_digest(value) if one.name in TABLES else value
        if Path(self.model).is_dir():
            found["model"] = folder_digest(Path(self.model))
        left_out = (*LENGTH_OF_RUN, *SECRETS)
        fields = {
            name: value
            for name, value in self.fields.items()
            if name not in left_out and not name.startswith(CHANGES_NOTHING)
        }
        per_device = "per_device_train_batch_size"
        default = next((one.default for one in dataclasses.fields(self.config_class) if one.name == per_device), None)
        if default is not None:  # what counts is the batch of all devices
            fields["train_batch_size"] = fields.pop(per_device, default) * int(os.environ.get("WORLD_SIZE", "1"))
        return found | {"fields": fields}


@dataclass(frozen=True, kw_only=True)
class PhaseRun(TrainingRun):
    """
    Describe a training phase of a checkpoint, whose trained form is saved whole in `output/model`.

    Args:
        tasks: only pairs of these tasks or groups of tasks are trained on. Default: all.
        per_task: only the first so many pairs of each task. Default: all.
        lora: options of [`~mmemb_r1.training.adapters.lora_config`], `{}` for its defaults; the adapters alone are in
            `output/adapter`. Default: the whole model is trained.
        quantization: options of [`~mmemb_r1.training.adapters.quantization_config`], for the frozen weights below
            `lora`, without which it is a `ValueError`. Default: they are not quantised.
        model_options: `dtype` of the weights and `attn_implementation`. Default: float32; below adapters, which are
            float32 themselves, the checkpoint's dtype.
    """

    tasks: tuple[str, ...] | None = None
    per_task: int | None = None
    lora: Mapping[str, Any] | None = None
    quantization: Mapping[str, Any] | None = None
    model_options: Mapping[str, Any] | None = None

    sections: ClassVar[dict[str, str]] = {
        **TrainingRun.sections, "lora": "lora", "quantization": "quantization", "model": "model_options"
    }  # fmt: skip

    def __post_init__(self) -> None:
        from mmemb_r1.training.vlm import DTYPES

        super().__post_init__()
        options = self.model_options or {}
        if unknown := sorted(set(options) - set(MODEL_OPTIONS)):
            near = nearest_name(unknown[0], MODEL_OPTIONS)
            raise ValueError(f"model has no option {unknown[0]!r}; allowed: {', '.join(MODEL_OPTIONS)}{near}")
        if (dtype := options.get("dtype", "auto")) not in DTYPES:
            raise ValueError(f"model.dtype {dtype!r}; allowed: {', '.join(DTYPES)}")
        if not isinstance(attention := options.get("attn_implementation") or "", str):
            raise ValueError(f"model.attn_implementation {attention!r}; allowed: names, sdpa or flash_attention_2 say")
        if self.quantization is not None and self.lora is None:
            raise ValueError("quantised weights can't be trained; add lora: {} for adapters")
        held_out = getattr(self, "eval_pairs", None) is not None
        check_anchored(self.fields.get("direct_anchor"), self.lora is not None, held_out)

    @property
    def rows(self) -> dict[str, Any]:
        return {"tasks": self.tasks, "per_task": self.per_task}

    def told(self) -> dict[str, Any]:
        told = super().told() | chosen_rows(self.tasks, self.per_task)
        if self.quantization is not None:
            options = ", ".join(f"{name} {value}" for name, value in self.quantization.items())
            told["weights below the adapters"] = f"quantised, {options}"
        return told

    def load(self, device: Any) -> Any:
        """
        Load the checkpoint's `MMEmbR1Module`: on the CPU, from where the trainer moves it, or, if it is quantised, on
        `device`, for it can't be moved.

        No checkpoint, or a backbone without gate and embedding head, is a `ValueError`.
        """
        from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module
        from mmemb_r1.training.vlm import checkpoint_config

        checkpoint_config(self.model)
        # small steps vanish in bfloat16 weights; below adapters, which are float32, they stay as they are
        options = {"dtype": "float32" if self.lora is None else "auto", **(self.model_options or {})}
        if self.quantization is not None:
            from mmemb_r1.training.adapters import quantization_config

            options["quantization_config"] = quantization_config(**self.quantization)
            options["device_map"] = {"": device}
        local = Path(self.model).is_dir()
        try:
            return MMEmbR1Module.load(self.model, local_files_only=local, model_kwargs=options)
        except ImportError as error:
            if not (attention := options.get("attn_implementation")):
                raise
            raise ValueError(
                f"model.attn_implementation {attention!r} can't be used here ({str(error).splitlines()[0]}). Install "
                "it (pip install flash-attn, on a machine with a CUDA GPU), or leave the option out: sdpa, the "
                "default, is part of torch"
            ) from error

    def peft_config(self, model: Any) -> Any | None:
        """Make the configuration of the adapters that `lora` asks for; `None` if it asks for none."""
        if self.lora is None:
            return None
        from mmemb_r1.training.adapters import lora_config

        options = {
            name: as_number(name, value, 0.0 if name == "dropout" else None) for name, value in self.lora.items()
        }
        try:
            return lora_config(model, **options)
        except ValueError as error:
            raise ValueError(f"lora: {error}") from error


def table_facts(tables: Mapping[str, Source | None]) -> dict[str, str]:
    """Tell for the model card which tables a phase read, by their names and contents; those not given are left out."""
    return {
        f"{name.replace('_', ' ')} table": f"{table_name(table)}, SHA-256 {table_digest(table)}"
        for name, table in tables.items()
        if table is not None
    }


def chosen_rows(tasks: Sequence[str] | None, per_task: int | None) -> dict[str, str]:
    """Tell for the model card which rows of the pairs table a phase took, if it did not take all."""
    parts = [] if tasks is None else [f"tasks {', '.join(tasks)}"]
    parts += [] if per_task is None else [f"the first {per_task:,} of each task"]
    return {"rows of the pairs table": "; ".join(parts)} if parts else {}


def read_recipe(path: Path | None, run_class: type[TrainingRun]) -> dict[str, Any]:
    """
    Read a YAML file as arguments of a run: `JointRun(..., **read_recipe(path, JointRun))`.

    It maps fields of the config to values, and may hold a mapping for each section of the run. Anything else is a
    `ValueError`.
    """
    settings, found = read_settings(path), {}
    for name, argument in run_class.sections.items():
        if name not in settings:
            continue
        found[argument] = section = settings.pop(name)
        if not isinstance(section, dict):
            raise ValueError(
                f"{path}: {name} holds a {type(section).__name__}; it has to map options to values, {{}} for the "
                "defaults"
            )
        _check_names(section, path)
    try:
        check_fields(settings, run_class.config_class, also=run_class.sections)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return {"settings": settings, **found}


def read_settings(path: Path | None) -> dict[str, Any]:
    """Read a YAML file that maps names to values; a `ValueError` if it does not. Default: there are none."""
    if path is None:
        return {}
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a {type(settings).__name__}; it has to map fields to values")
    _check_names(settings, path)
    return settings


def _check_names(settings: Mapping[Any, Any], path: Path | None) -> None:
    """Refuse keys that are no text: YAML takes `3`, `true` and nothing for other values."""
    if odd := [name for name in settings if not isinstance(name, str)]:
        raise ValueError(f"{path} has the key {odd[0]!r:.80}; it has to map names to values")


def check_fields(names: Collection[str], config_class: type, also: Collection[str] = ()) -> None:
    """
    Check that a config has all of these fields; the `ValueError` names the new name of a field, or the nearest one,
    of the fields and what `also` would be known there.
    """
    known = [one.name for one in dataclasses.fields(config_class)]
    for name in sorted(set(names) - set(known)):
        if new := getattr(config_class, "renamed_fields", {}).get(name):
            hint = f"; it is called {new!r} now"
        else:
            hint = nearest_name(name, [*known, *also]) or "; see `mmemb-r1 train PHASE --help` for all of them"
        raise ValueError(f"{config_class.__name__} has no field {name!r}{hint}")


def check_types(settings: Mapping[str, Any], config_class: type) -> None:
    """
    Check that each value is of a type that its field takes, as far as the config tells, and that no number is NaN.

    Raises:
        ValueError: naming the field, the value and what is allowed.
    """
    for name, value in settings.items():
        kind = _types(config_class)[name]
        if not _is_of(value, kind) or (isinstance(value, float) and math.isnan(value)):
            allowed = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
            raise ValueError(f"{name} is {value!r:.80}; {config_class.__name__} takes {allowed} there")


@cache
def _types(config_class: type) -> dict[str, Any]:
    return get_type_hints(config_class)


def _is_of(value: Any, kind: Any) -> bool:
    """
    Tell whether a value as YAML gives it is of a type; of one that YAML does not know, every value may be.

    >>> _is_of(3, float), _is_of(True, int), _is_of("cosine", str | None), _is_of([], int | float)
    (True, False, True, False)
    """
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(_is_of(value, part) for part in get_args(kind))
    if origin is Literal:
        return value in get_args(kind)
    kind = origin or kind
    if kind in (int, float):
        return isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if kind in (list, tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, kind) if kind in (bool, str, dict, NoneType) else True


def as_number(name: str, value: Any, default: Any) -> Any:
    """
    Convert a number that YAML took for text, where the default is a number.

    >>> as_number("learning_rate", "5e-4", 5e-5), as_number("lr_scheduler_type", "cosine", "linear")
    (0.0005, 'cosine')
    """
    if not isinstance(value, str) or not isinstance(default, float):
        return value
    try:
        return float(value)
    except ValueError as error:
        raise ValueError(f"{name}: {value!r} is no number") from error


def train_in_folder(trainer: Any, run: TrainingRun, settlement: Settlement | None = None, **facts: Any) -> bool:
    """
    Train, from the last complete checkpoint of the run if there is one, unless the trained model is saved already.

    The folder is claimed only now, so that settings which are refused do not occupy it; `facts` make this run another
    one as well, and a folder that was begun with others is a `ValueError`. So do the rows that a `settlement` leaves
    out, which are listed in the folder.

    Returns:
        Whether the model has to be saved; `False` if it was before.
    """
    record = run.output / "run.json"
    if run.accept_changes:
        record.unlink(missing_ok=True)
    hint = "Choose another folder, remove it, or go on in it all the same with --accept-changes."
    settled = {} if settlement is None else settlement.facts()
    record_run(record, run.identity() | facts | settled, hint=hint)
    if settlement is not None and trainer.is_world_process_zero():
        write_skipped(run.output, settlement.skipped)
    checkpoint = last_checkpoint(run.output / "checkpoints")
    if checkpoint is not None and is_finished(run, Path(checkpoint), trainer.args):
        return False
    if isinstance(trainer, PhaseTrainer):
        trainer.facts |= run.told()
        if checkpoint is not None:
            trainer.facts = with_changes(trainer.facts, Path(checkpoint))
    with explained_writing(run.output):
        trainer.train(resume_from_checkpoint=checkpoint)
    return True


def train_phase(trainer: Any, run: PhaseRun, notify: Callable[[str], None], evaluates: bool) -> dict[str, float]:
    """
    Train in the folder of a run, see [`train_in_folder`], and save the trained model, see [`save_trained`].

    Args:
        trainer: of the phase, with its `settlement` and `facts`.
        run: the phase.
        notify: is called in the main process if there is nothing to do.
        evaluates: whether the trainer has pairs to evaluate on at the end.

    Returns:
        What was evaluated; nothing if the phase was finished before.
    """
    if not train_in_folder(trainer, run, trainer.settlement, weights=trainer.facts["started from weights"]):
        if trainer.is_world_process_zero():
            notify("the phase is finished already; nothing is done again")
        return {}
    measured = trainer.evaluate() if evaluates else {}
    with explained_writing(run.output):
        save_trained(trainer, run)
    return {name: value for name, value in measured.items() if isinstance(value, float)}


def is_finished(run: TrainingRun, checkpoint: Path, config: Any) -> bool:
    """
    Tell whether a run was trained as long as its config wants, as its last checkpoint says, and its model was saved.
    """
    record = run.output / "model" / TRAINING_FILE
    if not record.is_file():
        return False
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    wanted = state["max_steps"] if config.max_steps > 0 else state["num_train_epochs"]
    as_long = wanted == (config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs))
    steps = json.loads(record.read_text(encoding="utf-8")).get("steps")
    return as_long and steps == state["global_step"] == state["max_steps"]


def save_trained(trainer: Any, run: PhaseRun) -> None:
    """
    Save a trained model in `output/model`, complete and with its card, and adapters in `output/adapter` as well.

    All processes of a run have to call it; the main one saves, and pushes the model if `push_to_hub` is set. Sharded
    weights are gathered. The model is put together anew from the checkpoint that training began with, in its dtype:
    adapters are merged into weights as they are stored, also where training saw them quantised.
    """
    from accelerate.utils import is_peft_model

    from mmemb_r1 import MMEmbR1
    from mmemb_r1.model_card import write_model_card
    from mmemb_r1.modeling.modeling_mmemb_r1 import write_modules
    from mmemb_r1.training.adapters import load_adapters, merged

    state = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.is_world_process_zero():
        return
    trained = trainer.accelerator.unwrap_model(trainer.model)
    folder = run.output / "model"
    model = MMEmbR1(run.model, device="cpu")
    if is_peft_model(trained):
        trained.save_pretrained(str(run.output / "adapter"), state_dict=state)
        trainer.processing_class.save_pretrained(run.output / "adapter")
        write_modules(run.output / "adapter")
        as_new((run.output / "adapter").glob("*.safetensors"))
        model[0].model = merged(load_adapters(model[0].model, run.output / "adapter"))
    else:
        model[0].model.load_state_dict(state)
    if not str(trainer.facts.get("rationales", "")).startswith(NO_RATIONALES):
        model[0].model.config.thinker_form = "tokens"  # it has learnt to read rationales there
    model.save_pretrained(str(folder), create_model_card=False)
    write_model_card(folder, training=trainer.facts | {"steps": trainer.state.global_step})
    if trainer.args.push_to_hub:
        trainer.push_folder(folder, "End of training")
