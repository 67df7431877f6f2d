"""`mmemb-r1 train rounds`: the whole method again and again, each time with the last model among the workers."""

from __future__ import annotations

import argparse
import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

HELP = """\
Run the stages one after another, --n times: rationales from a pool, selection, joint phase, adaptive phase. From the
second round on, the checkpoint that is the best so far is a worker too, and proposes what it would think.

After each round the new checkpoint is measured on --eval-pairs. It takes the place of the one before only if it is
better; otherwise the next round starts from that one again. A round that would only repeat the last one ends the run.
OUTPUT/model is the best of all; OUTPUT/rounds.json tells the scores. A run that was stopped goes on with the same
command, and with a larger --n it goes on from its end."""

SETTINGS = ("model", "evaluator", "selection", "margin", "samples", "seed")  # that make a run another one
NOTES, BEST = "rounds.json", "model"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="the checkpoint to start from, a folder")
    parser.add_argument("--pairs", required=True, type=Path, metavar="FILE", help="pairs of the joint phase, Parquet")
    parser.add_argument(
        "--policy-pairs", required=True, type=Path, metavar="FILE", help="pairs of the adaptive phase, others"
    )
    parser.add_argument(
        "--eval-pairs", required=True, type=Path, metavar="FILE", help="pairs that checkpoints are compared on, others"
    )
    parser.add_argument("--pool", required=True, type=Path, metavar="FILE", help="the workers, YAML")
    parser.add_argument("--evaluator", required=True, metavar="DIR", help="who judges, as for `mmemb-r1 select`")
    parser.add_argument("--n", type=int, default=2, metavar="N", help="rounds; default: 2")
    parser.add_argument("--joint-config", type=Path, metavar="FILE", help="YAML, as for `mmemb-r1 train joint`")
    parser.add_argument("--adaptive-config", type=Path, metavar="FILE", help="YAML, as for `mmemb-r1 train adaptive`")
    parser.add_argument("--selection", metavar="NAME", help="as for `mmemb-r1 select`; default: counterfactual")
    parser.add_argument("--margin", type=float, metavar="X", help="as for `mmemb-r1 select`; default: 0")
    parser.add_argument("--samples", type=int, metavar="K", help="rationales per input of each worker")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of rationales and selection; default: 0")
    parser.add_argument("--cpu", action="store_true", help="work on the CPU, train in float32")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where everything goes")


def run(args: argparse.Namespace) -> int:
    check(args)
    output, notes = args.output, read_notes(args.output)
    claim_folder(args)
    start = Path(args.model)
    if not notes:
        notes = [{"round": 0, "model": str(start), "score": measure(start, args), "kept": True}]
        write_notes(output, notes)
        tell(notes[-1])
    while len(notes) <= args.n:
        number, best = len(notes), best_of(notes)
        if number > 1 and proposers(notes) == proposers(notes[:-1]) and best == best_of(notes[:-1]):
            print(
                f"round {number} would repeat round {number - 1}: nothing better came of it, and nobody new proposes"
            )
            break
        draw(args, notes)
        for command in stages(args, number, Path(best["model"])):
            run_command(command)
        made = output / f"round-{number}" / "adaptive" / "model"
        score = measure(made, args)
        notes.append({"round": number, "model": str(made), "score": score, "kept": score > best["score"]})
        write_notes(output, notes)
        tell(notes[-1])
    replace_model(output, Path(best_of(notes)["model"]))
    best = best_of(notes)
    print(f"the best is that of round {best['round']} ({best['score']:.4f}); it is in {output / BEST}")
    return 0


def check(args: argparse.Namespace) -> None:
    """Everything that can be found wrong before the first stage, which may be hours before the last."""
    from mmemb_r1.cli._training import read_recipe, training_fields
    from mmemb_r1.cli.select import kind_of
    from mmemb_r1.training import AdaptiveGRPOConfig, JointConfig
    from mmemb_r1.training.rationales.pool import load_pool
    from mmemb_r1.training.tables import PAIR_COLUMNS, read_pairs

    if args.n < 1:
        raise ValueError(f"--n {args.n}; allowed: 1 or more")
    if not (Path(args.model) / "config.json").is_file():
        raise ValueError(f"--model {args.model}: there is no checkpoint; pull one of the Hub first")
    tables = {}
    for option in ("pairs", "policy_pairs", "eval_pairs"):
        tables[f"--{option.replace('_', '-')}"] = set(read_pairs(getattr(args, option), PAIR_COLUMNS)["pair_id"])
    for name in ("--pairs", "--policy-pairs"):
        if shared := sorted(tables[name] & tables["--eval-pairs"]):
            raise ValueError(
                f"{len(shared)} pairs of --eval-pairs are in {name} too, {shared[0]!r} for example; checkpoints have "
                "to be compared on others"
            )
    load_pool(args.pool, samples=args.samples)
    kind_of(args.evaluator)
    from mmemb_r1.cli import _train_adaptive, train

    for path, config, sections in (
        (args.joint_config, JointConfig, (*train.SECTIONS, train.AUGMENT)),
        (args.adaptive_config, AdaptiveGRPOConfig, _train_adaptive.SECTIONS),
    ):
        fields = read_recipe(path)[0]
        for section in sections:
            fields.pop(section, None)
        told = argparse.Namespace(config=path, output=args.output, max_steps=None, cpu=args.cpu)
        config(**training_fields(told, config, fields))


def claim_folder(args: argparse.Namespace) -> None:
    """Another run must not go on in this one's folder; a larger --n may."""
    from mmemb_r1.runs import record_run

    files = ("pairs", "policy_pairs", "eval_pairs", "pool", "joint_config", "adaptive_config")
    digests = {
        name: sha256(getattr(args, name).read_bytes()).hexdigest() for name in files if getattr(args, name) is not None
    }
    facts = {name: getattr(args, name) for name in SETTINGS}
    record_run(args.output / "run.json", {**facts, **digests})


def draw(args: argparse.Namespace, notes: list[dict[str, Any]]) -> None:
    """The prior of a round, in one folder for all rounds: of a pool that grew only the new worker draws."""
    from mmemb_r1.training.rationales.checkpoint_worker import CheckpointWorker
    from mmemb_r1.training.rationales.draw import draw_rationales
    from mmemb_r1.training.rationales.pool import load_pool
    from mmemb_r1.training.tables import PAIR_COLUMNS, read_pairs

    options: dict[str, Any] = {"device": "cpu" if args.cpu else None}
    if args.samples is not None:
        options["num_samples"] = args.samples
    workers = [
        *load_pool(args.pool, samples=args.samples),
        *(
            CheckpointWorker(name=f"round-{note['round']}", model=note["model"], **options)
            for note in proposers(notes)
        ),
    ]
    summary = draw_rationales(read_pairs(args.pairs, PAIR_COLUMNS), workers, rationales_of(args), seed=args.seed)
    print(*summary.lines(), sep="\n")


def rationales_of(args: argparse.Namespace) -> Path:
    return args.output / "rationales"


def stages(args: argparse.Namespace, number: int, model: Path) -> list[list[str]]:
    """The commands of a round after its rationales were drawn: selection, joint phase, adaptive phase."""
    folder = args.output / f"round-{number}"
    cpu = ["--cpu"] if args.cpu else []
    joint = ["train", "joint", "--model", str(model), "--pairs", str(args.pairs), *cpu]
    joint += ["--rationales", str(folder / "selection" / "selected.parquet"), "--output", str(folder / "joint")]
    adaptive = ["train", "adaptive", "--model", str(folder / "joint" / "model"), *cpu]
    adaptive += ["--pairs", str(args.policy_pairs)]
    adaptive += ["--joint-pairs", str(args.pairs), "--output", str(folder / "adaptive")]
    select = ["select", "--pairs", str(args.pairs), "--rationales", str(rationales_of(args))]
    select += ["--evaluator", args.evaluator, "--seed", str(args.seed), "--output", str(folder / "selection")]
    given = {"--selection": args.selection, "--margin": args.margin, "--device": "cpu" if args.cpu else None}
    select += [str(part) for option in given.items() if option[1] is not None for part in option]
    for command, config in ((joint, args.joint_config), (adaptive, args.adaptive_config)):
        command += ["--config", str(config)] if config is not None else []
    return [select, joint, adaptive]


def run_command(arguments: list[str]) -> None:
    """One stage, with the errors it raises. Those of a run that was stopped skip what is done."""
    from mmemb_r1.cli import run as run_arguments

    print(f"mmemb-r1 {' '.join(arguments)}", flush=True)
    if status := run_arguments(arguments):
        raise ValueError(f"mmemb-r1 {arguments[0]} ended with the status {status}; see above")


def measure(model: Path, args: argparse.Namespace) -> float:
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.training.tables import PAIR_COLUMNS, read_pairs
    from mmemb_r1.training.validation import validation_score

    device = "cpu" if args.cpu else None
    return validation_score(MMEmbR1(str(model), device=device), read_pairs(args.eval_pairs, PAIR_COLUMNS))


def best_of(notes: list[dict[str, Any]]) -> dict[str, Any]:
    """The checkpoint that took the place of the others: the last that was kept.

    >>> best_of([{"round": 0, "kept": True}, {"round": 1, "kept": True}, {"round": 2, "kept": False}])["round"]
    1
    """
    return [note for note in notes if note["kept"]][-1]


def proposers(notes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Whose checkpoints are workers in the round after these: those that were the best when the second round began, the
    third, and so on.

    >>> notes = [{"round": 0, "kept": True}, {"round": 1, "kept": False}, {"round": 2, "kept": True}]
    >>> [[note["round"] for note in proposers(notes[:rounds])] for rounds in (1, 2, 3)]
    [[], [0], [0, 2]]
    """
    best = [best_of(notes[:rounds]) for rounds in range(2, len(notes) + 1)]
    return [note for place, note in enumerate(best) if note not in best[:place]]


def read_notes(output: Path) -> list[dict[str, Any]]:
    path = output / NOTES
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def write_notes(output: Path, notes: list[dict[str, Any]]) -> None:
    from mmemb_r1.runs import replaced_file

    with replaced_file(output / NOTES) as temporary:
        temporary.write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")


def tell(note: dict[str, Any]) -> None:
    if note["round"] == 0:
        print(f"before: validation {note['score']:.4f}", flush=True)
        return
    verdict = "kept" if note["kept"] else "not kept"
    print(f"round {note['round']}: validation {note['score']:.4f}, {verdict}", flush=True)


def replace_model(output: Path, model: Path) -> None:
    """A copy of the best in `OUTPUT/model`, made beside it first."""
    new = output / f"{BEST}.new"
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(model, new)
    shutil.rmtree(output / BEST, ignore_errors=True)
    new.rename(output / BEST)
