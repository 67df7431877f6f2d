"""What the rows' answers say: levels by kind of task, differences query by query, selection, gate and curve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from mmemb_r1.evaluation.adaptivity import Answers, chosen, gate_quality, invocation_curve, judge_choice
from mmemb_r1.evaluation.bootstrap import Interval, bootstrap_means, clustered_bootstrap, interval_of
from mmemb_r1.evaluation.paired import holm, paired_difference
from mmemb_r1.evaluation.shortcut_run import RESULT_FILE
from mmemb_r1.evaluation.summary import ALL
from mmemb_r1.pipeline.answers import ANSWERS_FILE
from mmemb_r1.pipeline.stage import cost_of
from mmemb_r1.pipeline.tasks import FLAGS, NEIGHBOURS
from mmemb_r1.study.rows import BEFORE_GRPO, FULL, RANDOM_GATE, Row
from mmemb_r1.study.tasks import Study

MODES = ("never", "always", "auto")
GROUPS = ("all", "simple", "multi-hop", "flags", "neighbours")
JUDGED = (("multi-hop", "always"), ("all", "auto"))  # what most claims are about
COLUMNS = (*MODES, "invocation", "tokens", "tokens_always", "right")
Table = dict[str, npt.NDArray[Any]]


def table_of(study: Study, row: Row, seeds: Sequence[int]) -> Table:
    """
    The answers of a row's models on the test split, of one seed after another.

    A random gate's are what is expected of it: every query thinks with the same probability, which is the share that
    the full method's gate thinks on.
    """
    state = "gate" if row.name == BEFORE_GRPO else "grpo"
    parts = []
    for seed in seeds:
        table = pq.read_table(study.folder(row.of or row.name, seed) / f"answers-{state}" / ANSWERS_FILE)
        columns = {name: np.array(table[name].to_pylist()) for name in table.column_names if name != "thought"}
        columns["seed"] = np.full(table.num_rows, seed)
        columns["invocation"] = (columns["rounds_auto"] > 0).astype(float)
        if row.name == RANDOM_GATE:
            share = _mean_over_tasks(columns["invocation"], columns["task"])
            columns["auto"] = columns["never"] + share * (columns["always"] - columns["never"])
            columns["invocation"] = np.full(table.num_rows, share)
            columns["tokens_auto"] = share * columns["tokens"]
        columns["tokens_always"], columns["tokens"] = columns["tokens"], columns["tokens_auto"]
        parts.append(columns)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _mean_over_tasks(values: npt.NDArray[Any], tasks: npt.NDArray[Any]) -> float:
    return float(np.mean([values[tasks == task].mean() for task in sorted(set(tasks.tolist()))]))


def where_of(table: Table, group: str) -> npt.NDArray[np.bool_]:
    """`(N,)` which queries belong to one of `GROUPS`."""
    if group == "all":
        return np.ones(len(table["task"]), dtype=bool)
    if group in ("flags", "neighbours"):
        return np.isin(table["task"], FLAGS if group == "flags" else NEIGHBOURS)
    return table["complexity"] == group


def levels(table: Table, columns: Sequence[str] = COLUMNS) -> dict[str, dict[str, Any]]:
    """
    Group -> column -> mean over tasks with a 95 % interval by what the queries are about, `{"mean", "low", "high"}`;
    and the numbers of `queries` (of all seeds) and `clusters`.
    """
    found: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        where = where_of(table, group)
        if not where.any():
            continue
        values = np.stack([table[name][where].astype(float) for name in columns], axis=1)  # (n, K)
        entities, tasks = table["entity"][where].tolist(), table["task"][where].tolist()
        mean, draws = bootstrap_means(values, entities, tasks)
        found[group] = {
            name: interval_of(float(one), drawn)._asdict()
            for name, one, drawn in zip(columns, mean, draws.T, strict=True)
        }
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
        Group -> mode -> `{"mean", "low", "high", "p"}`, as `paired_difference` has them; and the numbers of `queries`
        and `clusters`.

    Raises:
        ValueError: if the two were not asked the same questions.
    """
    keys = [list(zip(table["pair_id"].tolist(), table["seed"].tolist(), strict=True)) for table in (ours, theirs)]
    if keys[0] != keys[1]:
        raise ValueError(f"{name}: the rows were not asked the same questions; remove their answers")
    found: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        where = where_of(ours, group)
        if not where.any():
            continue
        entities, tasks = ours["entity"][where].tolist(), ours["task"][where].tolist()
        found[group] = {"queries": int(where.sum()), "clusters": len(set(entities))}
        for mode in MODES:
            gain = paired_difference(theirs[mode][where], ours[mode][where], entities, tasks)
            found[group][mode] = {**gain.difference._asdict(), "p": gain.p}
    return found


def correct(rows: Mapping[str, dict[str, Any]]) -> None:
    """Give the differences that claims go by a `p_corrected`: that of all rows together (Holm)."""
    for group, mode in JUDGED:
        judged = [row["differences"][group][mode] for row in rows.values() if group in row.get("differences", {})]
        for one, value in zip(judged, holm([one["p"] for one in judged]), strict=True):
            one["p_corrected"] = value


def summarise(study: Study) -> dict[str, Any]:
    """
    All rows that have answers.

    Returns:
        `rows`: name -> `number`, `title`, `seeds`, `levels`, `differences` to the row that it is compared with (and to
        its `control`), over the seeds that both have, `selection`, `shortcut`, `seconds` per stage; `full`: `choice`,
        `curve` and `gate` of the full method; `missing`: rows without answers.
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
                other = table_of(study, by_name[name], shared)
                rows[row.name][key] = differences(table_of(study, row, shared), other, row.name)
    correct(rows)
    full = by_name[FULL]
    found = {"rows": rows, "missing": missing}
    return {**found, "full": _full(table_of(study, full, seeds))} if (seeds := answered(study, full)) else found


def answered(study: Study, row: Row) -> tuple[int, ...]:
    """The seeds of a row whose models were asked."""
    state = "gate" if row.name == BEFORE_GRPO else "grpo"
    return tuple(
        seed for seed in study.seeds_of(row) if (study.folder(row.of or row.name, seed) / f"answers-{state}").exists()
    )


def answers_of(table: Table) -> Answers:
    """The columns as `evaluation.adaptivity` takes them."""
    return Answers(
        task=table["task"],
        cluster=table["entity"],
        never=table["never"],
        always=table["always"],
        tokens=table["tokens_always"],
        gate_prob=table["gate_prob"],
        alignment_never=table["aligned_never"],
        alignment_always=table["aligned_always"],
    )


def _full(table: Table) -> dict[str, Any]:
    """
    What the full method's gate makes of its two vectors.

    Returns:
        `choice`, `gate` and `curve` as `evaluation.adaptivity` has them; `best`, the best point of the curve, with
        what it is better than thinking always, `over_always`: it is chosen on these answers, so that is optimistic.
    """
    answers = answers_of(table)
    choice = judge_choice(answers, table["invocation"] > 0)
    quality = gate_quality(answers)
    curve = invocation_curve(answers)
    best = max(curve, key=lambda point: point.score.mean)
    gain = chosen(answers, answers.thinks(best.threshold)) - answers.always
    over = clustered_bootstrap(gain, table["entity"].tolist(), table["task"].tolist())
    return {
        "choice": _plain(choice._asdict()),
        "curve": [_plain(point._asdict()) for point in curve],
        "best": {**_plain(best._asdict()), "over_always": over._asdict()},
        "gate": None if quality is None else _plain(quality._asdict()),
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Intervals as JSON knows them; infinity as `None`."""
    found = {name: value._asdict() if isinstance(value, Interval) else value for name, value in values.items()}
    return {name: None if isinstance(value, float) and np.isinf(value) else value for name, value in found.items()}


def _selection(study: Study, row: Row, seed: int) -> dict[str, Any] | None:
    path = study.selected(row, seed) / "quality.json"
    return json.loads(path.read_text(encoding="utf-8")) if row.of is None and path.is_file() else None


def _shortcut(study: Study, row: Row, seeds: Sequence[int]) -> dict[str, Any] | None:
    """What `shortcut.summarise` gave of questions of several steps, of the first seed."""
    state = "gate" if row.name == BEFORE_GRPO else "grpo"
    path = study.folder(row.of or row.name, seeds[0]) / f"shortcut-{state}" / RESULT_FILE
    return json.loads(path.read_text(encoding="utf-8"))["summary"][ALL] if path.is_file() else None


def seconds_of(study: Study, row: Row, seed: int) -> dict[str, Any]:
    """Stage -> what it took, as far as it was noted."""
    folder = study.folder(row.name, seed)
    stages = sorted(path for path in folder.glob("*") if path.is_dir()) if folder.exists() else []
    return {path.name: cost for path in stages if (cost := cost_of(path)) is not None}
