from __future__ import annotations

import builtins
import json

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from mmemb_r1.training.selection.config import SelectionOptions
from mmemb_r1.training.selection.report import WIDTH, direct_accuracy, quantiles, report_text, shown
from mmemb_r1.training.selection.select import select_rationales


@pytest.fixture
def report_of(pairs, rationales, tmp_path):
    def select(evaluator, *, pairs=pairs, rationales=rationales, **options):
        return select_rationales(pairs, rationales, evaluator, tmp_path, SelectionOptions(**options), progress=False)

    return select


class TestDirectAccuracy:
    def test_ranks_against_all_wrong_ones_and_a_tie_is_lost(self):
        found = direct_accuracy(np.array([1.0, 1.0, -1.0, 2.0]), np.array([[0, 0.5], [1, -1], [-2, -3], [3, -1]]))
        assert found["accuracy"] == 0.5
        assert found["chance"] == pytest.approx(1 / 3)
        # three of four pairs are above 0; of eight wrong ones, four are below
        assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 4 / 8) / 2)

    def test_says_when_it_is_near_chance(self):
        rng = np.random.default_rng(0)
        logits, negatives = rng.normal(size=1000), rng.normal(size=(1000, 4))
        assert direct_accuracy(logits, negatives)["near_chance"]
        assert direct_accuracy(np.zeros(9), np.zeros((9, 4)))["near_chance"]
        assert not direct_accuracy(logits + 2, negatives)["near_chance"]
        assert not direct_accuracy(logits + 0.5, negatives)["near_chance"]

    def test_of_nothing(self):
        assert direct_accuracy(np.zeros(3), np.zeros((3, 0)))["near_chance"] is None
        assert direct_accuracy(np.zeros(0), np.zeros((0, 4)))["accuracy"] is None


def test_quantiles():
    found = quantiles(np.array([np.nan, *range(101)]))
    assert found == {"0%": 0, "5%": 5, "25%": 25, "50%": 50, "75%": 75, "95%": 95, "100%": 100}
    assert quantiles(np.array([np.nan])) is None


def test_shown():
    assert (
        shown({"image": [b"", b""], "video": "a.mp4", "text": " a\n b ", "instruction": "x"})
        == "[image] [image] [video] a b"
    )


@pytest.mark.usefixtures("no_picture")
class TestReport:
    def test_counts(self, report_of, evaluator, pairs):
        report = report_of(evaluator("knowing"))
        assert report["rows"] == {"rows": 180, "failed": 12, "other": 0, "scored": 168, "kept": 60, "share": 60 / 168}
        assert {name: counts["share"] for name, counts in report["workers"].items()} == {
            "empty talk": 0, "flaky": 1, "right": 1, "wrong": 0,
        }  # fmt: skip
        assert report["workers"]["flaky"]["failed"] == 12
        assert report["workers"]["right"]["gain"]["0%"] > 0 > report["workers"]["wrong"]["gain"]["100%"]
        assert report["warnings"] == []
        direct = report["evaluator"]["direct"]
        assert direct == {
            "trials": 36, "negatives": 4, "accuracy": 1, "chance": 0.2, "balanced_accuracy": 1, "near_chance": False,
        }  # fmt: skip

    def test_inputs_with_nothing_kept(self, report_of, evaluator, rationales):
        def keeps(row):
            return row["worker"] == "wrong" or (row["worker"] == "flaky" and row["side"] == "query")

        report = report_of(evaluator("knowing"), rationales=rationales.filter(keeps))
        assert report["inputs"] == {
            "query": {
                "capital": {"inputs": 12, "none_kept": 4, "share": 1 / 3},
                "sum": {"inputs": 6, "none_kept": 2, "share": 1 / 3},
            },
            "target": {
                "capital": {"inputs": 12, "none_kept": 12, "share": 1},
                "sum": {"inputs": 6, "none_kept": 6, "share": 1},
            },
        }

    def test_examples_are_of_different_inputs(self, report_of, evaluator):
        report = report_of(evaluator("guessing"))
        assert set(report["examples"]) == {"largest", "smallest"}
        for name, sign in (("largest", 1), ("smallest", -1)):
            examples = report["examples"][name]
            assert len({(example["pair_id"], example["side"]) for example in examples}) == 5
            gains = [sign * example["gain"] for example in examples]
            assert gains == sorted(gains, reverse=True) and gains[-1] > 0
        extreme = report["examples"]["largest"][0]
        assert extreme["gain"] == pytest.approx(report["gain"]["100%"])
        assert extreme["pair_id"].endswith(extreme["query"])

    def test_options_are_written_with_their_defaults_filled_in(self, report_of, evaluator):
        options = report_of(evaluator("knowing"), selection="absolute", wrong_pair_correction=False)["options"]
        assert (options["margin"], options["temperature"]) == (0.5, 0.1)
        options = report_of(evaluator("knowing"), space="log-odds")["options"]
        assert (options["margin"], options["temperature"]) == (0.0, 1.0)


class TestWarnings:
    @pytest.mark.usefixtures("no_picture")
    def test_of_an_evaluator_at_chance(self, report_of, evaluator):
        (warning,) = report_of(evaluator("guessing"))["warnings"]
        assert "the evaluator tells the right pair from 4 wrong ones in" in warning
        assert "counterfactual selection is no better than absolute" in warning

    @pytest.mark.usefixtures("no_picture")
    def test_of_confidences_that_are_off(self, report_of, evaluator):
        def sceptical(query, target, rationale):
            return evaluator("knowing").answer(query, target, rationale) - 10

        (warning,) = report_of(evaluator(sceptical))["warnings"]
        assert "puts the right pair first in 100.0% of the trials, but its yes and no are right in 50.0%" in warning

    @pytest.mark.usefixtures("no_picture")
    def test_of_nothing_kept_and_nothing_judged(self, report_of, evaluator, make_rationale):
        rows = [
            make_rationale("sum/1 + 1", "wrong", "1 + 1 is 3"),
            make_rationale("sum/1 + 1", "down", None, error="x"),
        ]
        report = report_of(evaluator("knowing"), rationales=Dataset.from_list(rows))
        assert "No rationale was kept" in report["warnings"][0]
        assert "None of the 1 rationales of down could be scored" in report["warnings"][1]

    def test_of_nobody_to_swap_with(self, report_of, evaluator, make_rationale, tmp_path):
        only = Dataset.from_list([make_rationale("sum/1 + 1", "lonely", "1 + 1 is 2")])
        report = report_of(evaluator("knowing"), rationales=only, intervention="swap")
        assert report["evaluator"]["direct"]["trials"] == report["rows"]["scored"] == 0
        assert "None of the 1 rationales of lonely could be scored" in report["warnings"][1]
        assert (tmp_path / "report.png").exists()


class TestFiles:
    @pytest.mark.usefixtures("no_picture")
    def test_json_is_the_report(self, report_of, evaluator, tmp_path):
        report = report_of(evaluator("guessing"))
        assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report

    @pytest.mark.usefixtures("no_picture")
    def test_text(self, report_of, evaluator, tmp_path):
        report = report_of(evaluator("guessing"))
        text = (tmp_path / "report.txt").read_text(encoding="utf-8")
        assert text == report_text(report)
        assert max(map(len, text.splitlines())) <= WIDTH
        assert f"Kept {report['rows']['kept']} of 168 rationales scored" in text
        assert "Of 180 in all, 12 had failed" in text
        assert "WARNING: Without rationales" in text
        assert all(f" {name}" in text for name in report["workers"])
        for examples in report["examples"].values():
            assert all(f"{example['gain']:+.3f}  {example['worker']}" in text for example in examples)

    @pytest.mark.usefixtures("no_picture")
    def test_text_is_not_markup(self, report_of, evaluator, rationales):
        renamed = rationales.map(lambda row: {"worker": f"[red]{row['worker']}"})
        assert "[red]right" in report_text(report_of(evaluator("knowing"), rationales=renamed))

    @pytest.mark.parametrize("options", [{}, {"selection": "none"}, {"selection": "absolute", "space": "log-odds"}])
    def test_picture(self, report_of, evaluator, tmp_path, options):
        report_of(evaluator("guessing"), **options)
        with Image.open(tmp_path / "report.png") as picture:
            assert picture.format == "PNG"
            assert np.asarray(picture.convert("L")).std() > 10

    def test_picture_of_one_rationale(self, report_of, evaluator, pairs, make_rationale, tmp_path):
        report_of(
            evaluator("knowing"),
            pairs=pairs.remove_columns("task"),
            rationales=Dataset.from_list([make_rationale("sum/1 + 1", "w", "1 + 1 is 2")]),
        )
        assert (tmp_path / "report.png").exists()

    def test_without_matplotlib_the_rest_is_there(self, report_of, evaluator, tmp_path, monkeypatch, caplog):
        original = builtins.__import__

        def without(name, *args, **kwargs):
            if name.startswith("matplotlib"):
                raise ImportError(name)
            return original(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without)
        report_of(evaluator("knowing"))
        assert "there is no report.png: pictures need matplotlib: pip install 'mmemb-r1[atlas]'" in caplog.text
        assert {file.name for file in tmp_path.iterdir()} == {
            "run.json", "shards", "candidates.parquet", "selected.parquet", "report.txt", "report.json",
        }  # fmt: skip
