"""`mmemb-r1 train`: the training phases on a pairs table."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmemb_r1.cli import _train_gate, _train_rounds
from mmemb_r1.cli._training import PhaseParser, add_phase_options, is_main_process, require_file, run_of

HELP = """\
Train a checkpoint, phase by phase. A run that was stopped goes on from its last checkpoint with the same command.
On several GPUs: accelerate launch -m mmemb_r1.cli train PHASE ..."""

JOINT_HELP = """\
Train reasoning and embedding together, on a pairs table (Parquet with the columns query, target and, optionally,
pair_id, task, negatives, query_rationale and target_rationale).

Every field of JointConfig is a flag, and a key of the YAML of --config; flags win. The YAML may hold three mappings
beside the fields:
  lora:          train adapters: r, alpha, dropout, target_modules, adapt_vision_tower, more of peft's LoraConfig
  quantization:  load the weights below the adapters quantised: load_in_4bit or load_in_8bit
  model:         dtype of the weights (float32, with adapters that of the checkpoint) and attn_implementation

On several GPUs: accelerate launch -m mmemb_r1.cli train joint ...
A run that was stopped goes on from its last checkpoint with the same command."""

ADAPTIVE_HELP = """\
Teach a checkpoint that reasons well when to reason at all, by GRPO on a pairs table (Parquet with the columns pair_id,
query, target and, optionally, task and negatives) whose pairs the joint phase has not seen.

Every field of AdaptiveGRPOConfig is a flag, and a key of the YAML of --config; flags win. The YAML may hold two
mappings beside the fields, lora and model, as for `mmemb-r1 train joint`.

On several GPUs: accelerate launch -m mmemb_r1.cli train adaptive ...
A run that was stopped goes on from its last checkpoint with the same command."""

CONFIGS = {
    "joint": "mmemb_r1.training.joint.config:JointConfig",
    "adaptive": "mmemb_r1.training.adaptive.config:AdaptiveGRPOConfig",
}


def configure(parser: argparse.ArgumentParser) -> None:
    phases = parser.add_subparsers(dest="phase", metavar="PHASE", required=True, parser_class=PhaseParser)
    for name, summary, description, add_options in (
        ("joint", "reasoning and embedding together", JOINT_HELP, configure_joint),
        ("gate", "where reasoning pays", _train_gate.HELP, _train_gate.configure),
        ("adaptive", "when to reason", ADAPTIVE_HELP, configure_adaptive),
        ("rounds", "rationales, selection, both phases, again", _train_rounds.HELP, _train_rounds.configure),
    ):
        phase = phases.add_parser(name, help=summary, description=description, config=CONFIGS.get(name))
        phase.formatter_class = argparse.RawDescriptionHelpFormatter
        add_options(phase)


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


def configure_adaptive(parser: argparse.ArgumentParser) -> None:
    add_phase_options(parser, "AdaptiveGRPOConfig", "a checkpoint after the joint phase")
    parser.add_argument(
        "--joint-pairs",
        type=Path,
        metavar="FILE",
        help="what the joint phase was trained on: its targets are negatives too; warns of pairs in both tables",
    )


def run(args: argparse.Namespace) -> int:
    for option in ("pairs", "rationales", "policy_pairs", "eval_pairs", "joint_pairs", "candidates"):
        require_file(f"--{option.replace('_', '-')}", getattr(args, option, None))
    phases = {"joint": run_joint, "gate": _train_gate.run, "adaptive": run_adaptive, "rounds": _train_rounds.run}
    return phases[args.phase](args)


def run_joint(args: argparse.Namespace) -> int:
    """`mmemb-r1 train joint`."""
    from mmemb_r1.training.joint.run import JointRun, train_joint

    rows = {"tasks": args.tasks, "per_task": args.per_task}
    joint = run_of(args, JointRun, **rows, rationales=args.rationales, eval_pairs=args.eval_pairs)
    measured = train_joint(joint, notify=print)
    if not is_main_process():
        return 0
    for name, value in measured.items():
        print(f"{name:28}{value:10.4f}")
    if joint.lora is not None:
        print(f"the adapters are in {joint.output / 'adapter'}")
    model = joint.output / "model"
    print(f"the trained checkpoint is in {model}")
    if joint.settings.get("gate_weight"):
        print(f"next: mmemb-r1 train adaptive --model {model} --pairs OTHER_PAIRS --output DIR")
    else:
        print('its gate was not trained: until then, embed with reasoning="always" or "never"')
        print(f"next: mmemb-r1 train gate --model {model} --pairs OTHER_PAIRS --output DIR")
    return 0


def run_adaptive(args: argparse.Namespace) -> int:
    """`mmemb-r1 train adaptive`."""
    from mmemb_r1.training.adaptive.run import AdaptiveRun, train_adaptive

    adaptive = run_of(args, AdaptiveRun, tasks=args.tasks, per_task=args.per_task, joint_pairs=args.joint_pairs)
    train_adaptive(adaptive, notify=print)
    if is_main_process():
        model = adaptive.output / "model"
        print(f"the trained checkpoint is in {model}")
        print(f"to reason on a given share of your inputs: mmemb-r1 calibrate --model {model} ...")
        print(f"next: mmemb-r1 evaluate --model {model} ...")
    return 0
