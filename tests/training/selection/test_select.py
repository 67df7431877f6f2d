from __future__ import annotations

import io
import json
import logging
import math
from collections import defaultdict

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, to_conversations
from mmemb_r1.training.selection.config import SelectionOptions
from mmemb_r1.training.selection.evaluator import TrialError
from mmemb_r1.training.selection.select import select_rationales
from mmemb_r1.training.settling.faults import SettleOptions

RIGHT = {"right", "flaky"}


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def table(folder, name="selected"):
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def groups(rows):
    found = defaultdict(list)
    for row in rows:
        found[row["pair_id"], row["side"]].append(row)
    return found


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """It takes longer than all the rest."""
    monkeypatch.setattr("mmemb_r1.training.selection.select.draw_report", lambda *args: None)


@pytest.fixture
def run(pairs, rationales, tmp_path):
    """`run(evaluator, folder="out", **options)` selects and returns the folder."""

    def select(
        evaluator,
        folder="out",
        *,
        pairs=pairs,
        rationales=rationales,
        batch_size=3,
        shard_size=5,
        part=(1, 1),
        settling=None,
        **options,
    ):
        select_rationales(
            pairs, rationales, evaluator, tmp_path / folder, SelectionOptions(**options),
            batch_size=batch_size, shard_size=shard_size, part=part, progress=False, settling=settling,
        )  # fmt: skip
        return tmp_path / folder

    return select


class TestWhatIsKept:
    def test_what_helps_the_pair_and_nothing_else(self, run, evaluator):
        folder = run(evaluator("knowing"))
        kept = table(folder)
        assert {row["worker"] for row in kept} == RIGHT
        judged = [row for row in table(folder, "candidates") if row["worker"] in RIGHT and row["text"]]
        assert len(kept) == len(judged)

    def test_an_evaluator_that_believes_any_rationale(self, run, evaluator, rationales):
        usable = sum(text is not None for text in rationales["text"])
        assert len(table(run(evaluator("gullible"), wrong_pair_correction=False))) == usable
        assert len(table(run(evaluator("gullible"), wrong_pair_correction=True))) == 0
        assert len(table(run(evaluator("gullible"), wrong_pair_correction=True, selection="absolute"))) == 0
        assert len(table(run(evaluator("gullible"), wrong_pair_correction=False, selection="absolute"))) == usable

    @pytest.mark.parametrize("corrected", [True, False])
    def test_if_it_is_undecided_without_rationales_counterfactual_is_absolute(self, run, evaluator, corrected):
        def undecided(query, target, rationale):
            return 0.0 if rationale is None else evaluator("guessing").answer(query, target, rationale)

        first, second = (
            table(run(evaluator(undecided), selection=name, space="log-odds", wrong_pair_correction=corrected))
            for name in ("counterfactual", "absolute")
        )
        assert first == second
        assert 0 < len(first) < 150

    def test_none_keeps_all_with_equal_weights(self, run, evaluator, rationales):
        kept = table(run(evaluator("guessing"), selection="none"))
        assert len(kept) == sum(text is not None for text in rationales["text"])
        for rows in groups(kept).values():
            assert [row["posterior"] for row in rows] == pytest.approx([1 / len(rows)] * len(rows))

    def test_a_margin_has_to_be_exceeded(self, run, evaluator):
        folder = run(evaluator("knowing"))
        gains = sorted({row["gain"] for row in table(folder)})
        run(evaluator("knowing"), margin=gains[0])
        assert sorted({row["gain"] for row in table(folder)}) == gains[1:]

    def test_absolute_without_pairs_compares_the_confidence_with_a_half(self, run, evaluator):
        folder = run(evaluator("guessing"), selection="absolute", wrong_pair_correction=False)
        for row in table(folder, "candidates"):
            if row["text"] is not None:
                assert row["gain"] == row["confidence_with"]
                assert row["kept"] == (row["confidence_with"] > 0.5)

    def test_the_posterior_is_a_softmax_of_the_gains_kept(self, run, evaluator):
        folder = run(evaluator("guessing"), temperature=0.25)
        several = 0
        for rows in groups(table(folder, "candidates")).values():
            kept = [row for row in rows if row["kept"]]
            assert all((row["gain"] or 0) > 0 for row in kept)
            assert all(row["posterior"] == 0 for row in rows if not row["kept"])
            total = sum(math.exp(row["gain"] / 0.25) for row in kept)
            for row in kept:
                assert row["posterior"] == pytest.approx(math.exp(row["gain"] / 0.25) / total, rel=1e-4)
            several += len(kept) > 1
        assert several > 5


class TestTheGain:
    @pytest.mark.parametrize("intervention", ["drop", "swap", "shuffle"])
    @pytest.mark.parametrize("space", ["probability", "log-odds"])
    def test_is_that_of_the_formula(self, run, evaluator, pairs, intervention, space):
        fake = evaluator("guessing")
        folder = run(fake, intervention=intervention, space=space, num_negatives=3)
        inputs = {pair["pair_id"]: pair for pair in pairs}
        scale = sigmoid if space == "probability" else float
        trials = {(trial.side, trial.anchor["text"]): trial for trial in fake.trials}
        shards = [
            row for shard in sorted(folder.glob("shards/*/*.parquet")) for row in pq.read_table(shard).to_pylist()
        ]
        candidates = table(folder, "candidates")
        assert len(shards) == len(candidates)
        for score, row in zip(shards, candidates, strict=True):
            if row["text"] is None:
                assert (
                    row["gain"] is row["confidence_with"] is row["confidence_without"] is score["logit_with"] is None
                )
                continue
            trial = trials[row["side"], inputs[row["pair_id"]][row["side"]]["text"]]
            answers = {
                text: [fake._row(trial, other)[place] for other in trial.others]
                for place, text in enumerate(trial.rationales)
            }
            given = answers[row["text"]]
            assert [score["logit_with"], *score["negatives_with"]] == pytest.approx(given)
            instead = [score["logit_without"], *score["negatives_without"]]
            assert any(instead == pytest.approx(values) for values in answers.values())
            assert [score["logit_direct"], *score["negatives_direct"]] == pytest.approx(answers[None])
            if intervention == "drop":
                assert instead == pytest.approx(answers[None])
            change = [scale(after) - scale(before) for after, before in zip(given, instead, strict=True)]
            assert row["gain"] == pytest.approx(change[0] - max(0, sum(change[1:]) / 3), abs=1e-5)
            assert row["confidence_with"] == pytest.approx(sigmoid(given[0]), abs=1e-6)
            assert row["confidence_without"] == pytest.approx(sigmoid(instead[0]), abs=1e-6)


class TestTrials:
    def test_there_is_one_per_input_with_all_its_rationales(self, run, evaluator, pairs, rationales):
        fake = evaluator("knowing")
        run(fake, num_negatives=3)
        assert len(fake.trials) == 2 * len(pairs)
        partners = dict(
            zip((row["text"] for row in pairs["query"]), (row["text"] for row in pairs["target"]), strict=True)
        )
        partners |= {target: query for query, target in partners.items()}
        asked = 0
        for trial in fake.trials:
            assert trial.rationales[0] is None
            assert len(set(trial.rationales)) == len(trial.rationales)
            assert len(trial.others) == 4
            assert trial.others[0]["text"] == partners[trial.anchor["text"]]
            asked += len(trial.rationales) - 1
        # a worker that says the same twice is heard once
        usable = {(row["pair_id"], row["side"], row["text"]) for row in rationales if row["text"]}
        assert asked == len(usable)

    def test_come_in_batches(self, run, evaluator):
        fake = evaluator("knowing")
        run(fake, batch_size=4, shard_size=10)
        assert fake.calls == [4, 4, 2] * 3 + [4, 2]

    def test_hold_swapped_rationales_of_the_same_kind(self, run, evaluator, rationales):
        fake = evaluator("knowing")
        some = rationales.filter(lambda row: row["worker"] in ("right", "wrong"))
        run(fake, intervention="swap", rationales=some)
        kind_of = {row["text"]: (row["worker"], row["pair_id"].split("/")[0]) for row in some}
        for trial in fake.trials:
            kinds = [kind_of[text] for text in trial.rationales[1:]]
            task = kinds[0][1]
            assert sorted(kinds) == [("right", task)] * 2 + [("wrong", task)] * 2

    def test_a_swapped_rationale_that_says_the_same_gains_nothing(self, run, evaluator):
        folder = run(evaluator("knowing"), intervention="swap")
        assert {row["gain"] for row in table(folder, "candidates") if row["worker"] == "empty talk"} == {0}

    def test_hold_shuffled_rationales(self, run, evaluator):
        fake = evaluator("knowing")
        run(fake, intervention="shuffle")
        for trial in fake.trials:
            words = [tuple(sorted(text.split())) for text in trial.rationales[1:]]
            assert all(words.count(some) == 2 for some in words)

    def test_nobody_to_swap_with(self, run, evaluator, rationales, make_rationale):
        lonely = Dataset.from_list([*rationales, make_rationale("sum/1 + 1", "lonely", "Only I.")])
        folder = run(evaluator("knowing"), rationales=lonely, intervention="swap")
        (row,) = [row for row in table(folder, "candidates") if row["worker"] == "lonely"]
        assert (row["gain"], row["posterior"], row["kept"]) == (None, 0, False)
        assert row["reason"] == "nothing to swap with"

    def test_own_negatives_come_first(self, run, evaluator, pairs):
        first = {**pairs[0], "negatives": [{"text": "Arequipa"}]}
        fake = evaluator("knowing")
        run(fake, pairs=Dataset.from_list([first, *pairs.select(range(1, len(pairs)))]), num_negatives=2)
        (trial,) = [trial for trial in fake.trials if trial.anchor == {"text": "Peru"}]
        assert [other["text"] for other in trial.others[:2]] == ["Lima", "Arequipa"]

    def test_pictures_stay_undecoded(self, run, evaluator, make_rationale):
        stream = io.BytesIO()
        Image.new("RGB", (4, 4), "red").save(stream, "png")
        inputs = {"text": Value("string"), "image": List(ImageFeature())}
        rows = [
            {
                "pair_id": str(number),
                "query": {"text": f"q{number}", "image": [{"bytes": stream.getvalue(), "path": None}]},
                "target": {"text": f"t{number}", "image": []},
            }
            for number in range(3)
        ]
        features = Features({"pair_id": Value("string"), "query": inputs, "target": inputs})
        fake = evaluator("guessing")
        run(
            fake,
            pairs=Dataset.from_list(rows, features=features),
            rationales=Dataset.from_list([make_rationale("1", "w", "A flag.")]),
            num_negatives=2,
        )
        (trial,) = fake.trials
        assert trial.anchor == {"text": "q1", "image": [{"bytes": stream.getvalue(), "path": None}]}
        assert trial.others[0] == {"text": "t1"}


class TestTables:
    def test_every_rationale_is_a_candidate_with_its_columns(self, run, evaluator, rationales):
        labelled = rationales.add_column("is_right", [worker in RIGHT for worker in rationales["worker"]])
        folder = run(evaluator("knowing"), rationales=labelled)
        key = ("pair_id", "side", "worker", "sample")
        found = {tuple(row[name] for name in key): row for row in table(folder, "candidates")}
        assert len(found) == len(table(folder, "candidates")) == len(labelled)
        for row in labelled:
            candidate = found[tuple(row[name] for name in key)]
            assert {name: candidate[name] for name in row} == row
            assert (candidate["reason"] is None) == candidate["kept"]
            if row["text"] is None:
                assert candidate["reason"] == "failed"
            elif not candidate["kept"]:
                assert candidate["reason"] == "gain"
        selected = table(folder)
        judgement = {"confidence_with", "confidence_without", "gain", "posterior"}
        assert set(selected[0]) == set(labelled.column_names) | judgement
        assert all(row["is_right"] for row in selected)

    def test_a_rationale_without_words_is_none(self, run, evaluator, rationales, make_rationale):
        more = Dataset.from_list([*rationales, make_rationale("sum/1 + 1", "mute", " \n")])
        (row,) = [
            row for row in table(run(evaluator("knowing"), rationales=more), "candidates") if row["worker"] == "mute"
        ]
        assert (row["kept"], row["reason"], row["gain"]) == (False, "empty", None)

    def test_a_rationale_that_the_budget_cut_off_is_none(self, run, evaluator, make_rationale):
        """It would be trained on as if it ended there."""
        whole = make_rationale("sum/2 + 3", "w", "2 + 3 is 5")
        rows = [make_rationale("sum/1 + 1", "w", "1 + 1 is 2") | {"finish_reason": "length"}, whole]
        candidates = table(run(evaluator("knowing"), rationales=Dataset.from_list(rows)), "candidates")
        assert [(row["kept"], row["reason"]) for row in candidates] == [(False, "cut off"), (True, None)]

    def test_what_was_selected_can_be_selected_from(self, run, evaluator):
        folder = run(evaluator("knowing"))
        again = run(evaluator("knowing"), "again", rationales=Dataset.from_parquet(str(folder / "selected.parquet")))
        assert table(again) == table(folder)

    def test_an_input_where_all_failed_is_not_asked_about(self, run, evaluator, make_rationale):
        rows = [make_rationale("sum/1 + 1", "w", None, error="dark"), make_rationale("sum/2 + 3", "w", "2 + 3 is 5")]
        fake = evaluator("knowing")
        folder = run(fake, rationales=Dataset.from_list(rows))
        assert [trial.anchor["text"] for trial in fake.trials] == ["2 + 3"]
        assert [row["reason"] for row in table(folder, "candidates")] == ["failed", None]

    def test_do_not_depend_on_batches_and_shards(self, run, evaluator):
        first = run(evaluator("guessing"))
        second = run(evaluator("guessing"), "other", batch_size=100, shard_size=1000)
        for name in ("candidates", "selected"):
            for row, other in zip(table(first, name), table(second, name), strict=True):
                assert row == pytest.approx(other, abs=1e-6)

    def test_many_shards_make_few_row_groups(self, run, evaluator, monkeypatch):
        expected = table(run(evaluator("guessing")), "candidates")
        folder = run(evaluator("guessing"), "small", shard_size=1)
        assert len(list(folder.glob("shards/*/*.parquet"))) == 36
        assert pq.ParquetFile(folder / "candidates.parquet").num_row_groups == 1
        monkeypatch.setattr("mmemb_r1.training.selection.table._ROW_GROUP", 60)
        run(evaluator("guessing"), "small", shard_size=1)
        assert pq.ParquetFile(folder / "candidates.parquet").num_row_groups == 3
        for row, other in zip(table(folder, "candidates"), expected, strict=True):
            assert row == pytest.approx(other, abs=1e-6)

    def test_nothing_kept_is_an_empty_table(self, run, evaluator):
        folder = run(evaluator("gullible"))
        assert table(folder) == []
        assert "posterior" in pq.read_schema(folder / "selected.parquet").names


class Killed(BaseException):
    pass


class TestScores:
    def test_a_killed_run_goes_on(self, run, evaluator, caplog):
        expected = run(evaluator("guessing"), "undisturbed")
        fake, left = evaluator("guessing"), 7

        def answer(trials, judge=fake.match_logits):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return judge(trials)

        fake.match_logits = answer
        with pytest.raises(Killed):
            run(fake)
        asked = len(fake.trials)
        caplog.set_level(logging.INFO, "mmemb_r1.training.selection")
        left = 1000
        folder = run(fake)
        # two batches make a shard, so one batch of the shard in work was lost
        assert len(fake.trials) == 36 + asked - 15 == 36 + 3
        assert "3 of 8 shards are scored already" in caplog.messages
        for name in ("candidates", "selected"):
            assert table(folder, name) == table(expected, name)
        fake.trials.clear()
        run(fake)
        assert fake.trials == []

    def test_selecting_otherwise_asks_nothing(self, run, evaluator):
        run(evaluator("guessing"))
        fake = evaluator("guessing")
        for options in (
            {"selection": "none"},
            {"selection": "absolute"},
            {"space": "log-odds", "margin": 0.1},
            {"temperature": 3.0, "wrong_pair_correction": False},
        ):
            folder = run(fake, **options)
            fresh = run(evaluator("guessing"), f"fresh {options}", **options)
            assert table(folder, "candidates") == table(fresh, "candidates")
        assert fake.trials == []

    @pytest.mark.parametrize(
        ("options", "what"),
        [
            ({"intervention": "swap"}, "intervention was 'drop', is now 'swap'"),
            ({"num_negatives": 2}, "num_negatives was 4, is now 2"),
            ({"seed": 1}, "seed was 0, is now 1"),
        ],
    )
    def test_asking_otherwise_needs_another_folder(self, run, evaluator, options, what):
        run(evaluator("knowing"))
        with pytest.raises(ValueError, match=rf"{what} .*another selection, margin, space, temperature or"):
            run(evaluator("knowing"), **options)

    def test_so_does_another_evaluator(self, run, evaluator):
        run(evaluator("knowing"))
        with pytest.raises(ValueError, match=r"evaluator\.kind was 'fake', is now 'other'"):
            run(evaluator("knowing", name="other"))

    def test_a_run_that_scored_nothing_claims_nothing(self, run, evaluator):
        def broken(query, target, rationale):
            raise Killed

        with pytest.raises(Killed):
            run(evaluator(broken), num_negatives=2)
        run(evaluator("knowing"))

    def test_parts_share_the_work(self, run, evaluator, tmp_path):
        whole = run(evaluator("guessing"), "whole")
        first, second = evaluator("guessing"), evaluator("guessing")
        run(first, part=(1, 2))
        assert len(list(tmp_path.glob("out/shards/*/*.parquet"))) == 4
        assert not (tmp_path / "out" / "selected.parquet").exists()
        run(second, part=(2, 2))
        assert len(first.trials) + len(second.trials) == 36
        assert table(tmp_path / "out", "candidates") == table(whole, "candidates")

    @pytest.mark.parametrize("options", [{"batch_size": 0}, {"shard_size": 0}, {"part": (0, 1)}, {"part": (3, 2)}])
    def test_refuses_sizes(self, run, evaluator, options):
        with pytest.raises(ValueError, match="allowed: sizes from 1 and parts from 1/n to n/n"):
            run(evaluator("knowing"), **options)


class TestErrors:
    def test_a_pair_without_target(self, run, evaluator, pairs):
        rows = [*pairs.select(range(3)), {**pairs[3], "target": {"text": None}}]
        with pytest.raises(ValueError, match=r"row 3 \(pair_id 'capital/Kenya'\).* has no target"):
            run(evaluator("knowing"), pairs=Dataset.from_list(rows))

    def test_an_image_that_cannot_be_read(self, run, evaluator, make_rationale):
        """The pair that has it is named, wherever it is drawn."""
        rows = [
            {
                "pair_id": str(number),
                "query": {"text": f"q{number}"},
                "target": {"image": f"{number}.png", "text": "x"},
            }
            for number in range(2)
        ]
        fake = evaluator("guessing")
        said = Dataset.from_list([make_rationale("0", "w", "A flag.")])
        with pytest.raises(
            ValueError, match=r"2 of the 2 pairs .* row 0, pair '0', target: there is no image file '0\.png'"
        ):
            run(fake, pairs=Dataset.from_list(rows), rationales=said, num_negatives=1)
        rows = [{**row, "target": {"text": f"t{row['pair_id']}"}, "negatives": [{"image": "x.png"}]} for row in rows]
        with pytest.raises(ValueError, match=r"row 0, pair '0', negatives 0: there is no image file 'x\.png'"):
            run(fake, pairs=Dataset.from_list(rows), rationales=said, num_negatives=1)
        assert fake.trials == []

    @pytest.mark.parametrize("gone", [0, 1])
    def test_a_picture_that_goes_away_while_it_is_scored(self, run, evaluator, make_rationale, tmp_path, gone):
        pictures = [tmp_path / f"{number}.png" for number in range(2)]
        for number, picture in enumerate(pictures):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(picture)
        rows = [
            {"pair_id": str(number), "query": {"text": f"q{number}"}, "target": {"image": str(picture)}}
            for number, picture in enumerate(pictures)
        ]
        fake = evaluator("guessing")

        def strict(trials):
            pictures[gone].unlink()
            for index, trial in enumerate(trials):
                try:
                    to_conversations(trial.others)
                except InputError as error:
                    raise TrialError(index, error.reason) from error

        fake.match_logits = strict
        said = Dataset.from_list([make_rationale("0", "w", "A flag.")])
        with pytest.raises(ValueError, match=rf"the target of pair '{gone}' can't be read: .*no image.*{gone}\.png"):
            run(fake, pairs=Dataset.from_list(rows), rationales=said, num_negatives=1)

    def test_pairs_and_rationales_that_are_wrong_are_left_out(self, run, evaluator, pairs, rationales, tmp_path):
        undisturbed = table(run(evaluator("knowing")), "candidates")
        bad = [{**row, "target": {**row["target"], "image": None}} for row in pairs]
        bad[2]["target"]["image"] = "nowhere.png"
        options = SettleOptions(on_error="skip", max_skipped=0.1)
        left = table(
            run(evaluator("knowing"), "skipped", pairs=Dataset.from_list(bad), settling=options), "candidates"
        )
        about = {row["pair_id"] for row in undisturbed}
        assert {row["pair_id"] for row in left} == about - {bad[2]["pair_id"]} != about
        (line,) = (tmp_path / "skipped" / "skipped.jsonl").read_text().splitlines()
        assert json.loads(line)["pair_id"] == bad[2]["pair_id"]

    def test_an_evaluator_that_fails_otherwise(self, run, evaluator):
        fake = evaluator("knowing")

        def refuse(trials):
            raise TrialError(1, "too long.")

        fake.match_logits = refuse
        with pytest.raises(
            ValueError, match="the target of pair 'capital/Peru' can't be tried on 5 inputs .*: too long"
        ):
            run(fake)

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (
                lambda trials: [torch.zeros(1, 1) for _ in trials],
                r"query of pair 'capital/Peru' with logits of shape \(1, 1\)",
            ),
            (lambda trials: [], "the evaluator gave 0 answers to 3 trials"),
            (lambda trials: [torch.full((5, 5), torch.nan) for _ in trials], "not finite; it has to give"),
        ],
    )
    def test_an_evaluator_that_answers_something_else(self, run, evaluator, answer, message):
        fake = evaluator("knowing")
        fake.match_logits = answer
        with pytest.raises(ValueError, match=message):
            run(fake)

    def test_rationales_of_unknown_pairs(self, run, evaluator, pairs):
        with pytest.raises(
            ValueError, match=r"(?s)140 rationales are about 14 pairs .*'capital/.*', '.*', '.*' \.\.\.\. Pass"
        ):
            run(evaluator("knowing"), pairs=pairs.select(range(4)))

    @pytest.mark.parametrize("column", ["pair_id", "side", "worker", "sample", "text"])
    def test_a_rationale_table_without_a_column(self, run, evaluator, rationales, column):
        with pytest.raises(ValueError, match=f"no column '{column}'; needed: pair_id, side, worker, sample, text"):
            run(evaluator("knowing"), rationales=rationales.remove_columns(column))

    def test_columns_of_another_kind(self, run, evaluator, rationales):
        lists = rationales.remove_columns("text").add_column("text", [["a"]] * len(rationales))
        with pytest.raises(ValueError, match="'text' of the rationales table holds list.*allowed: text"):
            run(evaluator("knowing"), rationales=lists)
        nobody = rationales.map(
            lambda row, place: {"worker": None if place == 3 else row["worker"]}, with_indices=True
        )
        with pytest.raises(ValueError, match="row 3 of the rationales table has no worker"):
            run(evaluator("knowing"), rationales=nobody)

    def test_an_unknown_side(self, run, evaluator, make_rationale):
        rows = [make_rationale("sum/1 + 1", "w", "two", side="document")]
        with pytest.raises(ValueError, match="row 0 .* has the side 'document'; allowed: query, target"):
            run(evaluator("knowing"), rationales=Dataset.from_list(rows))

    def test_no_usable_rationale(self, run, evaluator, make_rationale):
        rows = [make_rationale("sum/1 + 1", "w", None, error="timeout"), make_rationale("sum/1 + 1", "w", " ")]
        with pytest.raises(ValueError, match="none of the 2 rows .* 1 failed, 1 are empty"):
            run(evaluator("knowing"), rationales=Dataset.from_list(rows))
        with pytest.raises(ValueError, match="none of the 1 rows .* 1 failed"):
            run(evaluator("knowing"), rationales=Dataset.from_list(rows[:1]))

    def test_too_few_pairs_for_negatives(self, run, evaluator):
        fake = evaluator("knowing")
        with pytest.raises(ValueError, match="the pair 'capital/Peru' has 17 possible negatives for its query.*=18"):
            run(fake, num_negatives=18)
        assert fake.trials == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"selection": "best"}, "selection='best'; allowed: 'none', 'absolute', 'counterfactual'"),
            ({"intervention": "mask"}, "intervention='mask'; allowed: 'drop', 'swap', 'shuffle'"),
            ({"space": "logit"}, "space='logit'; allowed: 'probability', 'log-odds'"),
            ({"margin": math.nan}, "margin=nan; allowed: a finite number"),
            ({"temperature": 0}, "temperature=0; allowed: a finite number above 0"),
            ({"num_negatives": 0}, "num_negatives=0; allowed: 1 or more, or 0 with wrong_pair_correction=False"),
            ({"num_negatives": -1, "wrong_pair_correction": False}, "num_negatives=-1"),
            ({"pair_aware": False}, "`pair_aware` is called `wrong_pair_correction` now"),
        ],
    )
    def test_unknown_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            SelectionOptions(**options)

    def test_no_negatives_at_all(self, run, evaluator):
        folder = run(evaluator("gullible"), wrong_pair_correction=False, num_negatives=0)
        gains = [row["gain"] for row in table(folder)]
        assert gains == pytest.approx([sigmoid(3) - sigmoid(-1)] * len(gains))
        assert json.loads((folder / "report.json").read_text())["evaluator"]["direct"]["accuracy"] is None
