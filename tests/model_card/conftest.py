"""A checkpoint that may be written to, and files as an evaluation, a sweep of thresholds and CodeCarbon write them."""

from __future__ import annotations

import csv
import shutil

import pytest
from PIL import Image

from mmemb_r1.evaluation import load_results, save_results


def numbers(hit, ratio, tokens, seconds):
    return {
        "hit@1": hit,
        "mrr": hit,
        "invocation_ratio": ratio,
        "mean_reasoning_tokens": tokens,
        "seconds_per_query": seconds,
    }


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint as it was saved, without any other file."""
    folder = tmp_path / "tiny-model"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "README.md").unlink()
    return folder


@pytest.fixture
def results(tmp_path):
    """Two tasks: one that thinking solves, one that nothing solves."""
    solved = {"never": numbers(0.25, 0.0, 0.0, 0.004), "always": numbers(0.75, 1.0, 7.25, 0.01)}
    unsolved = {"never": numbers(0.125, 0.0, 0.0, 0.004), "always": numbers(0.0625, 1.0, 9.0, 0.01)}
    means = {"never": numbers(0.1875, 0.0, 0.0, 0.004), "always": numbers(0.40625, 1.0, 8.125, 0.01)}
    path = tmp_path / "evaluation.json"
    save_results(
        {
            "config": {
                "modes": ["never", "always"],
                "dataset": "Atlas",
                "split": "test",
                "batch_size": 4,
                "versions": {"torch": "9.9"},
            },
            "tasks": {
                "picture-name": {
                    "complexity": "simple",
                    "n": 16,
                    "candidates": 40,
                    "modes": solved,
                    "majority": 0.125,
                    "no_image": {"never": 0.5, "always": 0.375},
                    "data": {"dataset": "Atlas", "content": "1a2b"},
                },
                "fact-capital": {
                    "complexity": "simple",
                    "n": 1600,
                    "candidates": 40,
                    "modes": unsolved,
                    "majority": 0.125,
                    "data": {"dataset": "Atlas", "content": "1a2b"},
                },
            },
            "summary": {name: {"tasks": 2, "n": 1616, "modes": means} for name in ("simple", "all")},
        },
        path,
    )
    return path


@pytest.fixture
def newer_results(results, tmp_path):
    """The same with what a newer evaluation knows: intervals, another metric, and times of one task alone."""
    content = load_results(results)
    for entry in [*content["tasks"].values(), *content["summary"].values()]:
        for measured in entry["modes"].values():
            measured["interval"] = [measured["score"] / 2, measured["score"]]
    for entry in (content["tasks"]["fact-capital"], content["summary"]["simple"], content["summary"]["all"]):
        for measured in entry["modes"].values():
            measured["seconds_per_query"] = None
    task = content["tasks"]["fact-capital"]
    task["metric"] = "ndcg_linear@5"
    task["modes"]["never"] |= {"hit@1": 0.0}  # not what the task is scored by
    content["config"]["document_reasoning"] = "auto"
    path = tmp_path / "newer.json"
    save_results(content, path)
    return path


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def sweep(tmp_path):
    """A curve of 41 points with its picture beside it, in a folder of its own."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    rows = [
        {
            "threshold": 1.1 - step / 40,
            "invocation": step / 40,
            "r1": 0.4 + step / 200,
            "low": 0.3 + step / 200,
            "high": 0.5 + step / 200,
        }
        for step in range(41)
    ]
    Image.new("RGB", (8, 8), "white").save(folder / "curve-test.png")
    return write_csv(folder / "curve-test.csv", rows)


@pytest.fixture
def emissions(tmp_path):
    """Two runs; the first one's rows are sums since its start, and hold where the machine stands."""
    machine = {
        "country_name": "Norway",
        "gpu_model": "1 x Some GPU",
        "cpu_model": "Some CPU",
        "latitude": 59.94,
        "longitude": 10.75,
    }
    rows = [("a", 0.001), ("a", 0.0105), ("b", 0.002)]
    return write_csv(
        tmp_path / "emissions.csv",
        [{"run_id": run, "emissions": kilograms, **machine} for run, kilograms in rows],
    )
