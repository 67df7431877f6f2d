from __future__ import annotations

import ast
import copy
import dataclasses
import importlib
import io
import json
import shlex
from pathlib import Path

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from experiments.pipeline.outcomes import OUTCOMES_FILE
from experiments.study.claims import (
    FAILS,
    FINDINGS,
    HOLDS,
    NOT_RUN,
    OPEN,
    OPEN_BUT_SMALLER,
    SMALLER,
    UNTESTED,
    claims_of,
    loss_verdict,
)
from experiments.study.family import FAMILY, difference_of
from experiments.study.formats import points
from experiments.study.forms import QUICK
from experiments.study.page import TEMPLATE, page
from experiments.study.report import as_tables, results_of
from experiments.study.rows import BY_NAME, ROWS
from experiments.study.summary import differences, levels, summarise, table_of
from experiments.study.tasks import Study, whole
from mmemb_r1.evaluation.statistics import holm

TASKS = {
    "flag-capital": "multi-hop",
    "neighbour-capital": "multi-hop",
    "fact-flag": "multi-hop",
    "picture-name-flag": "simple",
}
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
                    "rationale": "",
                    "right": hit["always"],
                }
            )
    return rows


def write(study: Study, row: str, rows, seed: int = 0, state: str = "grpo") -> None:
    folder = study.folder(row, seed) / f"outcomes-{state}"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / OUTCOMES_FILE)


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
    assert same["mean"] == same["low"] == same["high"] == 0  # no interval: the queries are the same ones
    assert same["p"] == 1 and same["theirs"] == pytest.approx(full["auto"].mean())
    shorter = {name: values[:-1] for name, values in other.items()}
    with pytest.raises(ValueError, match="x: the rows were not asked the same questions; remove their outcomes"):
        differences(shorter, full, "x")


def test_a_random_gate_gets_what_is_expected_of_it(study):
    full, random = (table_of(study, BY_NAME[name], [0]) for name in ("full", "random-gate"))
    found = levels(random)["all"]
    assert found["auto"]["mean"] == pytest.approx(0.5 * 0.8 + 0.5 * 0.3)
    assert found["invocation"]["mean"] == pytest.approx(0.5) and found["tokens"]["mean"] == pytest.approx(5)
    assert (random["never"] == full["never"]).all()


def test_before_grpo_is_another_state_of_the_same_model(study):
    assert table_of(study, BY_NAME["no-grpo"], [0])["invocation"].mean() == pytest.approx(0.7, abs=0.01)


def test_grpo_is_judged_by_its_gate_and_not_by_what_the_embedder_learned_besides(study, tmp_path):
    found = summarise(study)["rows"]["no-grpo"]["gates"]
    assert found["gain"]["mean"] == pytest.approx(
        found["after"]["over_random"]["mean"] - found["before"]["over_random"]["mean"]
    )
    better = Study(tmp_path / "better", QUICK, ROWS)
    before, after = answers(0.5, thinks=1.0), answers(0.9, thinks=1.0)  # another embedder, the same gate
    write(better, "full", after)
    write(better, "full", before, state="gate")
    row = summarise(better)["rows"]["no-grpo"]
    assert row["differences"]["all"]["auto"]["mean"] == pytest.approx(-0.4)
    assert row["gates"]["gain"]["mean"] == pytest.approx(0) and row["gates"]["gain"]["p"] == 1


def test_a_gate_that_only_thinks_less_was_taught_nothing(tmp_path):
    """Auto minus random grows by itself when a gate thinks on less than nearly all."""
    rows, rng = answers(0.8), np.random.default_rng(0)
    for row in rows:
        gained = row["always"] - row["never"]
        row["gate_prob"] = float(np.clip(0.5 + 0.2 * gained + 0.2 * rng.standard_normal(), 0, 1))
    study = Study(tmp_path, QUICK, ROWS)
    for state, threshold in (("gate", 0.2), ("grpo", 0.5)):
        decided = [{**row, "rounds_auto": int(row["gate_prob"] >= threshold)} for row in rows]
        decided = [{**row, "auto": row["always" if row["rounds_auto"] else "never"]} for row in decided]
        write(study, "full", decided, state=state)
    gates = summarise(study)["rows"]["no-grpo"]["gates"]
    assert gates["gain"]["mean"] == 0 and gates["before"]["over_random"]["mean"] > 0.02
    thinks = [table_of(study, BY_NAME[name], [0])["invocation"].mean() for name in ("no-grpo", "full")]
    assert thinks[0] > thinks[1] == gates["share"]


def test_gates_of_several_seeds_have_thresholds_of_their_own(tmp_path):
    wide = Study(tmp_path, QUICK, ROWS, seeds=(0, 1))
    rows = answers(0.8)
    write(wide, "full", rows)
    scaled = [{**row, "gate_prob": 1e-3 * row["gate_prob"]} for row in rows]  # never above the other's lowest
    write(wide, "full", scaled, seed=1)
    ones = Study(tmp_path, QUICK, ROWS, seeds=(0,))
    both, one = (summarise(study)["full"] for study in (wide, ones))
    for name in ("curve", "gate"):
        assert json.dumps(_means(both[name])) == json.dumps(_means(one[name])), name


def _means(value):
    """Numbers that don't depend on how many queries there are."""
    if isinstance(value, list):
        return [_means(one) for one in value]
    if isinstance(value, dict):
        return {key: _means(one) for key, one in value.items() if key not in ("low", "high", "queries", "over_random")}
    return round(value, 6) if isinstance(value, float) else value


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
    found = row["differences"]["multi-hop"]["always"]
    assert list(found["seeds"]) == ["0"] and found["theirs"] == pytest.approx(0.8)


def commands(root: Path, heading: str) -> list[list[str]]:
    """Of a part of the page, as a shell would see them."""
    text = (root / "experiments" / "study" / TEMPLATE).read_text(encoding="utf-8")
    lines = text.split(f"## {heading}\n")[1].split("\n## ")[0].replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("    ")]


def published(root: Path) -> list[list[str]]:
    """The commands that would test the published figure."""
    return commands(root, "The published figure")


def test_the_commands_of_the_page_are_known(root):
    """Every one is one that the command line takes, and the files of the project that it names are there."""
    from mmemb_r1.cli import _parser

    ours = []
    for words in published(root):
        missing = [word for word in words if word.startswith("examples/") and not (root / word).is_file()]
        assert not missing
        if words[0] == "python":
            continue
        place = words.index("mmemb-r1" if words[0] == "mmemb-r1" else "mmemb_r1.cli")
        ours.append(_parser(words[place + 1 :]).parse_args(words[place + 1 :]))
    assert [args.command for args in ours] == ["init", "rationales", "select", "train", "train", "evaluate"]
    assert ours[-1].download  # nothing before it gets MMEB-V2


def test_the_page_in_the_documentation_has_these_commands(root):
    """It was written by an earlier run, and is corrected by hand where the template is."""
    page, template = (root / "docs" / "study.md", root / "experiments" / "study" / TEMPLATE)
    written, wanted = (
        [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(("    ", "## "))]
        for path in (page, template)
    )
    assert written == wanted


def test_the_commands_that_make_the_page_are_known(root):
    from experiments.study.__main__ import arguments_parser

    studies = [make_study(words) for words in commands(root, "Run it")]
    assert [arguments_parser().parse_args(words).full for words in studies] == [False, False, False, True]


def make_study(words: list[str]) -> list[str]:
    """What `make study` runs."""
    assert words[:2] == ["make", "study"]
    arguments = [word.removeprefix("STUDY_ARGS=") for word in words[2:]]
    return ["--output", "runs/study", *(part for text in arguments for part in text.split())]


def test_what_a_command_of_the_page_needs_an_earlier_one_makes(root):
    made = {"all.parquet"}
    for words in published(root):
        text = " ".join(words)
        needed = {"pairs.parquet", "policy.parquet"} & set(words)
        options = dict(zip(words, words[1:], strict=False))
        needed |= {options[name].split("/")[0] for name in ("--model", "--rationales") if name in options}
        assert needed <= made, text
        made |= {options["--output"]} if "--output" in options else set()
        made |= {name for name in ("pairs.parquet", "policy.parquet") if f"'{name}'" in text}


def test_the_python_lines_of_the_page_import_what_there_is(root):
    scripts = [words[2] for words in published(root) if words[0] == "python"]
    assert len(scripts) == 1
    for script in scripts:
        for node in ast.walk(ast.parse(script)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, one.name) for one in node.names)


def test_the_pages_recipe_teaches_the_gate(root):
    """A gate that was never taught thinks on nothing that GRPO could learn from."""
    import yaml

    recipe = yaml.safe_load((root / "examples" / "joint-qwen3-vl-4b-8gpu.yaml").read_text(encoding="utf-8"))
    assert recipe["gate_weight"] > 0 and recipe["num_train_epochs"] == 1  # a pair is new when the gate sees it


def difference(mean, low, high, p=0.01, seeds=()):
    return {"mean": mean, "low": low, "high": high, "p_corrected": p, "seeds": dict(enumerate(seeds or (mean,)))}


@pytest.mark.parametrize(
    ("found", "published", "verdict"),
    [
        (difference(-0.25, -0.30, -0.20), 0.058, HOLDS),
        (difference(-0.02, -0.06, -0.001), 0.058, SMALLER),  # that the interval reaches the figure is not enough
        (difference(-0.02, -0.03, -0.01), 0.0, HOLDS),
        (difference(-0.01, -0.07, 0.01), 0.058, OPEN),
        (difference(-0.01, -0.03, 0.01), 0.058, OPEN_BUT_SMALLER),
        (difference(-0.01, -0.03, 0.01), 0.0, OPEN),
        (difference(0.0, 0.0, 0.0), 0.0, OPEN),
        (difference(0.02, 0.01, 0.03), 0.058, FAILS),
        (difference(-0.25, -0.30, -0.20, p=0.06), 0.058, OPEN),  # one of many
        (difference(0.02, 0.01, 0.03, p=0.06), 0.058, OPEN_BUT_SMALLER),
        (difference(-0.1, -0.2, -0.05, seeds=(-0.3, -0.1, 0.1)), 0.0, OPEN),  # not every training
        (difference(-0.1, -0.2, -0.05, seeds=(-0.1, -0.1, -0.1)), 0.0, HOLDS),
    ],
)
def test_verdicts(found, published, verdict):
    assert loss_verdict(found, published) == verdict


def test_every_claim_has_words_and_a_finding(root):
    import yaml

    words = yaml.safe_load((root / "experiments" / "study" / "claims.yaml").read_text(encoding="utf-8"))["claims"]
    assert [claim["id"] for claim in words] == list(FINDINGS)


def test_a_number_that_the_page_lacks_is_an_error(study):
    results = results_of(study)
    del results["rows"]["full"]["levels"]["all"]["tokens"]
    with pytest.raises(jinja2.UndefinedError, match="tokens"):
        page(results)


def test_claims_say_what_was_found_and_what_was_not_run(study):
    found = {claim.text: claim for claim in claims_of(summarise(study))}
    headline = found["71.2 on MMEB-V2 with a 4B backbone"]
    assert headline.verdict == UNTESTED and headline.published == "71.2, mean of 78 tasks"
    selection = found["pair-aware selection improves reasoned queries"]
    assert selection.verdict == HOLDS and "lose 40.0 [" in selection.ours
    assert found["errors of several kinds are better than as many of one kind"].verdict == NOT_RUN
    assert found["several different workers are better than one"].verdict == UNTESTED


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Of answers of all rows, what `summarise` makes of them."""
    study = Study(tmp_path_factory.mktemp("study"), QUICK, ROWS)
    write(study, "full", answers(0.8, thinks=0.7), state="gate")
    for number, row in enumerate(row for row in ROWS if row.of is None):
        write(study, row.name, answers(0.8 if row.name == "full" else 0.4, thinks=0.6, seed=number))
    return summarise(study)


@pytest.fixture
def summary(measured):
    return copy.deepcopy(measured)


@pytest.mark.slow
def test_verdicts_go_by_corrected_p_and_by_nothing_outside_of_the_family(summary):
    """Whatever a claim goes by is of the family, and all of the family is what some claim goes by."""
    for name in FAMILY:
        found = difference_of(summary, name)
        found |= {"mean": 0.2, "low": 0.1, "high": 0.3, "p_corrected": 0.001, "seeds": {"0": 0.2}}
    sure = {claim.text: claim.verdict for claim in claims_of(summary)}
    assert not {OPEN, OPEN_BUT_SMALLER} & {
        verdict for text, verdict in sure.items() if "reads its rationales" not in text
    }
    for name in FAMILY:
        difference_of(summary, name)["p_corrected"] = 0.06
        changed = {text for text, verdict in sure.items() if _verdicts(summary)[text] != verdict}
        published = name in ("selection", "baseline", "baseline, as published")
        assert len(changed) == 1, name
        assert _verdicts(summary)[changed.pop()] == (OPEN_BUT_SMALLER if published else OPEN), name
        difference_of(summary, name)["p_corrected"] = 0.001


def _verdicts(summary):
    return {claim.text: claim.verdict for claim in claims_of(summary)}


def test_the_family_is_corrected_together(summary):
    numbers = [difference_of(summary, name) for name in FAMILY]
    assert None not in numbers
    assert [one["p_corrected"] for one in numbers] == holm([one["p"] for one in numbers])
    rows = summary["rows"]
    assert "p_corrected" not in rows["random-gate"]["differences"]["multi-hop"]["always"]  # nothing by construction
    assert "p_corrected" in rows["model-joins"]["control"]["all"]["auto"]
    assert "p_corrected" in rows["three-rounds"]["differences"]["neighbours"]["auto"]


def test_a_term_is_judged_where_there_is_something_to_join(summary):
    """Elsewhere no contrastive term is left for reasoned queries: that they get worse without it shows nothing."""
    found = {claim.text: claim for claim in claims_of(summary)}
    general = found["contrastive terms between direct and reasoned embeddings help reasoned queries"]
    assert general.verdict == UNTESTED and "7 of 8 tasks" in general.ours
    narrow = next(claim for text, claim in found.items() if text.endswith("(name-picture and fact-flag)"))
    assert narrow.verdict == loss_verdict(difference_of(summary, "mixed terms"))


def test_auto_is_compared_with_both_fixed_modes(study):
    results = results_of(study)
    levels_of_all, full = results["rows"]["full"]["levels"]["all"], results["full"]
    for mode in ("never", "always"):
        gained = levels_of_all["auto"]["mean"] - levels_of_all[mode]["mean"]
        assert full["over"][mode]["mean"] == pytest.approx(gained)
        assert f"{points(full['over'][mode])} {'better than never' if mode == 'never' else 'than always'}" in page(
            results
        )
    assert full["gain"]["mean"] == full["over"][full["choice"]["better_fixed"]]["mean"]


def test_a_claim_whose_control_shares_no_seed_was_not_run(study):
    """Rows of other seeds have nothing to be compared with."""
    wide = dataclasses.replace(study, seeds=(0, 1))
    write(wide, "model-joins", answers(0.6), seed=1)
    write(wide, "second-round", answers(0.6), seed=0)
    results = results_of(wide)
    claim = next(claim for claim in results["claims"] if "a round in which the model joins" in claim["text"])
    assert claim["verdict"] == NOT_RUN
    assert "model-joins" in results["rows"] and "## Claim by claim" in page(results)


def test_results_are_those_of_all_rows_and_seeds_in_the_folder(study):
    """A run of a few rows must not take the others out of the results; nor may one of further seeds."""
    asked = dataclasses.replace(study, rows=(BY_NAME["full"],), seeds=(2,))
    for seed in (1, 2):
        write(study, "full", answers(0.5, seed=seed), seed=seed)
    assert whole(asked).seeds == (0, 1, 2) and whole(asked).rows == ROWS
    results = results_of(whole(asked))
    assert results["rows"]["full"]["seeds"] == [0, 1, 2] and results["rows"]["no-selection"]["seeds"] == [0]
    assert results["form"]["seeds"]["no-selection"] == [0] and "one-worker" in results["missing"]


def test_the_page_shows_seeds_one_by_one_and_what_was_given(study):
    wide = dataclasses.replace(study, seeds=(0, 1))
    for name in ("full", "no-selection"):
        write(wide, name, answers(0.5, seed=7), seed=1)
    (study.output / "study.json").write_text(json.dumps({"warm_up": "given, 0123abcd", "evaluator": "made here"}))
    text = page(results_of(wide))
    assert "(1) full, its first seed alone |" in text
    assert "Seed by seed:" in text and "| 0 1 | -40.0 / +0.0 |" in text
    assert "The warm-up of seed 0 was given to the study and not made by it (digest of its files: `0123abcd`)" in text
    assert "The evaluator was given" not in text and "M parameters" not in text  # of none was noted how many


def test_the_page_says_what_was_selected_and_what_is_drawn_of_it(study):
    folder = study.selected(BY_NAME["full"], 0)
    folder.mkdir(parents=True)
    kept = {"correct": 0.9, "confused": 0.2, "verbose": 0.1, "format": 0.1}
    found = {"precision": 0.8, "recall": 0.9, "kept": kept, "inputs": 4, "inputs with any kept": 3}
    parts = {"all": found, "flag-tld, query": found, "name-picture, target": {**found, "inputs with any kept": 2}}
    (folder / "quality.json").write_text(json.dumps(parts))
    rows = pa.table({"worker": ["correct", "correct", "format"], "posterior": [0.97, 1.0, 0.03]})
    pq.write_table(rows, folder / "selected.parquet")
    without = study.selected(BY_NAME["no-selection"], 0)
    without.mkdir()
    (without / "quality.json").write_text(json.dumps({**parts, "all": {**found, "precision": 0.25}}))
    pq.write_table(
        pa.table({"worker": ["correct", "format"], "posterior": [0.25, 0.75]}), without / "selected.parquet"
    )
    claims = {claim.text: claim.ours for claim in claims_of(summarise(study))}
    told = claims["pair-aware selection improves reasoned queries"]
    assert (
        "With and without it, 98% and 25% of the drawn rationales are right, and 75% and 75% of the inputs of several"
        in told
    )
    line = "| (1) full | 0.80 | 0.90 | 0.98 | 0.90 | 0.20 | 0.10 | 0.10 | 75% | 50% |"
    assert line in page(results_of(study)).splitlines()


def test_the_terminal_shows_every_number_in_a_hundred_columns(study):
    console = Console(width=100, file=io.StringIO())
    longest = max((row for row in ROWS if row.of is None), key=lambda row: len(row.name))
    write(study, longest.name, answers(0.4))
    results = results_of(study)
    for table in as_tables(results):
        console.print(table)
    text = console.file.getvalue()
    assert "…" not in text and ".300 .800" in text
    assert all(claim["text"].split()[0] in text for claim in results["claims"])


def test_the_page_has_every_row_and_every_claim(study):
    (study.output / "sessions.json").write_text("[]")
    results = results_of(study)
    text = page(results)
    assert all(claim["text"] in text for claim in results["claims"])
    assert all(f"({row['number']}) {row['title']}" in text for row in results["rows"].values())
    assert "Not run:" in text and "second-round" in text
    for line in text.splitlines():
        assert line.startswith("|") or len(line) <= 125, line
    assert "| 250 + 50 |" in text and "| 250 + 0 |" in text  # rows 1 and 8
    tables = [part.strip().splitlines() for part in text.split("\n\n") if part.lstrip().startswith("|")]
    assert len(tables) >= 6
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1, lines[0]  # as many cells in each row as in the head
