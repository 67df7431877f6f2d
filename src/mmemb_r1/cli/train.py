"""`mmemb-r1 train`: the training phases on a pairs table. The joint phase is here, the others are beside."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.cli import _train_adaptive, _train_gate, _train_rounds
from mmemb_r1.cli._training import add_phase_options

if TYPE_CHECKING:
    from datasets import Dataset


HELP = """\
Train a checkpoint. `mmemb-r1 train joint` runs the joint phase on a pairs table (Parquet with the columns query,
target and, optionally, pair_id, task, negatives, query_rationale and target_rationale).

The YAML of --config maps fields of JointConfig to values, and may hold three mappings beside them:
  lora:          train adapters: r, alpha, dropout, target_modules, adapt_vision_tower, more of peft's LoraConfig
  quantization:  load the weights below the adapters quantised: load_in_4bit or load_in_8bit
  model:         dtype of the weights (float32, with adapters that of the checkpoint) and attn_implementation
and augment_pictures: true, which shifts, turns and recolours every training picture a little.

On several GPUs: accelerate launch -m mmemb_r1.cli train joint ...
A run that was stopped goes on from its last checkpoint with the same command."""

SECTIONS = ("lora", "quantization", "model")
AUGMENT = "augment_pictures"
MODEL_OPTIONS = ("dtype", "attn_implementation")


def configure(parser: argparse.ArgumentParser) -> None:
    phases = parser.add_subparsers(dest="phase", metavar="PHASE", required=True)
    for name, summary, description, add_options in (
        ("joint", "thinking and embedding together", HELP, configure_joint),
        ("gate", "where thinking pays", _train_gate.HELP, _train_gate.configure),
        ("adaptive", "when to think", _train_adaptive.HELP, _train_adaptive.configure),
        ("rounds", "rationales, selection, both phases, again", _train_rounds.HELP, _train_rounds.configure),
    ):
        formatter = argparse.RawDescriptionHelpFormatter
        add_options(phases.add_parser(name, help=summary, description=description, formatter_class=formatter))


def configure_joint(parser: argparse.ArgumentParser) -> None:
    add_phase_options(parser, "JointConfig", "the checkpoint to start from")
    parser.add_argument(
        "--rationales",
        type=Path,
        metavar="FILE",
        help="selected.parquet of `mmemb-r1 select`, in place of the rationales in the pairs table",
    )
    parser.add_argument(
        "--eval-pairs", type=Path, metavar="FILE", help="pairs to measure the loss on, that are not trained on"
    )


def run(args: argparse.Namespace) -> int:
    for option in ("pairs", "rationales", "policy_pairs", "eval_pairs", "joint_pairs", "candidates"):
        _require_file(f"--{option.replace('_', '-')}", getattr(args, option, None))
    phases = {
        "joint": run_joint,
        "gate": _train_gate.run,
        "adaptive": _train_adaptive.run,
        "rounds": _train_rounds.run,
    }
    return phases[args.phase](args)


def run_joint(args: argparse.Namespace) -> int:
    """`mmemb-r1 train joint`."""

    from mmemb_r1.atlas import augment
    from mmemb_r1.cli._training import read_recipe, save_trained, train_in_folder, training_fields
    from mmemb_r1.training import JointConfig, JointTrainer
    from mmemb_r1.training.tables import read_pairs

    fields, sections = read_recipe(args.config, SECTIONS)
    augmented = fields.pop(AUGMENT, False)
    fields = training_fields(args, JointConfig, fields)
    arguments = JointConfig(**fields)
    _check_sections(args, sections, arguments)
    # tables first: what is wrong with them should not wait for a model
    pairs = read_pairs(args.pairs)
    rationales = read_pairs(args.rationales) if args.rationales else None
    eval_pairs = read_pairs(args.eval_pairs) if args.eval_pairs else None
    module = load_module(args, sections, arguments.device)
    trainer = JointTrainer(
        model=module.model.train(),
        args=arguments,
        train_dataset=pairs,
        processing_class=module.processor,
        eval_dataset=eval_pairs,
        rationales=rationales,
        augment=augment if augmented else None,
        peft_config=peft_config(args, sections, module.model),
    )
    if trainer.is_fsdp_enabled and "lora" in sections and module.model.config.tie_word_embeddings:
        raise ValueError(
            "FSDP can't shard adapters on a model whose input and output embeddings are one tensor; leave FSDP out: "
            "accelerate launch --multi_gpu shares the pairs among GPUs, and adapters need little memory"
        )
    speaks = trainer.is_world_process_zero()
    if rationales is not None and speaks:
        print(said_of(pairs, rationales, args.rationales))
    train_in_folder(trainer, args, fields, **facts(args, sections, augmented))
    measured = trainer.evaluate() if eval_pairs is not None else {}
    save_trained(trainer, args.model, args.output)
    if speaks:
        tell(args.output, sections, arguments, measured)
    return 0


def tell(output: Path, sections: Mapping[str, Any], arguments: Any, measured: Mapping[str, Any]) -> None:
    """Print what was measured and where everything is."""
    for name, value in measured.items():
        if isinstance(value, float):
            print(f"{name:28}{value:10.4f}")
    if "lora" in sections:
        print(f"the adapters are in {output / 'adapter'}")
    print(f"the trained checkpoint is in {output / 'model'}")
    if not arguments.gate_weight:
        print('its gate was not trained: embed with reasoning="always" or "never", or lower the gate threshold')


def load_module(args: argparse.Namespace, sections: Mapping[str, dict[str, Any]], device: Any) -> Any:
    """
    The model and the processor of a checkpoint; on the CPU, from where the trainer moves them, if not quantised.

    Raises:
        ValueError: if there is no checkpoint, or it is a backbone without gate and embedding head.
    """
    from transformers import AutoConfig

    from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Config
    from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module

    local = Path(args.model).is_dir()
    try:
        config = AutoConfig.from_pretrained(args.model, local_files_only=local, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"--model {args.model}: no checkpoint could be loaded from there ({reason})") from error
    if not isinstance(config, MMEmbR1Config):
        raise ValueError(
            f"--model {args.model} is a {config.model_type} model, no mmemb-r1 checkpoint; make one of it: "
            f"mmemb-r1 init --vlm {args.model} --output DIR"
        )
    # small steps vanish in bfloat16 weights; below adapters, which are float32, they stay as they are
    options = {"dtype": "auto" if "lora" in sections else "float32", **sections.get("model", {})}
    if "quantization" in sections:
        from mmemb_r1.training.adapters import quantization_config

        options["quantization_config"] = quantization_config(**sections["quantization"])
        options["device_map"] = {"": device}  # it can't be moved afterwards
    return MMEmbR1Module.load(args.model, local_files_only=local, model_kwargs=options)


def peft_config(args: argparse.Namespace, sections: Mapping[str, dict[str, Any]], model: Any) -> Any | None:
    """What `lora:` asks for, if it is there."""
    if "lora" not in sections:
        return None
    from mmemb_r1.cli._training import as_number
    from mmemb_r1.training.adapters import lora_config

    options = {
        name: as_number(name, value, 0.0 if name == "dropout" else None) for name, value in sections["lora"].items()
    }
    try:
        return lora_config(model, **options)
    except ValueError as error:
        raise ValueError(f"--config {args.config}: lora: {error}") from error


def facts(args: argparse.Namespace, sections: Mapping[str, dict[str, Any]], augmented: bool) -> dict[str, Any]:
    """What makes a run another one, beside the fields of its config."""
    from hashlib import sha256

    said = {"rationales": sha256(args.rationales.read_bytes()).hexdigest()} if args.rationales else {}
    return {**said, **({AUGMENT: True} if augmented else {}), **sections}


def said_of(pairs: Dataset, rationales: Dataset, path: Path) -> str:
    """How many pairs have a rationale now, and where their own ones went."""
    kept = set(rationales["pair_id"]).intersection(pairs["pair_id"])
    text = f"{path}: rationales for {len(kept):,} of {len(pairs):,} pairs; the others train the direct path alone"
    own = [name for name in ("query_rationale", "target_rationale") if name in pairs.column_names]
    return (
        f"{text}. They replace the column{'s' if len(own) > 1 else ''} {' and '.join(own)} of the pairs"
        if own
        else text
    )


def _require_file(option: str, path: Path | None) -> None:
    if path is None or path.is_file():
        return
    inside = path / "selected.parquet"
    hint = f"is a folder; say {inside}" if inside.is_file() else "there is no such file"
    raise ValueError(f"{option} {path}: {hint}")


def _check_sections(args: argparse.Namespace, sections: Mapping[str, dict[str, Any]], arguments: Any) -> None:
    """Refuse what does not go together, before anything is loaded."""
    from mmemb_r1.training.vlm import DTYPES

    if unknown := sorted(set(sections.get("model", {})) - set(MODEL_OPTIONS)):
        raise ValueError(
            f"--config {args.config}: model has no option {unknown[0]!r}; allowed: {', '.join(MODEL_OPTIONS)}"
        )
    dtype = sections.get("model", {}).get("dtype", "auto")
    if dtype not in DTYPES:
        raise ValueError(f"--config {args.config}: model.dtype {dtype!r}; allowed: {', '.join(DTYPES)}")
    if "quantization" in sections and "lora" not in sections:
        raise ValueError(f"--config {args.config}: quantised weights can't be trained; add lora: {{}} for adapters")
    if sections.get("lora", {}).get("adapt_vision_tower") and arguments.freeze_vision_tower:
        raise ValueError(
            f"--config {args.config}: lora.adapt_vision_tower trains what freeze_vision_tower freezes; leave out one"
        )
    if args.rationales and not arguments.use_rationales:
        raise ValueError(f"--rationales {args.rationales} would not be used: use_rationales is false; leave out one")
