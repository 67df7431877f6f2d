"""
Embed the same inputs in one process and with workers on Ray, one after the other: the time, the rate, and whether the
vectors are the same. Then again with a worker that is killed (by SIGKILL) in the middle, and with a driver that is
killed in the middle and started again: how much was done twice.

    python -m benchmarks.ray_throughput [--model DIR] [--rows 20000] [--workers 2] [--output ray_throughput.json]

Every process has one thread. Without `--model` it is the tiny random one of the tests, whose rows cost little: what
Ray adds shows more than with any other. Seconds are from start to end, Python and Ray included; the rate is of the
shards after the first one of each worker. Ray's workers are no nicer than other processes (RAY_worker_niceness=0), so
that both sides suffer alike where the machine does something else, too. Shards that were there when something was
killed are the same files in the end, or the run fails. Needs `pip install 'mmemb-r1[ray]' psutil`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.facts import write_facts
from mmemb_r1.stream import load_shards

WORKER = "EmbedBlocks"  # in the name of a worker's process


def save_random_model(folder: Path) -> None:
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.tiny import build_tiny_vlm

    MMEmbR1.from_vlm(*build_tiny_vlm("qwen3_vl"), max_reasoning_tokens=8).save_pretrained(str(folder))


def write_inputs(path: Path, rows: int) -> None:
    """Write texts of 1 to 8 words."""
    rng = np.random.default_rng(0)
    words = ["river", "city", "tower", "red", "old", "bridge", "market", "north", "quiet", "train"]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            text = " ".join(rng.choice(words, size=rng.integers(1, 9)))
            stream.write(json.dumps({"text": f"document {number}: {text}"}) + "\n")


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.parquet"))


def run(command: list[str], log: Path, meanwhile: Callable[[subprocess.Popen[bytes]], Any] = lambda _: None) -> float:
    """
    Run a command with one thread, and return its seconds; one that fails, and was not killed here, ends all.

    What it tells goes to a file: the processes that Ray starts have it open as well, and a pipe that nobody reads
    would stop them when it is full, and would not end before the last of them does.
    """
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    with log.open("wb") as told, subprocess.Popen(command, stderr=told, env=environment) as process:
        is_killed = meanwhile(process)
    if process.returncode and not is_killed:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()}")
    return time.perf_counter() - start


def wait_for(folder: Path, count: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait until there are `count` shards; tell whether the process goes on then."""
    while len(shards(folder)) < count and process.poll() is None:
        time.sleep(0.05)
    return process.poll() is None


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Tell what is new when a shard is written again."""
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in shards(folder)}


def workers_of(driver: int) -> list[psutil.Process]:
    """List the processes that embed; others come and go."""
    found = []
    for one in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [one] if WORKER in "".join(one.cmdline()) else []
    return found


def rate(folder: Path, first: int) -> float:
    """Rows per second, without the first shards and what was before them; the others are written one after another."""
    times = sorted((file.stat().st_mtime, rows) for file, rows in zip(shards(folder), sizes(folder), strict=True))
    return sum(rows for _, rows in times[first:]) / (times[-1][0] - times[first - 1][0])


def sizes(folder: Path) -> list[int]:
    return [shard["rows"] for shard in json.loads((folder / "index.json").read_text())["shards"]]


def compared(folder: Path, expected: Path) -> dict[str, Any]:
    ids, vectors = load_shards(folder)
    expected_ids, expected_vectors = load_shards(expected)
    if ids != expected_ids:
        raise SystemExit(f"{folder} has other ids than {expected}")
    return {
        "largest_difference": float(np.abs(vectors - expected_vectors).max()),
        "same_files": sum(
            a.read_bytes() == b.read_bytes() for a, b in zip(shards(folder), shards(expected), strict=True)
        ),
        "files": len(shards(expected)),
    }


class Runs:
    """Run the same command in several ways, each into a folder of its own."""

    def __init__(self, folder: Path, model: str, args: argparse.Namespace) -> None:
        self.folder, self.rows, self.workers = folder, args.rows, args.workers
        inputs = folder / "inputs.jsonl"
        write_inputs(inputs, args.rows)
        command = [sys.executable, "-m", "mmemb_r1.cli", "encode", "--model", model, "--input", str(inputs)]
        command += ["--reasoning", args.reasoning, "--shard-size", str(args.shard_size), "--format", "parquet"]
        self.alone = [*command, "--device", "cpu"]
        self.on_ray = [*command, "--ray", "--ray-workers", str(args.workers), "--gpus", "0"]

    def one_process(self) -> dict[str, Any]:
        seconds = run([*self.alone, "--output", f"{self.folder}/one/"], self.folder / "one.log")
        return {"what": "one process", "seconds": seconds, "rate": rate(self.folder / "one", 1)}

    def ray(self, name: str, meanwhile: Any = lambda process: None) -> dict[str, Any]:
        """Run on Ray, and compare with one process if it came to its end."""
        log = self.folder / f"{name}.log"
        seconds = run([*self.on_ray, "--output", str(self.folder / name)], log, meanwhile)
        if not (self.folder / name / "index.json").exists():
            return {"seconds": seconds}
        row = {"seconds": seconds, **compared(self.folder / name, self.folder / "one")}
        twice = re.search(r"began again what they had: (\d+) in all", log.read_text())
        return {**row, "blocks_begun_again": int(twice[1]) if twice else 0}

    def whole(self) -> dict[str, Any]:
        row = self.ray("ray")
        return {"what": f"Ray, {self.workers} workers", **row, "rate": rate(self.folder / "ray", self.workers)}

    def killed_worker(self) -> dict[str, Any]:
        """Kill one of the workers when half of the shards are there."""
        there: dict[str, Any] = {}

        def kill(process: subprocess.Popen[bytes]) -> None:
            if wait_for(self.folder / "worker", len(shards(self.folder / "one")) // 2, process):
                workers_of(process.pid)[0].kill()
                there.update(stamps(self.folder / "worker"))

        row = self.ray("worker", kill)
        return {"what": "a worker killed", **row, **self.kept("worker", there)}

    def killed_driver(self) -> dict[str, Any]:
        """Kill the driver when a third of the shards are there, and run it again."""

        def kill(process: subprocess.Popen[bytes]) -> bool:
            if not wait_for(self.folder / "driver", len(shards(self.folder / "one")) // 3, process):
                return False
            workers = workers_of(process.pid)
            process.kill()
            if left := psutil.wait_procs(workers, timeout=60)[1]:  # two others of Ray's, which do no work, take longer
                raise SystemExit(f"a minute after their driver was killed these workers go on: {left}")
            return True

        before = self.ray("driver", kill)["seconds"]
        there = stamps(self.folder / "driver")
        row = self.ray("driver")
        return {
            "what": "the driver killed, and again",
            **row,
            "seconds_before": before,
            **self.kept("driver", there),
        }

    def kept(self, name: str, there: dict[str, Any]) -> dict[str, Any]:
        """Count the shards that were there and were not written again."""
        now = stamps(self.folder / name)
        if again := [file for file in there if now[file] != there[file]]:
            raise SystemExit(f"{self.folder / name}: these shards were there, and were written again: {again}")
        return {"there_before": len(there)}


def measure(folder: Path, model: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    runs = Runs(folder, model, args)
    rows = []
    for stage in (runs.one_process, runs.whole, runs.killed_worker, runs.killed_driver):
        rows.append(stage())
        show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    parts = [f"{row['what']:<30s} {row['seconds']:7.1f} s"]
    parts += [f"{row['rate']:8.1f} rows/s"] if "rate" in row else []
    if "files" in row:
        parts.append(f"differs by {row['largest_difference']:.1e}")
        parts.append(f"{row['same_files']} of {row['files']} files the same")
    if "there_before" in row:
        parts.append(f"{row['there_before']} shards were there and stayed")
        parts.append(f"{row['blocks_begun_again']} blocks begun again")
    print("  ".join(parts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-size", type=int, default=500)
    parser.add_argument("--reasoning", default="never")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if args.model is None:
            save_random_model(Path(name, "model"))
        rows = measure(Path(name), args.model or str(Path(name, "model")), args)
    if args.output is not None:
        write_facts(args.output, rows, args)


if __name__ == "__main__":
    main()
