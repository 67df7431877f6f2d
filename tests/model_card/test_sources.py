from __future__ import annotations

import json

import pytest

from mmemb_r1.model_card.sources import TRAINING_FILE, read_curve, read_emissions, read_results, read_training

CURVE = "threshold,invocation,r1,low,high\n0.5,0.25,0.5,0.4,0.6\n"


def test_the_trainers_write_what_is_read(tmp_path):
    from mmemb_r1.training.base_trainer import write_facts

    write_facts(tmp_path, {"phase": "joint"}, 3)
    assert read_training(tmp_path / TRAINING_FILE) == {"phase": "joint", "steps": 3}


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("config", "modes"), [], "config/modes is []; allowed: a list of the reasoning modes"),
        (("config", "modes"), ["never", ["always"]], "config/modes is ['never', ['always']]; allowed: a list"),
        (("tasks", "fact-capital", "metric"), None, "tasks/fact-capital/metric is None; allowed: a name"),
        (("tasks", "fact-capital", "groups"), {"a": []}, "tasks/fact-capital/groups is {'a': []}; allowed: an object"),
        (("tasks",), {}, "tasks is {}; allowed: an object with something in it"),
        (("tasks", "fact-capital", "n"), "many", "tasks/fact-capital/n is 'many'; allowed: a number, 0 or more"),
        (("tasks", "fact-capital", "majority"), 2, "tasks/fact-capital/majority is 2; allowed: a number from 0 to 1"),
        (("tasks", "fact-capital", "text_alone"), -1, "tasks/fact-capital/text_alone is -1; allowed: a number from 0"),
        (("tasks", "picture-name", "no_image"), [1], "tasks/picture-name/no_image is [1]; allowed: an object"),
        (("tasks", "picture-name", "modes", "never"), None, "modes/never is None; allowed: an object"),
        (("tasks", "picture-name", "modes", "never", "hit@1"), float("nan"), "never/hit@1 is nan; allowed: a number"),
        (("summary", "all"), None, "summary/all is None; allowed: an object"),
        (("summary", "all", "modes", "always", "seconds_per_query"), -1, "always/seconds_per_query is -1; allowed"),
    ],
)
def test_damaged_results_say_where(results, keys, value, message):
    content = json.loads(results.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    results.write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        read_results(results)
    assert str(error.value).startswith(f"{results}: ") and message in str(error.value)


def test_damaged_intervals_say_where(newer_results):
    content = json.loads(newer_results.read_text())
    content["tasks"]["fact-capital"]["modes"]["never"]["interval"] = [0.5]
    newer_results.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"modes/never/interval is \[0.5\]; allowed: a list of two numbers from 0 to 1"
    ):
        read_results(newer_results)


def test_results_without_a_mean_over_all_are_damaged(results):
    content = json.loads(results.read_text())
    del content["summary"]["all"]
    results.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="summary/all is None"):
        read_results(results)


@pytest.mark.parametrize("reader", [read_results, read_training])
def test_what_is_not_json_is_named(tmp_path, reader):
    path = tmp_path / "some.json"
    for content in (b'{"config": {', b"\xff\xfe{}"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="some.json is not JSON: .*; write the file again, or leave it out"):
            reader(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="some.json"):
        reader(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CURVE.replace("r1", "score"), "has no column 'r1'; it has threshold, invocation, score"),
        (CURVE.splitlines()[0], "has no rows"),
        ("", "has no column 'threshold'; it has none"),
        (CURVE.replace("0.25", "often"), "line 2, invocation is 'often'; allowed: a number"),
        (CURVE.replace("0.25", "nan"), "line 2, invocation is 'nan'; allowed: a number"),
        (CURVE.replace("0.25", "25"), "line 2, invocation is 25.0; allowed: a number from 0 to 1"),
        (CURVE + "0.4,0.5\n", "line 3, r1 is None; allowed: a number"),
        (
            "split," + CURVE.replace("\n0.5", "\ntest,0.5") + "train,0.5,1,0,0,0\n",
            "split is .*; a curve is of one",
        ),
    ],
)
def test_damaged_curves_say_where(tmp_path, text, message):
    path = tmp_path / "curve.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_curve(path)


@pytest.mark.parametrize(
    ("name", "content", "split"),
    [
        ("curve-test.csv", CURVE, "test"),
        ("curve.csv", CURVE, None),
        ("curves.csv", CURVE, None),
        ("curve-test.csv", "split," + CURVE.replace("\n0.5", "\nvalidation,0.5"), "validation"),
    ],
)
def test_the_split_is_in_a_column_or_in_the_name(tmp_path, name, content, split):
    (tmp_path / name).write_text(content)
    assert read_curve(tmp_path / name).split == split


def test_damaged_emissions_say_where(tmp_path):
    path = tmp_path / "emissions.csv"
    path.write_text("timestamp,emissions\nnow,0.1\n")
    with pytest.raises(ValueError, match="emissions.csv has no column 'run_id'"):
        read_emissions(path)
    path.write_text("run_id,emissions\na,much\n")
    with pytest.raises(ValueError, match="emissions of run a is 'much'; allowed: a number"):
        read_emissions(path)
    path.write_text("run_id,emissions\na,-1\n")
    with pytest.raises(ValueError, match="emissions is -1.0; allowed: a number, 0 or more"):
        read_emissions(path)
