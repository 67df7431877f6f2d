"""`mmemb-r1 train`: the training phases on a pairs table."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from mmemb_r1.cli import _train_rounds
from mmemb_r1.cli._options import add_thinker_options, check_table, pairs_options, use_thinker
from mmemb_r1.cli._training import (
    PhaseParser,
    add_files,
    add_phase_options,
    add_training_options,
    flags_of,
    is_main_process,
    run_of,
)

RUNS = """\
A run that was stopped goes on from its last checkpoint with the same command.
On several GPUs: accelerate launch -m mmemb_r1.cli train PHASE ..."""
HELP = f"Train a checkpoint, phase by phase. {RUNS}"

JOINT_HELP = f"""\
Train reasoning and embedding together, on a pairs table (with the columns query, target and, optionally,
pair_id, task, negatives, query_rationale and target_rationale).

Every field of JointConfig is a flag, and a key of the YAML of --config; flags win. The YAML may hold four mappings
beside the fields:
  lora:          train adapters: r, alpha, dropout, target_modules, adapt_vision_tower, more of peft's LoraConfig
  quantization:  load the weights below the adapters quantised: load_in_4bit or load_in_8bit
  columns:       our names of columns -> those of the table, as --columns
  model:         dtype of the weights (float32, with adapters that of the checkpoint) and attn_implementation

{RUNS}"""

GATE_HELP = """\
Teach a checkpoint's gate where thinking pays; everything else stays as it is. `mmemb-r1 train gate` embeds the queries
of a pairs table (with the columns query, target and, optionally, pair_id and task) without and with rationales,
and fits the gate to what the rationales add to the probability of the target. It is then measured on held-out queries.
The pairs should be new to the model: what it knows by heart it finds without thinking. A model that has not learnt to
think can be given --rationales of these queries, or a --thinker, which will write them later on, too.

Every field of GateConfig is a flag, and a key of the YAML of --config; flags win. The output is a folder: model/ (the
checkpoint), gate.json (what was measured) and embedded/ (vectors and states; may be removed). A run that was stopped
goes on with the same command; with another --cost, --token_price, --holdout, --temperature or --weight_decay it fits
the gate anew to what was embedded."""

ADAPTIVE_HELP = f"""\
Teach a checkpoint that reasons well when to reason at all, by GRPO on a pairs table (with the columns query,
target and, optionally, pair_id, task and negatives) whose pairs the joint phase has not seen.

Every field of AdaptiveGRPOConfig is a flag, and a key of the YAML of --config; flags win. The YAML may hold four
mappings beside the fields, lora, quantization, columns and model, as for `mmemb-r1 train joint`.

{RUNS}"""

CONFIGS = {
    "joint": "mmemb_r1.training.joint.config:JointConfig",
    "gate": "mmemb_r1.training.gate_phase:GateConfig",
    "adaptive": "mmemb_r1.training.adaptive.config:AdaptiveGRPOConfig",
}


def configure(parser: argparse.ArgumentParser) -> None:
    phases = parser.add_subparsers(dest="phase", metavar="PHASE", required=True, parser_class=PhaseParser)
    for name, summary, description, add_options in (
        ("joint", "reasoning and embedding together", JOINT_HELP, configure_joint),
        ("gate", "where reasoning pays", GATE_HELP, configure_gate),
        ("adaptive", "when to reason", ADAPTIVE_HELP, configure_adaptive),
        ("rounds", "rationales, selection, both phases, again", _train_rounds.HELP, _train_rounds.configure),
    ):
        phase = phases.add_parser(name, help=summary, description=description, config=CONFIGS.get(name))
        phase.formatter_class = argparse.RawDescriptionHelpFormatter
        add_options(phase)
        if name in CONFIGS:
            add_training_options(phase, CONFIGS[name].rpartition(":")[2], cpu=name != "gate")


def configure_joint(parser: argparse.ArgumentParser) -> None:
    add_phase_options(parser, "the checkpoint to start from")
    rationales = "selected.parquet of `mmemb-r1 select`, in place of the rationales in the pairs table"
    eval_pairs = "pairs to measure the loss on, that are not trained on"
    add_files(parser, {"--rationales": rationales, "--eval-pairs": eval_pairs})


def configure_gate(parser: argparse.ArgumentParser) -> None:
    add_phase_options(parser, "a checkpoint, after the joint phase or converted from a public embedder")
    candidates = (
        "candidate_set, candidate_id and input, Parquet: a target competes with the set that the columns "
        "candidate_set and target_id of the pairs name"
    )
    rationales = (
        "rationales of these queries, in place of those that the model writes: what `mmemb-r1 select` or `mmemb-r1 "
        "rationales` wrote; queries without one are left out"
    )
    add_files(parser, {"--candidates": candidates, "--rationales": rationales})
    add_thinker_options(parser)
    parser.add_argument("--device", help="say cpu or cuda:1; default: the best one there is")


def configure_adaptive(parser: argparse.ArgumentParser) -> None:
    add_phase_options(parser, "a checkpoint after the joint phase")
    joint = "what the joint phase was trained on: its targets are negatives too; warns of pairs in both tables"
    add_files(parser, {"--joint-pairs": joint, "--eval-pairs": "other pairs, to evaluate on"})


def run(args: argparse.Namespace) -> int:
    if args.phase == "gate" and args.rationales is not None and (args.rationales / "shards").is_dir():
        args.rationales = args.rationales / "shards"  # what `mmemb-r1 rationales` wrote
    for option in ("pairs", "rationales", "policy_pairs", "eval_pairs", "joint_pairs", "candidates"):
        path = getattr(args, option, None)
        check_table(f"--{option.replace('_', '-')}", path, of_hub=option.endswith("pairs"))
    phases = {"joint": run_joint, "gate": run_gate, "adaptive": run_adaptive, "rounds": _train_rounds.run}
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


def run_gate(args: argparse.Namespace) -> int:
    """`mmemb-r1 train gate`."""
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.model_card import write_model_card
    from mmemb_r1.runs import record_run, write_json
    from mmemb_r1.tables.pairs import table_digest
    from mmemb_r1.training.base_trainer import with_earlier_phases
    from mmemb_r1.training.gate_phase import (
        FIT_SETTINGS,
        GATE_FILE,
        GateConfig,
        gate_facts,
        gate_report,
        train_gate,
    )
    from mmemb_r1.training.run import check_fields, check_types, chosen_rows, read_settings, table_facts
    from mmemb_r1.training.tables import read_pairs
    from mmemb_r1.training.vlm import weights_fingerprint

    settings = read_settings(args.config)
    args.columns = args.columns or settings.pop("columns", None)
    check_fields(settings, GateConfig)
    check_types(settings, GateConfig)
    config = GateConfig(**settings | flags_of(args))
    pairs = read_pairs(args.pairs, **pairs_options(args))
    candidates, rationales = (
        read_pairs(path, base=args.base) if path else None for path in (args.candidates, args.rationales)
    )
    model = MMEmbR1(args.model, device=args.device)
    use_thinker(model, args)
    weights = weights_fingerprint(model[0].model)
    tables = {"pairs": args.pairs, "candidates": args.candidates, "rationales": args.rationales}
    identity: dict[str, Any] = {name: table_digest(path) for name, path in tables.items() if path}
    identity |= {} if args.columns is None else {"columns": args.columns}
    embedded = asdict(config)
    fit = {name: embedded.pop(name) for name in FIT_SETTINGS}
    if not config.second_look:
        del embedded["second_look"]  # as in the folders of runs from before it was known
    identity |= {"weights": weights, "tasks": args.tasks, "per_task": args.per_task, "config": embedded}
    if model.thinking is not None:
        identity["thinker"] = model.thinking.identity
        model.embedding_cache = args.output / "embedded"  # what a thinker has written is not paid for again
    record_run(args.output / "run.json", identity)
    report, folder = args.output / GATE_FILE, args.output / "model"
    facts: dict[str, Any] = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    if facts.get("fit") == fit:
        print("the gate was trained before; nothing is done again", file=sys.stderr)
    else:
        report.unlink(missing_ok=True)  # of a fit with other settings
        options = {"rationales": rationales, "folder": args.output / "embedded"}
        facts = train_gate(model, pairs, config, candidates, **options) | {"fit": fit}
        told = gate_facts(facts, weights, pairs) | table_facts(tables) | chosen_rows(args.tasks, args.per_task)
        told = with_earlier_phases(told, model[0].model)
        model.save_pretrained(str(folder), create_model_card=False)
        write_model_card(folder, training=told)
        write_json(report, facts)
    print(*gate_report(facts), f"the trained checkpoint is in {folder}", sep="\n")
    print("next: mmemb-r1 train adaptive, or, to choose how often it thinks, mmemb-r1 calibrate")
    return 0


def run_adaptive(args: argparse.Namespace) -> int:
    """`mmemb-r1 train adaptive`."""
    from mmemb_r1.training.adaptive.run import AdaptiveRun, train_adaptive

    tables = {"joint_pairs": args.joint_pairs, "eval_pairs": args.eval_pairs}
    adaptive = run_of(args, AdaptiveRun, tasks=args.tasks, per_task=args.per_task, **tables)
    measured = train_adaptive(adaptive, notify=print)
    if is_main_process():
        shown = ("eval_reward", "eval_gate", "eval_never", "eval_always", "eval_auto")
        for name in (name for name in measured if name.startswith(shown)):
            print(f"{name:28}{measured[name]:10.4f}")
        model = adaptive.output / "model"
        print(f"the trained checkpoint is in {model}")
        print(f"to reason on a given share of your inputs: mmemb-r1 calibrate --model {model} ...")
        print(f"next: mmemb-r1 evaluate --model {model} ...")
    return 0
