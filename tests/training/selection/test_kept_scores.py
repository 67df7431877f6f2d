"""Scores belong to what they depend on: where the tables change, the rest of them is used again."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, concatenate_datasets
from PIL import Image

from mmemb_r1.training.selection.config import SelectionOptions
from mmemb_r1.training.selection.evaluator import TrialError
from mmemb_r1.training.selection.pairs import index_pairs
from mmemb_r1.training.selection.select import select_rationales
from mmemb_r1.training.settling.faults import SettleOptions

DROPPED = "capital/Kenya"


pytestmark = pytest.mark.usefixtures("no_picture")


@pytest.fixture
def select(tmp_path, evaluator):
    """`select(pairs, rationales)`: the trials that were asked, and the table of candidates."""

    def run(pairs, rationales, folder="out", *, asked=None, shard_size=5, settling=None, **options):
        fake = asked or evaluator("guessing")
        options = SelectionOptions(**{"num_negatives": 2, **options})
        select_rationales(
            pairs, rationales, fake, tmp_path / folder, options,
            batch_size=3, shard_size=shard_size, progress=False, settling=settling,
        )  # fmt: skip
        return fake.trials, pq.read_table(tmp_path / folder / "candidates.parquet").to_pylist()

    return run


def without(table, pair_id):
    return table.filter(lambda row: row["pair_id"] != pair_id)


def anchors(trials):
    return {(trial.side, trial.anchor["text"]): trial for trial in trials}


@pytest.mark.parametrize("intervention", ["drop", "swap", "shuffle"])
def test_a_row_that_leaves_takes_only_its_own_scores_with_it(select, pairs, rationales, intervention):
    before, _ = select(pairs, rationales, intervention=intervention)
    fewer = without(pairs, DROPPED), without(rationales, DROPPED)
    asked, candidates = select(*fewer, intervention=intervention)
    assert candidates == select(*fewer, "fresh", intervention=intervention)[1]
    first, lost = anchors(before), {"Kenya", "Nairobi"}
    for trial in asked:
        earlier = first[trial.side, trial.anchor["text"]]
        met = {other["text"] for other in earlier.others}
        donors = set(trial.rationales) - set(earlier.rationales)
        assert met & lost or (intervention == "swap" and donors)
    assert len(asked) < len(before) / 2


def test_a_row_that_comes_back_has_its_scores_still(select, pairs, rationales):
    select(pairs, rationales)
    select(without(pairs, DROPPED), without(rationales, DROPPED))
    asked, candidates = select(pairs, rationales)
    assert asked == []
    assert candidates == select(pairs, rationales, "fresh")[1]


def test_a_row_that_comes_is_all_that_is_asked(select, pairs, rationales):
    select(without(pairs, DROPPED), without(rationales, DROPPED))
    asked, candidates = select(pairs, rationales)
    assert candidates == select(pairs, rationales, "fresh")[1]
    new = {"Kenya", "Nairobi"}
    assert {("query", "Kenya"), ("target", "Nairobi")} <= set(anchors(asked))
    assert all(new & {trial.anchor["text"], *(other["text"] for other in trial.others)} for trial in asked)


def test_the_order_of_rows_and_the_size_of_shards_ask_nothing(select, pairs, rationales):
    select(pairs, rationales)
    order = list(range(len(rationales)))[::-1]
    turned = pairs.select(range(len(pairs))[::-1]), rationales.select(order)
    assert select(*turned)[0] == select(pairs, rationales, shard_size=7)[0] == []
    assert select(*turned)[1] == select(*turned, "fresh")[1]


def test_of_a_group_only_new_rationales_are_asked(select, pairs, rationales, make_rationale):
    select(pairs, rationales)
    more = [make_rationale(pair["pair_id"], "new", f"New about {pair['query']['text']}") for pair in pairs]
    both = concatenate_datasets([rationales, Dataset.from_list(more, features=rationales.features)])
    asked, candidates = select(pairs, both)
    assert candidates == select(pairs, both, "fresh")[1]
    assert len(asked) == len(pairs)
    assert all(len(trial.rationales) == 2 and trial.rationales[1].startswith("New about") for trial in asked)


def test_another_text_target_or_wrong_partner_is_asked_again(select, pairs, rationales):
    select(pairs, rationales)
    changed = rationales.map(lambda row: {"text": row["text"] and row["text"].replace("Kenya goes", "Kenya went")})
    about = {("query", "Kenya"), ("target", "Nairobi"), ("target", "Oslo")}  # of Oslo it is said too, wrongly
    assert set(anchors(select(pairs, changed)[0])) == about
    moved = pairs.map(lambda row: {"target": {"text": row["target"]["text"].replace("Lima", "Limas")}})
    asked = select(moved, rationales)[0]
    assert {("query", "Peru"), ("target", "Limas")} <= set(anchors(asked))
    assert all("Limas" in {trial.anchor["text"], *(one["text"] for one in trial.others)} for trial in asked)


def test_what_was_scored_before_an_unreadable_row_is_kept_when_it_is_left_out(select, pairs, rationales, evaluator):
    broken = evaluator("guessing")
    answer = broken.match_logits

    def strict(trials):
        for index, trial in enumerate(trials):
            if "Madrid" in {trial.anchor["text"], *(other["text"] for other in trial.others)}:
                raise TrialError(index, "it can't be read.")
        return answer(trials)

    broken.match_logits = strict
    with pytest.raises(ValueError, match="can't be read"):
        select(pairs, rationales, asked=broken, shard_size=1)
    fewer = without(pairs, "capital/Spain"), without(rationales, "capital/Spain")
    asked, candidates = select(*fewer, shard_size=1)
    assert candidates == select(*fewer, "fresh")[1]
    assert len(broken.trials) > 0
    assert len(asked) <= 2 * len(fewer[0]) - len(broken.trials) + 3  # those of the batch that failed


def test_a_picture_that_breaks_costs_its_pair_and_no_more(select, pairs, rationales, tmp_path):
    for row in range(len(pairs)):
        Image.effect_noise((16, 16), 50).save(tmp_path / f"{row}.png")
    shown = pairs.map(
        lambda pair, row: {"query": {**pair["query"], "image": str(tmp_path / f"{row}.png")}}, with_indices=True
    )
    before, _ = select(shown, rationales)
    broken = shown["pair_id"].index(DROPPED)
    (tmp_path / f"{broken}.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=f"pair '{DROPPED}', query: its image .* can't be read"):
        select(shown, rationales)
    asked, candidates = select(shown, rationales, settling=SettleOptions("skip", 0.1))
    assert {row["pair_id"] for row in candidates} == set(pairs["pair_id"]) - {DROPPED}
    first = anchors(before)
    for trial in asked:
        met = first[trial.side, trial.anchor["text"]].others
        assert {"Kenya", "Nairobi"} & {other["text"] for other in met}
    assert len(asked) < len(before) / 2


def test_an_input_that_can_not_be_read_has_the_same_digest_each_time(make_pair, tmp_path):
    rows = [make_pair("a", "x", "y"), make_pair("b", "z", "w")]
    rows[0]["target"] = {"text": "y", "image": str(tmp_path / "none.png")}
    rows[1]["target"] = {"text": "w", "image": None}
    first, second = (index_pairs(Dataset.from_list(rows)) for _ in range(2))
    assert first.digests.tobytes() == second.digests.tobytes()
