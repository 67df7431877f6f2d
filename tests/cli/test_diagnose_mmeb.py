"""`mmemb-r1 diagnose` on a local copy."""

from __future__ import annotations

import json

from mmemb_r1.cli import main


def test_a_task_of_the_copy(tiny_checkpoint, copy, miniature, tmp_path):
    miniature("ImageNet-1K")
    options = ["--tasks", "ImageNet-1K", "--max-queries", "2", "--output", str(tmp_path / "out"), "--device", "cpu"]
    main(["diagnose", "--model", str(tiny_checkpoint), "--mmeb", str(copy.root), *options])
    results = json.loads((tmp_path / "out" / "shortcut.json").read_text())
    assert results["config"]["dataset"] == "MMEB-V2" and set(results["tasks"]) == {"ImageNet-1K"}
    assert {"image", "image/classification", "all"} <= set(results["summary"])
    assert results["tasks"]["ImageNet-1K"]["n"] == 2
