"""
Embed the same inputs in one process and with workers on Ray, one after the other: the time, the rate, and whether the
vectors are the same. Then again with a worker that is killed in the middle, and with a driver that is killed in the
middle and started again.

    python -m benchmarks.ray_throughput [--model DIR] [--rows 20000] [--workers 2] [--output ray_throughput.json]

Every process has one thread. Without `--model` it is the tiny random one of the tests, whose rows cost little: what
Ray adds shows more than with any other. Seconds are from start to end, Python and Ray included; the rate is of the
shards after the first one of each worker. Ray's workers are no nicer than other processes (RAY_worker_niceness=0), so
that both sides suffer alike where the machine does something else, too. Needs `pip install 'mmemb-r1[ray]' psutil`.
"""

from __future__ import annotations

import argparse
import json
import os
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


def run(command: list[str], meanwhile: Callable[[subprocess.Popen[str]], Any] = lambda process: None) -> float:
    """Run a command with one thread, and return its seconds; one that fails, and was not killed here, ends all."""
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        is_killed = meanwhile(process)
        _, told = process.communicate()
    if process.returncode and not is_killed:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{told}")
    return time.perf_counter() - start


def wait_for(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    while len(shards(folder)) < count and process.poll() is None:
        time.sleep(0.05)


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


def measure(folder: Path, model: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    inputs = folder / "inputs.jsonl"
    write_inputs(inputs, args.rows)
    command = [sys.executable, "-m", "mmemb_r1.cli", "encode", "--model", model, "--input", str(inputs)]
    command += ["--reasoning", args.reasoning, "--shard-size", str(args.shard_size), "--format", "parquet"]
    alone = [*command, "--device", "cpu", "--output", f"{folder}/one/"]
    on_ray = [*command, "--ray", "--ray-workers", str(args.workers), "--gpus", "0"]
    rows: list[dict[str, Any]] = [{"what": "one process", "seconds": run(alone)}]
    rows[0]["rate"] = rate(folder / "one", 1)
    show(rows[0])

    def ray(name: str, what: str, meanwhile: Any = lambda process: None, **more: Any) -> dict[str, Any]:
        seconds = run([*on_ray, "--output", str(folder / name)], meanwhile)
        if not (folder / name / "index.json").exists():
            return {"seconds": seconds, "shards": len(shards(folder / name))}
        rows.append({"what": what, "seconds": seconds, **more, **compared(folder / name, folder / "one")})
        return rows[-1]

    whole = ray("ray", f"Ray, {args.workers} workers")
    whole["rate"] = rate(folder / "ray", args.workers)
    show(whole)

    def kill_worker(process: subprocess.Popen[str]) -> None:
        wait_for(folder / "worker", args.workers, process)
        if process.poll() is None:  # else it failed before, and `run` says how
            workers_of(process.pid)[0].kill()

    show(ray("worker", "a worker killed", kill_worker))

    def kill_driver(process: subprocess.Popen[str]) -> bool:
        wait_for(folder / "driver", len(shards(folder / "one")) // 3, process)
        if process.poll() is not None:
            return False
        own = psutil.Process(process.pid).children(True)
        process.kill()
        psutil.wait_procs(own, timeout=60)
        return True

    before = ray("driver", "", kill_driver)
    again = {"there_before": before["shards"], "seconds_before": before["seconds"]}
    show(ray("driver", "the driver killed, and again", **again))
    return rows


def show(row: dict[str, Any]) -> None:
    parts = [f"{row['what']:<30s} {row['seconds']:7.1f} s"]
    parts += [f"{row['rate']:8.1f} rows/s"] if "rate" in row else []
    if "files" in row:
        parts.append(f"differs by {row['largest_difference']:.1e}")
        parts.append(f"{row['same_files']} of {row['files']} files the same")
    parts += [f"{row['there_before']} shards were there"] if "there_before" in row else []
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
