"""Two processes leave out the same rows, and stop together. This file is also what `torchrun` starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def main(folder: Path) -> None:
    import torch.distributed as dist
    from datasets import Dataset

    from mmemb_r1 import MMEmbR1Model
    from mmemb_r1.tiny import build_tiny_vlm
    from mmemb_r1.training import distributed
    from mmemb_r1.training.settling import settle as settling
    from mmemb_r1.training.settling.faults import SettleOptions
    from mmemb_r1.training.settling.reading import Reading

    dist.init_process_group("gloo")
    distributed._TELL_EVERY = 0.0  # the main process tells the other one after every few rows that it is at work
    rank = dist.get_rank()
    model, processor = MMEmbR1Model.from_vlm(*build_tiny_vlm("qwen3_vl"))
    rows = [
        {"pair_id": str(n), "query": {"text": f"{n}", "image": "gone.png" if n == 70 else None}} for n in range(99)
    ]
    given = [settling.PairsTable(Dataset.from_list(rows))]
    reading = Reading.of(processor, model.config)
    measured = []
    measure = Reading.measure_input
    Reading.measure_input = lambda self, value: (measured.append(value), measure(self, value))[1]  # type: ignore
    options = SettleOptions(on_error="skip", max_skipped=0.5)
    found = settling.settle(given, reading, options, folder=folder / "kept")
    try:
        settling.settle(given, reading, SettleOptions(), folder=folder / "kept")
        refused = ""
    except ValueError as error:
        refused = str(error)
    result = {
        "left": found.tables[0]["pair_id"][:],
        "skipped": [one.row for one in found.skipped],
        "refused": refused,
        "measured": len(measured),
    }
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", __file__, str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["skipped"] == second["skipped"] == [70] and len(first["left"]) == 98
    assert first["left"] == second["left"]
    assert "row 70, pair '70', query" in first["refused"] and first["refused"] == second["refused"]
    assert (first["measured"], second["measured"]) == (99, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
