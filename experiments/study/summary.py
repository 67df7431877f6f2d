"""Summarise the outcomes of the rows: levels by kind of task, differences query by query, selection, gate, curve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from experiments.pipeline.outcomes import OUTCOMES_FILE, answers_of
from experiments.pipeline.posterior import QUALITY, SELECTED, right_share
from experiments.pipeline.stage import cost_of
from experiments.pipeline.tasks import FLAGS, MULTI_HOP, NEIGHBOURS, PICTURE_TARGETS, POOLED
from experiments.study.best_share import cross_fitted
from experiments.study.family import compared, correct
from experiments.study.rows import BEFORE_GRPO, FULL, RANDOM_GATE, Row
from experiments.study.tasks import Study
from mmemb_r1.evaluation.diagnose.run import RESULT_FILE
from mmemb_r1.evaluation.invocation import Answers, gate_quality, invocation_curve, judge_choice
from mmemb_r1.evaluation.settings import MODES
from mmemb_r1.evaluation.statistics import Interval, clustered_means
from mmemb_r1.evaluation.tasks import ALL

# `two-sided`: tasks of the pool with rationales of both queries and targets. Its other targets are text, without
# rationales. The first are all tasks and their kinds; a kind that was not measured is left out.
GROUPS = ("all", "simple", "multi-hop", "perceptual", "mixed", "flags", "neighbours", "two-sided")
_NAMED = {"flags": FLAGS, "neighbours": NEIGHBOURS, "two-sided": PICTURE_TARGETS}
COLUMNS = (*MODES, "invocation", "tokens", "tokens_always", "right")
ONE_STEP = tuple(task for task in POOLED if task not in MULTI_HOP)  # which workers are asked about as well
Table = dict[str, npt.NDArray[Any]]


def table_of(study: Study, row: Row, seeds: Sequence[int]) -> Table:
    """
    Read the outcomes of a row's models on the test split, of one seed after another.

    A random gate's are what is expected of it: every query thinks with the same probability, which is the share that
    the full method's gate thinks on. That is also in `random` of every row. `rank` is the share of a seed's queries
    whose gate probability is no higher: gates of several seeds have scales of their own.
    """
    parts = []
    for seed in seeds:
        table = pq.read_table(_measured(study, row, seed, "outcomes") / OUTCOMES_FILE)
        columns = {name: np.array(table[name].to_pylist()) for name in table.column_names if name != "rationale"}
        columns["seed"] = np.full(table.num_rows, seed)
        columns["invocation"] = (columns["rounds_auto"] > 0).astype(float)
        share = _mean_over_tasks(columns["invocation"], columns["task"])
        columns["random"] = columns["never"] + share * (columns["always"] - columns["never"])
        gate_prob = columns["gate_prob"]
        columns["rank"] = np.searchsorted(np.sort(gate_prob), gate_prob, side="right") / table.num_rows  # (N,)
        if row.name == RANDOM_GATE:
            columns["auto"] = columns["random"]
            columns["invocation"] = np.full(table.num_rows, share)
            columns["tokens_auto"] = share * columns["tokens"]
        columns["tokens_always"], columns["tokens"] = columns["tokens"], columns["tokens_auto"]
        parts.append(columns)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _mean_over_tasks(values: npt.NDArray[Any], tasks: npt.NDArray[Any]) -> float:
    return float(np.mean([values[tasks == task].mean() for task in sorted(set(tasks.tolist()))]))


def rows_in(table: Table, group: str) -> npt.NDArray[np.bool_]:
    """`(N,)` which queries belong to one of `GROUPS`."""
    if group == "all":
        return np.ones(len(table["task"]), dtype=bool)
    if group in _NAMED:
        return np.isin(table["task"], _NAMED[group])
    return table["complexity"] == group


def levels(table: Table) -> dict[str, dict[str, Any]]:
    """
    Group -> column -> mean over tasks with a 95 % interval by what the queries are about, `{"mean", "low", "high"}`;
    and the numbers of `queries` (of all seeds) and `clusters`.
    """
    found: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        where = rows_in(table, group)
        if not where.any():
            continue
        entities, tasks = table["entity"][where].tolist(), table["task"][where].tolist()
        means = clustered_means({name: table[name][where] for name in COLUMNS}, entities, tasks)
        found[group] = {name: interval._asdict() for name, interval in means.items()}
        found[group] |= {"queries": int(where.sum()), "clusters": len(set(entities))}
    return found


def differences(ours: Table, theirs: Table, name: str) -> dict[str, dict[str, Any]]:
    """
    One row's scores minus another's, query by query.

    Args:
        ours: of the row.
        theirs: of the other one.
        name: of the row, for the message.

    Returns:
        Group -> mode -> what [`compared`] gives; the numbers of `queries` and `clusters`; and `right`, how often
        rationales are right, `ours` and `theirs`.

    Raises:
        ValueError: if the two were not asked the same questions.
    """
    _same_questions(ours, theirs, name)
    found: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        where = rows_in(ours, group)
        if not where.any():
            continue
        entities = ours["entity"][where]
        found[group] = {"queries": int(where.sum()), "clusters": len(set(entities.tolist()))}
        found[group]["right"] = {
            name: _mean_over_tasks(table["right"][where].astype(float), table["task"][where])
            for name, table in (("ours", ours), ("theirs", theirs))
        }
        for mode in MODES:
            found[group][mode] = compared(
                theirs[mode][where], ours[mode][where], entities, ours["task"][where], ours["seed"][where]
            )
    return found


def _same_questions(ours: Table, theirs: Table, name: str) -> None:
    keys = [list(zip(table["pair_id"].tolist(), table["seed"].tolist(), strict=True)) for table in (ours, theirs)]
    if keys[0] != keys[1]:
        raise ValueError(f"{name}: the rows were not asked the same questions; remove their outcomes")


def gates(before: Table, after: Table) -> dict[str, Any]:
    """
    What GRPO did to the gate alone: in both states the queries that it is surest of think, as many as after GRPO, and
    the score is compared with that of a gate that thinks as often at random, over the same two vectors of each query.
    So neither what the embedder learned besides is counted nor how often the gate thinks.

    Args:
        before, after: of the same questions.

    Returns:
        `share` of the queries that think; `before` and `after`, each `over_random` and `auc` (as `gate_quality` has
        it, `None` if it has none); and `gain`, how much `over_random` grew. Differences are those of [`compared`].

    Raises:
        ValueError: if the two were not asked the same questions.
    """
    _same_questions(after, before, BEFORE_GRPO)
    where, share = (after["entity"], after["task"], after["seed"]), float(after["invocation"].mean())
    over = [_over_random(table, share) for table in (before, after)]
    found = {
        name: {"over_random": compared(np.zeros_like(gain), gain, *where), "auc": _gate(_answers(table))}
        for name, table, gain in zip(("before", "after"), (before, after), over, strict=True)
    }
    return {**found, "share": share, "gain": compared(over[0], over[1], *where)}


def _over_random(table: Table, share: float) -> npt.NDArray[np.float64]:
    """`(N,)` what is gained if the gate chooses a share of each seed's queries, instead of as many at random."""
    thinks = (table["rank"] > 1 - share).astype(np.float64)
    expected = np.empty_like(thinks)
    for seed in set(table["seed"].tolist()):
        own = table["seed"] == seed
        expected[own] = _mean_over_tasks(thinks[own], table["task"][own])
    return (thinks - expected) * (table["always"].astype(np.float64) - table["never"])


def summarise(study: Study) -> dict[str, Any]:
    """
    Summarise all rows that have outcomes.

    Returns:
        `rows`: name -> `number`, `title`, `seeds`, `steps`, `levels`, `differences` to the row that it is compared
        with (and to its `control`), over the seeds that both have, `gates` of the row without GRPO, `selection`,
        `shortcut`, `seconds` per stage; `full`: what the full method's gate makes of its vectors, and `first`, the
        levels of the first of several seeds; `missing`: rows without outcomes; `corrected`: how many p values were
        corrected together.
    """
    rows: dict[str, Any] = {}
    missing: list[str] = []
    by_name = {row.name: row for row in study.rows}
    for row in study.rows:
        seeds = answered(study, row)
        if not seeds:
            missing.append(row.name)
            continue
        table = table_of(study, row, seeds)
        rows[row.name] = {
            "number": row.number,
            "title": row.title,
            "seeds": list(seeds),
            "steps": study.form.steps_of(row),
            "levels": levels(table),
            "selection": _selection(study, row, seeds[0]),
            "shortcut": _shortcut(study, row, seeds),
            "seconds": {seed: seconds_of(study, row, seed) for seed in seeds},
        }
        for key, name in (("differences", row.against), ("control", row.control)):
            if name is None or name == row.name:
                continue
            shared = [seed for seed in seeds if seed in answered(study, by_name[name])]
            if shared:
                ours, other = table_of(study, row, shared), table_of(study, by_name[name], shared)
                rows[row.name][key] = differences(ours, other, row.name)
                if row.name == BEFORE_GRPO:
                    rows[row.name]["gates"] = gates(ours, other)
    full = by_name[FULL]
    found: dict[str, Any] = {"rows": rows, "missing": missing}
    if seeds := answered(study, full):
        found["full"] = _full(table_of(study, full, seeds))
        if len(seeds) > 1:  # other rows may have the first only
            found["full"]["first"] = levels(table_of(study, full, seeds[:1]))
    found["corrected"] = correct(found)
    return found


def answered(study: Study, row: Row) -> tuple[int, ...]:
    """The seeds of a row whose models were asked."""
    return tuple(seed for seed in study.seeds_of(row) if _measured(study, row, seed, "outcomes").exists())


def _measured(study: Study, row: Row, seed: int, what: str) -> Path:
    """The folder of the `outcomes` or the `shortcut` test of the model that a row is about."""
    state = "gate" if row.name == BEFORE_GRPO else "grpo"
    return study.folder(row.of or row.name, seed) / f"{what}-{state}"


def _answers(table: Table) -> Answers:
    """Convert to what `evaluation.invocation` takes; ranks stand for the gate's probabilities."""
    return answers_of({**table, "tokens": table["tokens_always"], "gate_prob": table["rank"]})


def _full(table: Table) -> dict[str, Any]:
    """
    What the full method's gate makes of its two vectors.

    Returns:
        `choice`, `gate` and `curve` as `evaluation.invocation` has them, thresholds being ranks; `gain`, what auto is
        better than the better fixed mode; `over`: fixed mode -> what auto is better; `best`: the `share` that should
        think, chosen on some countries, and what that is better than thinking on all or none of the others,
        `over_always` and `over_never`. Gains are as [`compared`] gives them.
    """
    answers = _answers(table)
    choice = judge_choice(answers, table["invocation"] > 0)
    fitted = cross_fitted(answers)
    where = table["entity"], table["task"], table["seed"]
    over = {mode: compared(table[mode], table["auto"], *where) for mode in ("never", "always")}
    return {
        "choice": _plain(choice._asdict()),
        "gain": over[choice.better_fixed].copy(),  # which gets a corrected p
        "over": over,
        "curve": [_plain(point._asdict()) for point in invocation_curve(answers)],
        "best": {
            "share": float(np.mean(fitted.shares)),
            "shares": list(fitted.shares),
            "over_always": compared(table["always"], fitted.scores, *where),
            "over_never": compared(table["never"], fitted.scores, *where),
        },
        "gate": _gate(answers),
    }


def _gate(answers: Answers) -> dict[str, Any] | None:
    quality = gate_quality(answers)
    return None if quality is None else _plain(quality._asdict())


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Intervals as JSON knows them; infinity as `None`."""
    found = {name: value._asdict() if isinstance(value, Interval) else value for name, value in values.items()}
    return {name: None if isinstance(value, float) and np.isinf(value) else value for name, value in found.items()}


def _selection(study: Study, row: Row, seed: int) -> dict[str, Any] | None:
    folder = study.selected(row, seed)
    if row.of is not None or not (folder / QUALITY).is_file():
        return None
    quality = json.loads((folder / QUALITY).read_text(encoding="utf-8"))
    covered = {
        name: _covered(quality, tasks) for name, tasks in (("several steps", MULTI_HOP), ("one step", ONE_STEP))
    }
    return {**quality, "right share": right_share(folder / SELECTED), "covered": covered}


def _covered(quality: Mapping[str, Any], tasks: Sequence[str]) -> float:
    """The share of the inputs of some tasks of which any rationale was kept."""
    found = [part for name, part in quality.items() if name.split(", ")[0] in tasks]
    return sum(part["inputs with any kept"] for part in found) / max(1, sum(part["inputs"] for part in found))


def _shortcut(study: Study, row: Row, seeds: Sequence[int]) -> dict[str, Any] | None:
    """What `shortcut.summarise` gave of questions of several steps, of the first seed."""
    path = _measured(study, row, seeds[0], "shortcut") / RESULT_FILE
    return json.loads(path.read_text(encoding="utf-8"))["summary"][ALL] if path.is_file() else None


def seconds_of(study: Study, row: Row, seed: int) -> dict[str, Any]:
    """Stage -> what it took, as far as it was noted."""
    folder = study.folder(row.name, seed)
    stages = sorted(path for path in folder.glob("*") if path.is_dir()) if folder.exists() else []
    return {path.name: cost for path in stages if (cost := cost_of(path)) is not None}
