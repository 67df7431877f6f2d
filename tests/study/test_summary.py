from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmemb_r1.pipeline.answers import ANSWERS_FILE
from mmemb_r1.study.claims import FAILS, HOLDS, NOT_RUN, OPEN, SMALLER, UNTESTED, claims_of, loss_verdict
from mmemb_r1.study.forms import QUICK
from mmemb_r1.study.page import page
from mmemb_r1.study.report import results_of
from mmemb_r1.study.rows import BY_NAME, ROWS
from mmemb_r1.study.summary import differences, levels, summarise, table_of
from mmemb_r1.study.tasks import Study

TASKS = {"flag-capital": "multi-hop", "neighbour-capital": "multi-hop", "picture-name-flag": "simple"}
COUNTRIES = 30


def answers(always: float, never: float = 0.3, thinks: float = 0.5, seed: int = 0):
    """Of `COUNTRIES` in each task: how many are found is exact, which ones is drawn."""
    rng = np.random.default_rng(seed)
    rows = []
    for task, complexity in TASKS.items():
        found = {
            mode: rng.permutation(np.arange(COUNTRIES) < round(share * COUNTRIES))
            for mode, share in (("never", never), ("always", always), ("thinks", thinks))
        }
        for number in range(COUNTRIES):
            reasoned = bool(found["thinks"][number])
            hit = {mode: int(found[mode][number]) for mode in ("never", "always")}
            rows.append(
                {
                    "pair_id": f"test/{task}/{number}",
                    "task": task,
                    "entity": f"c{number}",
                    "complexity": complexity,
                    **hit,
                    "auto": hit["always" if reasoned else "never"],
                    "aligned_never": 0.1 + 0.8 * hit["never"],
                    "aligned_always": 0.1 + 0.8 * hit["always"],
                    "gate_prob": 0.9 if reasoned else 0.1,
                    "tokens": 10,
                    "tokens_auto": 10 if reasoned else 0,
                    "rounds_auto": int(reasoned),
                    "thought": "",
                    "right": hit["always"],
                }
            )
    return rows


def write(study: Study, row: str, rows, seed: int = 0, state: str = "grpo") -> None:
    folder = study.folder(row, seed) / f"answers-{state}"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / ANSWERS_FILE)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    found = Study(tmp_path, QUICK, ROWS)
    write(found, "full", answers(0.8))
    write(found, "full", answers(0.8, thinks=0.7), state="gate")
    write(found, "no-selection", answers(0.4))
    return found


def test_levels_are_means_over_tasks(study):
    found = levels(table_of(study, BY_NAME["full"], [0]))
    assert found["multi-hop"]["always"]["mean"] == pytest.approx(0.8) and found["all"]["never"][
        "mean"
    ] == pytest.approx(0.3)
    assert found["flags"]["queries"] == COUNTRIES and found["all"]["invocation"]["mean"] == pytest.approx(0.5)
    assert found["all"]["tokens"]["mean"] == pytest.approx(5) and found["all"]["tokens_always"]["mean"] == 10
    assert found["all"]["always"]["low"] < 0.8 < found["all"]["always"]["high"]


def test_differences_are_taken_query_by_query(study):
    full, other = (table_of(study, BY_NAME[name], [0]) for name in ("full", "no-selection"))
    assert differences(other, full, "x")["multi-hop"]["always"]["mean"] == pytest.approx(-0.4)
    same = differences(full, full, "x")["all"]["auto"]
    assert same == {"mean": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}  # no interval: the queries are the same ones
    shorter = {name: values[:-1] for name, values in other.items()}
    with pytest.raises(ValueError, match="x: the rows were not asked the same questions; remove their answers"):
        differences(shorter, full, "x")


def test_the_more_rows_the_higher_a_p(study):
    row = summarise(study)["rows"]["no-selection"]["differences"]["multi-hop"]["always"]
    assert row["p"] < row["p_corrected"] == pytest.approx(3 * row["p"])  # the least of three rows


def test_a_random_gate_gets_what_is_expected_of_it(study):
    full, random = (table_of(study, BY_NAME[name], [0]) for name in ("full", "random-gate"))
    found = levels(random)["all"]
    assert found["auto"]["mean"] == pytest.approx(0.5 * 0.8 + 0.5 * 0.3)
    assert found["invocation"]["mean"] == pytest.approx(0.5) and found["tokens"]["mean"] == pytest.approx(5)
    assert (random["never"] == full["never"]).all()


def test_before_grpo_is_another_state_of_the_same_model(study):
    assert table_of(study, BY_NAME["no-grpo"], [0])["invocation"].mean() == pytest.approx(0.7, abs=0.01)


def test_rows_without_answers_are_named(study):
    found = summarise(study)
    assert set(found["rows"]) == {"full", "no-selection", "no-grpo", "random-gate"}
    assert "model-joins" in found["missing"]
    json.dumps(found, allow_nan=False)


def test_only_seeds_that_both_have_are_compared(study):
    wide = Study(study.output, QUICK, ROWS, seeds=(0, 1))
    write(wide, "no-selection", answers(0.4, seed=1), seed=1)
    row = summarise(wide)["rows"]["no-selection"]
    assert row["seeds"] == [0, 1]
    assert row["levels"]["flags"]["queries"] == 2 * COUNTRIES and row["differences"]["flags"]["queries"] == COUNTRIES


def test_the_commands_of_the_page_are_known():
    """Every one is one that the command line takes."""
    from mmemb_r1.cli import _parser
    from mmemb_r1.study.page import AT_FULL_SIZE

    lines = AT_FULL_SIZE.replace("\\\n", " ").splitlines()
    commands = [
        re.split(r"mmemb-r1 |-m mmemb_r1.cli ", line, maxsplit=1)[1].split() for line in lines if line[:4] == " " * 4
    ]
    assert [words[0] for words in commands] == ["init", "rationales", "select", "train", "train", "evaluate"]
    for words in commands:
        _parser(words).parse_args(words)


@pytest.mark.parametrize(
    ("low", "high", "published", "verdict"),
    [
        (-0.30, -0.20, 0.058, HOLDS),
        (-0.07, -0.01, 0.058, HOLDS),  # the published figure lies in the interval
        (-0.03, -0.01, 0.058, SMALLER),
        (-0.03, -0.01, 0.0, HOLDS),
        (-0.03, 0.01, 0.058, OPEN),
        (0.0, 0.0, 0.0, OPEN),
        (0.01, 0.03, 0.058, FAILS),
    ],
)
def test_verdicts(low, high, published, verdict):
    assert loss_verdict({"mean": (low + high) / 2, "low": low, "high": high}, published) == verdict


def test_claims_say_what_was_found_and_what_was_not_run(study):
    found = {claim.text: claim for claim in claims_of(summarise(study))}
    headline = found["71.2 on MMEB-V2 with a 4B backbone"]
    assert headline.verdict == UNTESTED and headline.published == "71.2, mean of 78 tasks"
    selection = found["pair-aware selection is worth 5.8 points on the reasoned path"]
    assert selection.verdict == HOLDS and "+40.0 [" in selection.ours
    assert found["several different workers are better than one"].verdict == NOT_RUN


def test_the_page_has_every_row_and_every_claim(study):
    (study.output / "sessions.json").write_text("[]")
    results = results_of(study)
    text = page(results)
    assert all(claim["text"] in text for claim in results["claims"])
    assert all(f"({row['number']}) {row['title']}" in text for row in results["rows"].values())
    assert "Not run:" in text and "second-round" in text
    for line in text.splitlines():
        assert line.startswith("|") or len(line) <= 125, line
    heads = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert min(heads) >= 3
