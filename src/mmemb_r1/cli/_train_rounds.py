"""`mmemb-r1 train rounds`: the whole method again and again, each time with the best model among the workers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.cli._options import PAIRS_TABLE, add_base_option, add_columns_option, check_file
from mmemb_r1.cli._training import add_files, on_cpu
from mmemb_r1.modeling.files_mmemb_r1 import copy_content
from mmemb_r1.runs import record_run, write_json

if TYPE_CHECKING:
    from datasets import Dataset

    from mmemb_r1.tables.columns import ColumnMap

HELP = """\
Run the stages one after another, --n times: rationales from a pool, selection, joint phase, adaptive phase. From the
second round on, the checkpoint that is the best so far is a worker too, and proposes its own rationales.

After each round the new checkpoint is measured on --eval-pairs. It takes the place of the one before only if it is
better; otherwise the next round starts from that one again. A round that would only repeat the last one ends the run.
OUTPUT/model is the best of all; OUTPUT/rounds.json has the scores. A run that was stopped goes on with the same
command, and with a larger --n it goes on from its end."""

SETTINGS = ("model", "evaluator", "selection", "margin", "samples", "seed")  # that make a run another one
TABLES = ("pairs", "policy_pairs", "eval_pairs")
BEST = "model"


@dataclass(frozen=True)
class Rounds:
    """Describe a run of `train rounds`; for each field see the option of its name."""

    model: str
    pairs: Path
    policy_pairs: Path
    eval_pairs: Path
    pool: Path
    evaluator: str
    output: Path
    base: Path | None = None
    columns: ColumnMap | None = None
    n: int = 2
    joint_config: Path | None = None
    adaptive_config: Path | None = None
    selection: str | None = None
    margin: float | None = None
    samples: int | None = None
    seed: int = 0
    cpu: bool = False

    @property
    def device(self) -> str | None:
        return "cpu" if self.cpu else None

    def read(self, name: str) -> Dataset:
        """Read one of `TABLES`."""
        from mmemb_r1.training.tables import PAIR_COLUMNS, read_pairs

        return read_pairs(
            getattr(self, name), PAIR_COLUMNS, columns=self.columns, unless_ours=name != "pairs", base=self.base
        )


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="the checkpoint to start from, a folder")
    tables = {
        "--pairs": f"pairs of the joint phase; {PAIRS_TABLE}",
        "--policy-pairs": "pairs of the adaptive phase, others",
        "--eval-pairs": "pairs that checkpoints are compared on, others",
    }
    add_files(parser, {**tables, "--pool": "the workers, YAML"}, required=True)
    add_columns_option(parser, "the tables of pairs")
    add_base_option(parser)
    parser.add_argument("--evaluator", required=True, metavar="DIR", help="the evaluator, as for `mmemb-r1 select`")
    parser.add_argument("--n", type=int, default=2, metavar="N", help="rounds; default: 2")
    add_files(
        parser, {f"--{phase}-config": f"YAML, as for `mmemb-r1 train {phase}`" for phase in ("joint", "adaptive")}
    )
    parser.add_argument("--selection", metavar="NAME", help="as for `mmemb-r1 select`; default: counterfactual")
    parser.add_argument("--margin", type=float, metavar="X", help="as for `mmemb-r1 select`; default: 0")
    parser.add_argument("--samples", type=int, metavar="K", help="rationales per input of each worker")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of rationales and selection; default: 0")
    parser.add_argument("--cpu", action="store_true", help="work on the CPU, train in float32")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where everything goes")


def run(args: argparse.Namespace) -> int:
    plan = Rounds(**{one.name: getattr(args, one.name) for one in dataclasses.fields(Rounds)})
    check(plan)
    claim_folder(plan)
    output, path = plan.output, plan.output / "rounds.json"
    records: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []

    def note(model: Path) -> None:
        number, score = len(records), measure(model, plan)
        kept = not number or score > best_of(records)["score"]
        records.append({"round": number, "model": str(model), "score": score, "kept": kept})
        write_json(path, records)
        name, verdict = (f"round {number}", ", kept" if kept else ", not kept") if number else ("before", "")
        print(f"{name}: validation {score:.4f}{verdict}", flush=True)

    if not records:
        note(Path(plan.model))
    while len(records) <= plan.n:
        number, best = len(records), best_of(records)
        if number > 1 and proposers(records) == proposers(records[:-1]) and best == best_of(records[:-1]):
            print(f"round {number} would repeat round {number - 1}, which made nothing better: there is no new worker")
            break
        draw(plan, records)
        for command in stages(plan, number, Path(best["model"])):
            run_command(command)
        note(output / f"round-{number}" / "adaptive" / "model")
    best = best_of(records)
    replace_model(output, Path(best["model"]))
    print(f"the best is that of round {best['round']} ({best['score']:.4f}); it is in {output / BEST}")
    print(f"next: mmemb-r1 evaluate --model {output / BEST} ...")
    return 0


def check(plan: Rounds) -> None:
    """Find all that can be found wrong before the first stage, which may be hours before the last."""
    from mmemb_r1.training.adaptive.run import AdaptiveRun
    from mmemb_r1.training.joint.run import JointRun
    from mmemb_r1.training.rationales.pool import load_pool
    from mmemb_r1.training.run import read_recipe
    from mmemb_r1.training.selection.evaluator import evaluator_kind

    if plan.n < 1:
        raise ValueError(f"--n {plan.n}; allowed: 1 or more")
    if not (Path(plan.model) / "config.json").is_file():
        raise ValueError(f"--model {plan.model}: there is no checkpoint; pull one of the Hub first")
    ids = {}
    for name in TABLES:
        ids[f"--{name.replace('_', '-')}"] = set(plan.read(name)["pair_id"])
    for option in ("--pairs", "--policy-pairs"):
        if shared := sorted(ids[option] & ids["--eval-pairs"]):
            raise ValueError(
                f"{len(shared)} pairs of --eval-pairs are in {option} too, {shared[0]!r} for example; checkpoints "
                "have to be compared on others"
            )
    load_pool(plan.pool, samples=plan.samples)
    evaluator_kind(plan.evaluator)
    for option, path, run_class in (
        ("--joint-config", plan.joint_config, JointRun),
        ("--adaptive-config", plan.adaptive_config, AdaptiveRun),
    ):
        if path is not None:
            check_file(option, path)
        recipe = read_recipe(path, run_class)
        recipe["settings"] |= on_cpu() if plan.cpu else {}
        run_class(model=plan.model, pairs=plan.pairs, output=plan.output, **recipe).config()


def claim_folder(plan: Rounds) -> None:
    """Keep another run out of this one's folder; one with a larger `--n` may go on there."""
    from mmemb_r1.tables.files import files_digest
    from mmemb_r1.tables.pairs import table_digest

    files = {name: getattr(plan, name) for name in ("pool", "joint_config", "adaptive_config")}
    digests = {name: table_digest(getattr(plan, name)) for name in TABLES}
    digests |= {name: files_digest([path]) for name, path in files.items() if path is not None}
    columns = {} if plan.columns is None else {"columns": plan.columns}
    record_run(plan.output / "run.json", {**{name: getattr(plan, name) for name in SETTINGS}, **columns, **digests})


def draw(plan: Rounds, records: list[dict[str, Any]]) -> None:
    """Draw the rationales of a round, in one folder for all rounds: of a pool that grew only the new worker draws."""
    from mmemb_r1.training.rationales.checkpoint_worker import CheckpointWorker
    from mmemb_r1.training.rationales.draw import draw_rationales
    from mmemb_r1.training.rationales.pool import load_pool

    options: dict[str, Any] = {"device": plan.device} | ({} if plan.samples is None else {"num_samples": plan.samples})
    workers: list[Any] = load_pool(plan.pool, samples=plan.samples)
    workers += [
        CheckpointWorker(name=f"round-{one['round']}", model=one["model"], **options) for one in proposers(records)
    ]
    summary = draw_rationales(plan.read("pairs"), workers, plan.output / "rationales", seed=plan.seed)
    print(*summary.lines(), sep="\n")


def stages(plan: Rounds, number: int, model: Path) -> list[list[str]]:
    """List the commands of a round after its rationales were drawn: selection, joint phase, adaptive phase."""
    from mmemb_r1.tables.columns import columns_flags

    folder = plan.output / f"round-{number}"
    cpu = ["--cpu"] if plan.cpu else []
    joint = ["train", "joint", "--model", str(model), "--pairs", str(plan.pairs), *cpu]
    joint += ["--rationales", str(folder / "selection" / "selected.parquet"), "--output", str(folder / "joint")]
    adaptive = ["train", "adaptive", "--model", str(folder / "joint" / "model"), "--pairs", str(plan.policy_pairs)]
    adaptive += ["--joint-pairs", str(plan.pairs), "--output", str(folder / "adaptive"), *cpu]
    select = ["select", "--pairs", str(plan.pairs), "--rationales", str(plan.output / "rationales")]
    select += ["--evaluator", plan.evaluator, "--seed", str(plan.seed), "--output", str(folder / "selection")]
    for command in (joint, adaptive, select):
        command += columns_flags(plan.columns)
        command += ["--base", str(plan.base)] if plan.base is not None else []
    given = {"--selection": plan.selection, "--margin": plan.margin, "--device": plan.device}
    select += [str(part) for option in given.items() if option[1] is not None for part in option]
    for command, config in ((joint, plan.joint_config), (adaptive, plan.adaptive_config)):
        command += ["--config", str(config)] if config is not None else []
    return [select, joint, adaptive]


def run_command(arguments: list[str]) -> None:
    """Run one stage, with the errors it raises. A stage that was stopped skips what is done."""
    from mmemb_r1.cli import run as run_arguments

    print(f"mmemb-r1 {' '.join(arguments)}", flush=True)
    if status := run_arguments(arguments):
        raise ValueError(f"mmemb-r1 {arguments[0]} ended with the status {status}; see above")


def measure(model: Path, plan: Rounds) -> float:
    """Score a checkpoint on the pairs that checkpoints are compared on."""
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.training.targets import validation_score

    return validation_score(MMEmbR1(str(model), device=plan.device), plan.read("eval_pairs"))


def best_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Find the checkpoint that took the place of the others: the last that was kept.

    >>> best_of([{"round": 0, "kept": True}, {"round": 1, "kept": True}, {"round": 2, "kept": False}])["round"]
    1
    """
    return [record for record in records if record["kept"]][-1]


def proposers(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Find the rounds whose checkpoints are workers in the next one: those that were the best when the second round
    began, the third, and so on.

    >>> records = [{"round": 0, "kept": True}, {"round": 1, "kept": False}, {"round": 2, "kept": True}]
    >>> [[record["round"] for record in proposers(records[:rounds])] for rounds in (1, 2, 3)]
    [[], [0], [0, 2]]
    """
    best = [best_of(records[:rounds]) for rounds in range(2, len(records) + 1)]
    return [record for place, record in enumerate(best) if record not in best[:place]]


def replace_model(output: Path, model: Path) -> None:
    """Copy the best to `OUTPUT/model`, beside its place first."""
    new = output / f"{BEST}.new"
    shutil.rmtree(new, ignore_errors=True)
    copy_content(model, new)
    shutil.rmtree(output / BEST, ignore_errors=True)
    new.rename(output / BEST)
