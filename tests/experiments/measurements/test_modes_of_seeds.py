from __future__ import annotations

import json

import pytest

from experiments.measurements import modes_of_seeds
from mmemb_r1.evaluation.run_folder import COLUMNS, rows_path, write_columns

# Two tasks, two queries each: thinking helps one query of `a`, and harms one of `b`.
SCORES = {
    "never": {"a": (0, 1), "b": (1, 1)},
    "always": {"a": (1, 1), "b": (0, 1)},
    "auto": {"a": (1, 1), "b": (1, 1)},
}
THINKS = {
    "never": {"a": (0, 0), "b": (0, 0)},
    "always": {"a": (1, 1), "b": (1, 1)},
    "auto": {"a": (1, 0), "b": (0, 0)},
}


def write_run(folder, worse=0):
    """An evaluation of both tasks; in a `worse` one auto finds nothing of `b`."""
    kinds = {"a": "multi-hop", "b": "perceptual"}
    for mode, tasks in SCORES.items():
        for task, scores in tasks.items():
            values = (0, 0) if worse and (mode, task) == ("auto", "b") else scores
            thinks = THINKS[mode][task]
            rows = {
                "query_id": [f"{task}/1", f"{task}/2"], "cluster": ["x", "y"], "score": list(map(float, values)),
                "rank": [1, 1], "margin": [0.0, 0.0], "alignment": [0.5, 0.5], "gate_prob": [0.5, 0.5],
                "reasoned": list(map(bool, thinks)), "num_reasoning_tokens": [10 * one for one in thinks],
                "num_reasoning_rounds": list(thinks), "rationale": ["", ""], "query_text": ["", ""],
            }  # fmt: skip
            path = rows_path(folder, task, mode)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_columns(path, rows, COLUMNS)
    tasks = {task: {"complexity": kind, "modes": dict.fromkeys(SCORES, {})} for task, kind in kinds.items()}
    results = {"format": 2, "config": {}, "tasks": tasks, "summary": {}}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def test_what_modes_are_worth(tmp_path):
    columns = modes_of_seeds.read_runs([write_run(tmp_path / str(seed)) for seed in range(2)])
    assert len(columns["never"]) == 8 and modes_of_seeds.modes_of(columns) == ["never", "always", "auto"]
    kinds = modes_of_seeds.kinds_of(columns)
    assert {name: int(where.sum()) for name, where in kinds.items()} == {
        "all": 8, "before": 4, "multi-hop": 4, "perceptual": 4,
    }  # fmt: skip
    found = modes_of_seeds.worth(columns)
    assert found["oracle"]["score"][0] == 1 and found["never"]["score"][0] == found["always"]["score"][0] == 0.75
    auto = found["auto"]
    assert (auto["score"][0], auto["over the better fixed"][0], auto["captured"]) == (1, 0.25, 1)
    assert auto["tokens"] == 0.25 and auto["much"] == 0.5 and auto["little"] is None
    hop = modes_of_seeds.worth(modes_of_seeds.only(columns, kinds["multi-hop"]))
    assert hop["auto"]["captured"] is None  # always is as good as can be


def test_runs_are_compared_query_by_query(tmp_path, capsys, monkeypatch):
    runs = [str(write_run(tmp_path / f"a{seed}")) for seed in range(2)]
    others = [str(write_run(tmp_path / f"b{seed}", worse=seed)) for seed in range(2)]
    output = tmp_path / "results.json"
    monkeypatch.setattr("sys.argv", ["modes_of_seeds", *runs, "--against", *others, "--output", str(output)])
    modes_of_seeds.main()
    said = json.loads(output.read_text(encoding="utf-8"))
    assert said["all"]["against"]["auto"][0] == pytest.approx(0.25) and said["all"]["against"]["always"][0] == 0
    assert said["multi-hop"]["against"]["auto"][0] == 0 and said["perceptual"]["against"]["auto"][0] == 0.5
    assert "+25.0" in capsys.readouterr().out


def test_modes_of_other_queries_are_refused(tmp_path):
    run = write_run(tmp_path / "run")
    path = rows_path(run, "a", "auto")
    rows = {name: values.tolist() for name, values in modes_of_seeds.read_query_rows(path).items()}
    write_columns(path, {**rows, "query_id": ["a/1", "a/3"]}, COLUMNS)
    with pytest.raises(SystemExit, match="the modes of the task a have other queries"):
        modes_of_seeds.read_runs([run])
