"""A process that is killed while it indexes leaves an index that opens, with nothing in it twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from mmemb_r1.index import Index, build_index
from mmemb_r1.index.store import open_rows

KILLS = 10
# one process imports and loads, and forks one for each run: LanceDB is imported in these alone
SCRIPT = """
import os, sys
from mmemb_r1 import MMEmbR1
from mmemb_r1.index import building
model = MMEmbR1(sys.argv[2])
for line in sys.stdin:
    if not (child := os.fork()):
        building.database()
        print(os.getpid(), flush=True)
        building.build_index(sys.argv[1], model, sys.argv[3], shard_size=2)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_ten_kills_lose_and_double_nothing(tiny_checkpoint, tmp_path):
    from mmemb_r1 import MMEmbR1

    source = tmp_path / "source"
    source.mkdir()
    numbers = random.Random(0)

    def write(number):
        colour = tuple(numbers.randrange(256) for _ in range(3))
        Image.new("RGB", (48, 48), colour).save(source / f"{number:03}.png")
        (source / f"{number:03}.txt").write_text(f"text {number} {colour}", encoding="utf-8")

    for number in range(60):
        write(number)
    killed = 0
    command = [sys.executable, "-c", SCRIPT, str(source), str(tiny_checkpoint), str(tmp_path / "index")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for attempt in range(40):
            if killed == KILLS:
                break
            for number in numbers.sample(range(60), 20):  # the source changes between the runs
                write(number)
            (source / f"{attempt:03}.txt").unlink(missing_ok=True)
            process.stdin.write("\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            time.sleep(numbers.uniform(0.0, 0.8))
            os.kill(child, signal.SIGKILL)
            killed += int(process.stdout.readline()) == -signal.SIGKILL
            if (table := open_rows(tmp_path / "index")) is not None:
                ids = table.search().select(["id"]).limit(1000).to_arrow()["id"].to_pylist()
                assert len(ids) == len(set(ids))
        process.stdin.close()
    assert killed == KILLS
    model = MMEmbR1(str(tiny_checkpoint))
    build_index(source, model, tmp_path / "index")
    build_index(source, model, tmp_path / "fresh")
    there, fresh = (
        sorted(open_rows(tmp_path / name).to_arrow().to_pylist(), key=lambda row: row["id"])
        for name in ("index", "fresh")
    )
    assert [row["id"] for row in there] == sorted(path.name for path in source.iterdir())
    for one, other in zip(there, fresh, strict=True):
        assert np.allclose(one.pop("vector"), other.pop("vector"), atol=1e-5)
        assert one.pop("gate_prob") == pytest.approx(other.pop("gate_prob"), abs=1e-5)
        assert one == other
    assert len(Index.open(tmp_path / "index", model).search("a text", 5).hits) == 5
