"""
What a table of many pairs takes in memory: the peak of reading it, above what was there before, where the joint phase
loads batches of it, and where `mmemb-r1 select` indexes it and builds trials.

    python -m benchmarks.table_memory [--pairs 10000 1000000] [--output table_memory.json]

Pairs have a picture by path and a text each, and one rationale per pair is selected. Every part runs in a process of
its own, with a small table first, so that what is imported and allocated once does not count. Linux only: peaks are
read from /proc, and count pages of mapped files, which the system takes back when it needs them; "own" leaves
them out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.engine.memory import MIB, resident
from benchmarks.facts import write_facts

SHARD, PICTURES, TASKS = 50_000, 100, 10
BATCHES, BATCH = 20, 64
TRIALS = 64
PAIR = pa.struct({"text": pa.string(), "image": pa.list_(pa.string())})
RATIONALE = (
    "The picture shows a small red bridge over a river; the style of its railing points to Japan, and the trees to "
    "the autumn, so that the place in question is most likely near Kyoto. Picture {}."
)


def write_tables(folder: Path, number: int) -> None:
    """Write `number` pairs and as many rationales, in shards, and the few pictures that all of them share."""
    (folder / "pairs").mkdir(parents=True)
    (folder / "pairs" / "pictures").mkdir()
    (folder / "rationales" / "shards").mkdir(parents=True)
    for place in range(PICTURES):
        Image.new("RGB", (32, 32), (place, 0, 0)).save(folder / "pairs" / "pictures" / f"{place}.png")
    for shard, start in enumerate(range(0, number, SHARD)):
        rows = range(start, min(start + SHARD, number))
        ids = [f"pair {row:09d}" for row in rows]
        pairs = {
            "pair_id": ids,
            "task": [f"task {row % TASKS}" for row in rows],
            "query": pa.array(
                [{"text": f"question {row}", "image": [f"pictures/{row % PICTURES}.png"]} for row in rows], PAIR
            ),
            "target": pa.array([{"text": f"answer {row}", "image": []} for row in rows], PAIR),
        }
        pq.write_table(pa.table(pairs), folder / "pairs" / f"{shard:05d}.parquet")
        texts = [RATIONALE.format(row) for row in rows]
        rationales = {
            "pair_id": ids,
            "side": ["query"] * len(ids),
            "worker": ["w"] * len(ids),
            "sample": pa.array([0] * len(ids), pa.int32()),
            "seed": list(rows),
            "text": texts,
            "num_tokens": pa.array([50] * len(ids), pa.int32()),
            "finish_reason": ["stop"] * len(ids),
            "error": pa.array([None] * len(ids), pa.string()),
        }
        pq.write_table(pa.table(rationales), folder / "rationales" / "shards" / f"w-{shard:05d}.parquet")


def joint_loader(folder: Path) -> None:
    """Load some batches of pairs with selected rationales as the joint phase does, without a model."""
    import numpy as np

    from mmemb_r1.training.joint.data import DrawnRow, JointPairs, SelectedRationales, check_tables
    from mmemb_r1.training.rationales.table import read_rationales
    from mmemb_r1.training.tables import read_pairs

    pairs, rationales = read_pairs(folder / "pairs"), read_rationales(folder / "rationales")
    check_tables(pairs, None)
    table = JointPairs(pairs, 0, SelectedRationales(rationales))
    rng = np.random.default_rng(0)
    for batch in range(BATCHES):
        for place, row in enumerate(rng.integers(len(pairs), size=BATCH).tolist()):
            example = table[DrawnRow(row, 0, batch * BATCH + place)]
            if not example["query_rationale"]:
                raise ValueError(f"row {row} has no rationale")


def select_reading(folder: Path) -> None:
    """Index pairs and rationales as `select` does, and build some trials."""
    from mmemb_r1.training.rationales.table import read_rationales
    from mmemb_r1.training.selection.config import SelectionOptions
    from mmemb_r1.training.selection.pairs import index_pairs
    from mmemb_r1.training.selection.trials import TrialBuilder, index_candidates
    from mmemb_r1.training.tables import PAIR_COLUMNS, read_pairs

    pairs = read_pairs(folder / "pairs", PAIR_COLUMNS)
    index = index_pairs(pairs)
    trials = TrialBuilder(
        pairs, index, index_candidates(read_rationales(folder / "rationales"), index), SelectionOptions()
    )
    for number in range(TRIALS):
        plan = trials.plan(number)
        trials.build(plan, [True] * len(plan.texts))


PARTS: dict[str, Callable[[Path], None]] = {"joint loader": joint_loader, "select": select_reading}


class OwnPeak(threading.Thread):
    """Watch how much memory of its own, without mapped files, this process has at most."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest, self.ended = 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.01):
            self.highest = max(self.highest, resident("RssAnon"))


def measured(part: str, folder: Path, small: Path) -> dict[str, Any]:
    """The peaks of one part, in bytes above what there was before, in this process."""
    PARTS[part](small)
    before, own = resident("VmRSS"), resident("RssAnon")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest is the present one again
    watch, start = OwnPeak(), time.perf_counter()
    watch.start()
    PARTS[part](folder)
    watch.ended.set()
    watch.join()
    return {
        "part": part,
        "peak_bytes": resident("VmHWM") - before,
        "own_peak_bytes": watch.highest - own,
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = []
    with (
        tempfile.TemporaryDirectory() as name,
        multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
    ):
        folder = Path(name)
        write_tables(folder / "small", 100)
        print(f"{'pairs':>10s} {'part':>13s} {'peak':>10s} {'own':>10s} {'time':>7s}")
        for number in args.pairs:
            write_tables(folder / str(number), number)
            for part in PARTS:
                row = {"pairs": number, **pool.apply(measured, (part, folder / str(number), folder / "small"))}
                rows.append(row)
                print(
                    f"{number:10,d} {part:>13s} {row['peak_bytes'] / MIB:6.0f} MiB {row['own_peak_bytes'] / MIB:6.0f} "
                    f"MiB {row['seconds']:5.0f} s",
                    flush=True,
                )
    if args.output is not None:
        write_facts(args.output, rows, args)


if __name__ == "__main__":
    main()
