"""`mmemb-r1 train gate`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.cli._options import add_row_options
from mmemb_r1.cli._training import require_file

if TYPE_CHECKING:
    from mmemb_r1.training import GateConfig


HELP = """\
Teach a checkpoint's gate where thinking pays; everything else stays as it is. `mmemb-r1 train gate` embeds the queries
of a pairs table (Parquet with the columns pair_id, query, target and, optionally, task) without and with rationales,
and fits the gate to what the rationales add to the probability of the target. It is then measured on held-out queries.
The pairs should be new to the model: what it knows by heart it finds without thinking.

The output is a folder: model/ (the checkpoint), gate.json (what was measured) and embedded/ (vectors and states; may
be removed). A run that was stopped goes on with the same command. YAML of --config: fields of GateConfig."""

OPTIONS = {
    "negatives": "negatives",
    "rounds": "max_reasoning_rounds",
    "holdout": "holdout",
    "cost": "cost",
    "batch_size": "batch_size",
    "seed": "seed",
}  # of the command line -> fields of the config


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint after the joint phase: a folder")
    parser.add_argument("--pairs", required=True, type=Path, metavar="FILE", help="the pairs table, Parquet")
    add_row_options(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where the trained checkpoint goes")
    parser.add_argument(
        "--candidates",
        type=Path,
        metavar="FILE",
        help="candidate_set, candidate_id and input, Parquet: a target competes with the set that the columns "
        "candidate_set and target_id of the pairs name",
    )
    parser.add_argument(
        "--negatives",
        metavar="NAME",
        help="without --candidates a target competes with all targets of its task: table (the default), or with those "
        "of a random batch: in-batch",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="rationales of a query at most; default: the model's")
    parser.add_argument("--holdout", type=float, metavar="SHARE", help="of the queries, to measure on; default: 0.2")
    parser.add_argument(
        "--cost",
        type=float,
        metavar="X",
        help="gain in the target's probability that pays; default: 0.02",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of what is held out, and of batches; default: 0")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML: fields of GateConfig and their values")
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: 32")
    parser.add_argument("--device", help="say cpu or cuda:1; default: the best one there is")


def run(args: argparse.Namespace) -> int:
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.model_card import write_model_card
    from mmemb_r1.runs import record_run, write_json
    from mmemb_r1.training.base_trainer import with_earlier_phases
    from mmemb_r1.training.gate_phase import GATE_FILE, gate_facts, gate_report, train_gate
    from mmemb_r1.training.tables import read_pairs
    from mmemb_r1.training.vlm import weights_fingerprint

    config = read_config(args)
    pairs = read_pairs(args.pairs, tasks=args.tasks, per_task=args.per_task)
    candidates = read_pairs(args.candidates) if args.candidates else None
    model = MMEmbR1(args.model, device=args.device)
    weights = weights_fingerprint(model[0].model)
    files = {
        name: sha256(path.read_bytes()).hexdigest()
        for name in ("pairs", "candidates")
        if (path := getattr(args, name))
    }
    rows = {name: getattr(args, name) for name in ("tasks", "per_task")}
    record_run(args.output / "run.json", {"weights": weights, **files, **rows, "config": asdict(config)})
    report, folder = args.output / GATE_FILE, args.output / "model"
    if report.is_file():
        facts: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        print("the gate was trained before; nothing is done again", file=sys.stderr)
    else:
        facts = train_gate(model, pairs, config, candidates, folder=args.output / "embedded")
        model.save_pretrained(str(folder), create_model_card=False)
        write_model_card(folder, training=with_earlier_phases(gate_facts(facts, weights), args.model))
        write_json(report, facts)
    print(*gate_report(facts), sep="\n")
    print(f"the trained checkpoint is in {folder}")
    print("next: mmemb-r1 train adaptive, or, to choose how often it thinks, mmemb-r1 calibrate")
    return 0


def read_config(args: argparse.Namespace) -> GateConfig:
    """Make the config of YAML and options; options win."""
    from mmemb_r1.training import GateConfig
    from mmemb_r1.training.run import check_fields, read_settings

    require_file("--config", args.config)
    values = read_settings(args.config)
    check_fields(values, GateConfig)
    given = {field: getattr(args, option) for option, field in OPTIONS.items() if getattr(args, option) is not None}
    return GateConfig(**{**values, **given})
