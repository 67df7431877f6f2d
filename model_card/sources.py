"""Read and check the files that a card's numbers come from. A damaged one is an error that names it."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmemb_r1.evaluation.run_folder import Results, load_results

RESULTS_FILE = "results.json"
TRAINING_FILE = "training.json"  # the trainers write it beside each checkpoint
CURVE_NAME = re.compile(r"curve(?:-(?P<split>.+))?\.csv")
MEASURED = {"hit@1": 1.0, "score": 1.0, "invocation_ratio": 1.0, "mean_reasoning_tokens": math.inf}
AGAIN = "write the file again, or leave it out"


class Point(NamedTuple):
    """A model at one threshold of its gate: the invocation rate, R@1 and its 95 % interval."""

    threshold: float
    invocation: float
    r1: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """What a curve's file holds; `None` is what it does not say."""

    file: str
    models: dict[str, list[Point]]
    dataset: str | None
    split: str | None
    queries: str | None


def read_results(path: str | os.PathLike[str]) -> Results:
    """Read what [`save_results`] wrote, and check every number that the card shows."""
    try:
        results = load_results(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}; {AGAIN}") from error
    modes = _object(results["config"], path, "config").get("modes")
    if not isinstance(modes, list) or not modes or not all(isinstance(mode, str) for mode in modes):
        raise ValueError(f"{path}: config/modes is {modes!r}; allowed: a list of the reasoning modes; {AGAIN}")
    for part in ("tasks", "summary"):
        for name, entry in _object(results[part], path, part).items():
            where = f"{part}/{name}"
            _number(_object(entry, path, where).get("n"), path, f"{where}/n", math.inf)
            for baseline in ("majority", "text_alone"):
                if baseline in entry:
                    _number(entry[baseline], path, f"{where}/{baseline}")
            if "no_image" in entry:
                for mode, value in _object(entry["no_image"], path, f"{where}/no_image").items():
                    _number(value, path, f"{where}/no_image/{mode}")
            if part == "tasks":
                _named(entry, path, where)
            numbers = _object(entry.get("modes"), path, f"{where}/modes")
            for mode in modes:
                measured = _object(numbers.get(mode), path, f"{where}/modes/{mode}")
                for key, highest in MEASURED.items():
                    _number(measured.get(key), path, f"{where}/modes/{mode}/{key}", highest)
                if "interval" in measured:
                    _ends(measured["interval"], path, f"{where}/modes/{mode}/interval")
                if (seconds := measured.get("seconds_per_query")) is not None:  # unknown for vectors from a cache
                    _number(seconds, path, f"{where}/modes/{mode}/seconds_per_query", math.inf)
    _object(results["summary"].get("all"), path, "summary/all")
    return results


def _named(task: Mapping[str, Any], path: str | os.PathLike[str], where: str) -> None:
    """Check what a task is measured by and which groups it is of."""
    if not isinstance(task.get("metric"), str):
        raise ValueError(f"{path}: {where}/metric is {task.get('metric')!r:.60}; allowed: a name; {AGAIN}")
    groups = task.get("groups")
    if not isinstance(groups, dict) or not all(isinstance(group, str) for group in groups.values()):
        raise ValueError(f"{path}: {where}/groups is {groups!r:.60}; allowed: an object of names; {AGAIN}")


def read_training(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the facts of a training, name -> value."""
    try:
        facts = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}; {AGAIN}") from error
    return _object(facts, path, "the file")


def read_curve(path: str | os.PathLike[str]) -> Curve:
    """Read a table of scores over the gate's threshold, CSV.

    Its columns are those of [`Point`], and where known `model` (several curves in one file), `dataset`, `split` and
    `queries`. A file `curve-test.csv` without a column `split` is of the test split.
    """
    rows = _rows(path, Point._fields)
    models: dict[str, list[Point]] = {}
    for line, row in enumerate(rows, 2):
        values = {name: _float(row[name], path, f"line {line}, {name}") for name in Point._fields}
        for name in ("invocation", "r1", "low", "high"):
            _number(values[name], path, f"line {line}, {name}")
        models.setdefault(row.get("model") or "", []).append(Point(**values))
    named = CURVE_NAME.fullmatch(Path(path).name)
    return Curve(
        file=curve_name(path),
        models={model: sorted(points, key=lambda point: point.invocation) for model, points in models.items()},
        dataset=_same(rows, "dataset", path),
        split=_same(rows, "split", path) or (named["split"] if named else None),
        queries=_same(rows, "queries", path),
    )


def curve_name(path: str | os.PathLike[str]) -> str:
    """Name a curve's file inside a checkpoint: its own name, if it would be found there by that."""
    name = Path(path).name
    return name if CURVE_NAME.fullmatch(name) else "curve.csv"


def curves_in(folder: Path) -> list[Path]:
    """List the curves in a checkpoint, found by their names."""
    return sorted(path for path in folder.iterdir() if CURVE_NAME.fullmatch(path.name))


def find_curve(folder: Path) -> Path | None:
    """Find the curve in a checkpoint, if there is one. ValueError if there are several."""
    found = curves_in(folder)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder} holds {len(found)} curves, a card shows one: keep one of {names}")
    return found[0] if found else None


def read_emissions(source: str | os.PathLike[str] | float) -> dict[str, Any]:
    """Make the Hub's `co2_eq_emissions` of a training from CodeCarbon's emissions.csv or grams of CO2 equivalents."""
    if isinstance(source, int | float):
        _number(source, "emissions", "the number of grams", math.inf)
        return {"emissions": float(source)}
    rows = _rows(source, ("run_id", "emissions"))
    last = {row["run_id"]: row for row in rows}  # a run may write several rows, each a sum since its start
    kilograms = [_float(row["emissions"], source, f"emissions of run {run}") for run, row in last.items()]
    for value in kilograms:
        _number(value, source, "emissions", math.inf)
    hardware = _distinct(row.get("gpu_model") or row.get("cpu_model") for row in last.values())
    places = _distinct(row.get("country_name") for row in last.values())
    facts: dict[str, Any] = {"emissions": float(f"{1000 * sum(kilograms):.3g}"), "source": "CodeCarbon"}
    known = {"geographical_location": places, "hardware_used": hardware}
    return facts | {name: value for name, value in known.items() if value}


def _rows(path: str | os.PathLike[str], columns: Iterable[str]) -> list[dict[str, str]]:
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), reader.fieldnames or []
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not CSV: {error}; {AGAIN}") from error
    if missing := [name for name in columns if name not in names]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(names) or 'none'}; {AGAIN}")
    if not rows:
        raise ValueError(f"{path} has no rows; {AGAIN}")
    return rows


def _same(rows: list[dict[str, str]], column: str, path: str | os.PathLike[str]) -> str | None:
    values = {row.get(column) or "" for row in rows}
    if len(values) > 1:
        raise ValueError(f"{path}: {column} is {sorted(values)}; a curve is of one {column}; split the file")
    return values.pop() or None


def _distinct(values: Iterable[str | None]) -> str:
    return ", ".join(dict.fromkeys(value for value in values if value))


def _object(value: Any, path: str | os.PathLike[str], where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{path}: {where} is {value!r:.60}; allowed: an object with something in it; {AGAIN}")
    return dict(value)


def _float(text: str | None, path: str | os.PathLike[str], where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"{path}: {where} is {text!r}; allowed: a number; {AGAIN}")
    return value


def _ends(value: Any, path: str | os.PathLike[str], where: str) -> None:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{path}: {where} is {value!r:.60}; allowed: a list of two numbers from 0 to 1; {AGAIN}")
    for end in value:
        _number(end, path, where)


def _number(value: Any, path: str | os.PathLike[str], where: str, highest: float = 1.0) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not 0 <= value <= highest:
        allowed = "a number from 0 to 1" if highest == 1 else "a number, 0 or more"
        raise ValueError(f"{path}: {where} is {value!r:.60}; allowed: {allowed}; {AGAIN}")
