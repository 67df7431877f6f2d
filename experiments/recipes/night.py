"""
A night's run in small: the joint phase on 20,000 pairs by two processes, killed five times and begun again with other
settings of the batch, against the same run undisturbed.

    python -m experiments.recipes.night [--output runs/night] [--pairs 20000] [--steps 120] [--kills 5]

Pictures are read by path; 0.5 % of the pairs have a broken one, 2 % are too long, and they are of three sources. A
kill is SIGKILL to both processes at a moment that is drawn, some of them while a checkpoint is written. One restart
computes the same global batch by one process in smaller mini-batches. Printed: the losses of both runs where they
differ most, what was left out against what had to be, and times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.recipes.night_table import MAX_INPUT_TOKENS, NightTable, write_night_table
from mmemb_r1.training.settling.settle import SKIPPED_FILE

GLOBAL_BATCH = 32
SETTINGS = {
    "sub_batch_size": 16,
    "mini_batch_size": 16,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "task_size_exponent": 0.5,
    "on_error": "skip",
    "max_skipped": 0.05,
    "max_input_tokens": MAX_INPUT_TOKENS,
    "logging_steps": 1,
    "save_total_limit": 2,
    "disable_tqdm": True,
}
OTHER_BATCH = {"mini_batch_size": 4, "sub_batch_size": 16, "dataloader_num_workers": 1}  # as one process computes it
LOSS_TOLERANCE = 1e-3  # relative; another number of processes sums in another order, and Adam carries that on
LAST_CHECKPOINT = "checkpoints/checkpoint-{}/trainer_state.json"


@dataclass
class Night:
    """A model and a table, a number of steps, and how often to save, trained into folders of `output`."""

    output: Path
    table: NightTable
    model: Path
    steps: int
    save_steps: int
    started: int = field(default=0, init=False)

    def start(self, name: str, num_processes: int = 2, **settings: object) -> list[subprocess.Popen[bytes]]:
        """Start the processes of a run; what they print goes to files beside its folder."""
        self.started += 1
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        fields = {
            **SETTINGS,
            "max_steps": self.steps,
            "save_steps": self.save_steps,
            "per_device_train_batch_size": GLOBAL_BATCH // num_processes,
            **settings,
        }
        tables = ["--model", self.model, "--pairs", self.table.pairs, "--output", self.output / name]
        command = [sys.executable, "-m", "mmemb_r1.cli", "train", "joint", *map(str, tables), "--cpu"]
        command += [word for option, value in fields.items() for word in (f"--{option}", str(value))]
        processes = []
        for rank in range(num_processes):
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "MASTER_PORT": port}
            env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
            env |= {key: str(value) for key, value in places.items()} if num_processes > 1 else {}
            with open(self.output / f"{name}-{self.started}-{rank}.log", "wb") as log:
                processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT))
        return processes

    def finish(self, name: str, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """Wait until a run has ended; a `RuntimeError` with the end of its log if it failed."""
        for rank, process in enumerate(processes):
            if process.wait():
                for other in processes:
                    other.kill()
                log = (self.output / f"{name}-{self.started}-{rank}.log").read_text(encoding="utf-8")
                raise RuntimeError(f"{name}: process {rank} ended with {process.returncode}: ...{log[-2000:]}")

    def kill_after(self, name: str, step: int, delay: float, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """Kill a run, -9, so many seconds after it has begun to save the checkpoint of a step."""
        folder = (self.output / name / LAST_CHECKPOINT.format(step)).parent
        while not folder.exists():
            if any(process.poll() is not None for process in processes):
                self.finish(name, processes)
                raise RuntimeError(f"{name} ended before step {step}")
            time.sleep(0.02)
        time.sleep(delay)
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.wait()

    def losses(self, name: str) -> dict[int, float]:
        """Read step -> loss of a run that has ended."""
        state = json.loads((self.output / name / LAST_CHECKPOINT.format(self.steps)).read_text(encoding="utf-8"))
        return {log["step"]: log["loss"] for log in state["log_history"] if "loss" in log}


def disturbed(night: Night, kills: int, rng: random.Random) -> list[str]:
    """Train with kills and, after the last but one, with other settings of the batch; tell what was done."""
    told = []
    saves = night.steps // night.save_steps
    steps = sorted(night.save_steps * save for save in rng.sample(range(1, saves), kills))
    for number, step in enumerate(steps):
        other = number == len(steps) - 1
        processes = night.start("disturbed", 1, **OTHER_BATCH) if other else night.start("disturbed")
        delay = rng.choice([0.0, 0.05, 0.3, 1.0])
        night.kill_after("disturbed", step, delay, processes)
        told.append(f"killed {delay} s after step {step} began to be saved" + (" (one process)" if other else ""))
    night.finish("disturbed", night.start("disturbed"))
    return told


def left_out(folder: Path) -> dict[str, frozenset[str]]:
    """Read which pairs a run left out: "too long" or "broken" -> their ids."""
    found: dict[str, set[str]] = {"broken": set(), "too long": set()}
    for line in (folder / SKIPPED_FILE).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found["too long" if "max_input_tokens" in row["reason"] else "broken"].add(row["pair_id"])
    return {reason: frozenset(ids) for reason, ids in found.items()}


@dataclass
class Report:
    """What a night came to, in lines, and whether it is what it has to be."""

    lines: list[str]
    is_right: bool


def run_night(output: Path, num_pairs: int, steps: int, kills: int, save_steps: int = 10, seed: int = 0) -> Report:
    """Make the table and the model, run undisturbed and disturbed, and compare losses and what was left out."""
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.tiny import build_tiny_vlm

    if (output / "undisturbed").exists() or (output / "disturbed").exists():
        raise FileExistsError(f"{output} holds a night's run already; remove it, or choose another folder.")
    output.mkdir(parents=True, exist_ok=True)
    table, model = write_night_table(output / "table", num_pairs, seed), output / "start"
    if not model.is_dir():
        MMEmbR1.from_vlm(*build_tiny_vlm("qwen3_vl")).save_pretrained(str(model))
    night, times = Night(output, table, model, steps, save_steps), []
    begun = time.perf_counter()
    night.finish("undisturbed", night.start("undisturbed"))
    times.append(time.perf_counter() - begun)
    told = disturbed(night, kills, random.Random(seed))
    times.append(time.perf_counter() - begun - times[0])
    wanted, found = night.losses("undisturbed"), night.losses("disturbed")
    apart = {step: abs(found[step] - loss) / loss for step, loss in wanted.items()}
    worst = max(apart, key=lambda step: apart[step])
    equal = [step for step in wanted if found[step] == wanted[step]]
    skipped = [left_out(output / name) for name in ("undisturbed", "disturbed")]
    listed = [f"{reason} {len(ids)}" for reason, ids in skipped[1].items()]
    is_right = (
        list(wanted) == list(found) == list(range(1, steps + 1))
        and apart[worst] < LOSS_TOLERANCE
        and skipped[0] == skipped[1] == {"broken": table.broken, "too long": table.too_long}
    )
    lines = [
        f"{num_pairs:,} pairs, {steps} steps of {GLOBAL_BATCH}; {times[0]:.0f} s, disturbed {times[1]:.0f} s",
        *told,
        f"loss {wanted[1]:.4f} at step 1, {wanted[steps]:.4f} at step {steps}; disturbed {found[steps]:.4f}",
        f"to the bit at {len(equal)} of {steps} steps; farthest apart at step {worst}: {apart[worst]:.1e} of the loss",
        f"left out by both runs: {', '.join(listed)}; there were {len(table.broken)} broken pictures and "
        f"{len(table.too_long)} texts that are too long",
    ]
    return Report(lines, is_right)


def main() -> None:
    """Run both, and print how they compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/night"))
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--kills", type=int, default=5)
    args = parser.parse_args()
    report = run_night(args.output, args.pairs, args.steps, args.kills)
    print("\n".join(report.lines))
    if not report.is_right:
        sys.exit("The two runs are not the same.")


if __name__ == "__main__":
    main()
