"""Lay out the tables of the HTML report: numbers as text, of as many decimals as the others of their column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, repeat
from typing import Any, NamedTuple

from mmemb_r1.evaluation.invocation import Choice, CurvePoint, GateQuality
from mmemb_r1.evaluation.report.text import FIRST_GROUP, odd_rows
from mmemb_r1.evaluation.run_folder import Results
from mmemb_r1.evaluation.settings import QUERY_MODES, reasoning_of
from mmemb_r1.evaluation.statistics import Interval
from mmemb_r1.evaluation.tasks import ALL
from mmemb_r1.formatting import score, share

NOTHING = "–"
SHORT = 12  # digits of a checkpoint's fingerprint that are shown


class Cell(NamedTuple):
    """Holds a number as text, and a note beside it, its interval."""

    text: str
    note: str = ""


class ColumnHead(NamedTuple):
    """Names a column."""

    head: str
    of: str = ""  # the mode that it is of
    numbers: bool = True  # stand to the right


class Table(NamedTuple):
    """Holds C columns, and rows of C cells; a row's kind is "total", "group", "", or "heading" with a single cell."""

    columns: Sequence[ColumnHead]
    rows: Sequence[tuple[str, Sequence[Cell]]]

    @property
    def spans(self) -> list[tuple[str, int]]:
        """Lay out the line above the heads: a mode, or "", and how many columns it spans."""
        return [(mode, len(list(columns))) for mode, columns in groupby(column.of for column in self.columns)]


def modes_of(results: Results) -> list[str]:
    """List the modes of a run in the order in which they are shown."""
    return [mode for mode in QUERY_MODES if mode in results["config"]["modes"]]


def group_name(group: str) -> str:
    return "All tasks" if group == ALL else group


def run_facts(results: Results) -> list[tuple[str, str, str]]:
    """List what the header tells of a run: name, value, and the value in full where it is cut."""
    config = results["config"]
    checkpoint = str(config.get("checkpoint") or "")
    tasks = len(results["tasks"])
    known = {
        "Model": config.get("model"),
        "Checkpoint": checkpoint[:SHORT] + ("…" if len(checkpoint) > SHORT else ""),
        "Data": " · ".join(str(config[key]) for key in ("dataset", "split") if config.get(key)),
        "Queries": f"{results['summary'][ALL]['n']:,} in {tasks} task{'s' if tasks > 1 else ''}",
        "Modes": ", ".join(config["modes"]),
        "Gate threshold": config.get("gate_threshold"),
        "Candidates": f"embedded with {config['document_reasoning']}" if config.get("document_reasoning") else "",
        "Date": str(config.get("date") or "").replace("T", " ").replace("+00:00", " UTC"),
        "Seed": config.get("seed"),
        "Batch size": config.get("batch_size"),
        "Versions": ", ".join(f"{name} {value}" for name, value in config.get("versions", {}).items()),
    }
    whole = {"Checkpoint": checkpoint}
    return [(name, str(value), whole.get(name, "")) for name, value in known.items() if value not in (None, "")]


def key_figures(results: Results) -> list[dict[str, str]]:
    """Collect the score over all tasks of each mode, and what it takes."""
    means = results["summary"][ALL]["modes"]
    return [
        {
            "mode": mode,
            "score": score(numbers["score"]),
            "interval": between(numbers.get("interval")),
            "cost": " · ".join(_costs(mode, numbers)),
        }
        for mode in modes_of(results)
        for numbers in [means[mode]]
    ]


def _costs(mode: str, numbers: Mapping[str, Any]) -> Iterator[str]:
    if reasoning_of(mode) == "auto":
        yield f"{share(numbers['invocation_ratio'])} think"
    if mode != "never":
        yield f"{numbers['mean_reasoning_tokens']:.1f} tokens"
    if numbers["seconds_per_query"] is not None:
        yield f"{_decimals([numbers['seconds_per_query']], 1000)[0]} ms per query"


def score_table(results: Results, entries: Mapping[str, Mapping[str, Any]], kind: str) -> Table:
    """Lay out what every mode got and took, a line per entry; `kind` of entry is `"group"` or `"task"`."""
    modes, of_groups = modes_of(results), kind == "group"
    paths = {name: tuple(task["groups"].values()) for name, task in results["tasks"].items()}
    order = ordered_tasks(results)
    if of_groups:  # all first, then every main group followed by its parts
        order = list(dict.fromkeys([ALL, *(group for name in order for group in paths[name])]))
    listed = {name: entries[name] for name in order if name in entries}
    found = list(listed.values())
    columns: list[tuple[ColumnHead, list[Cell]]] = []

    def add(head: ColumnHead, texts: Iterable[str], notes: Iterable[str] = repeat("")) -> None:
        columns.append((head, [Cell(text or NOTHING, note) for text, note in zip(texts, notes, strict=False)]))

    add(ColumnHead(kind, numbers=False), map(group_name, listed) if of_groups else listed)
    if of_groups:
        add(ColumnHead("tasks"), [f"{entry['tasks']:,}" for entry in found])
    else:
        add(ColumnHead("metric", numbers=False), [entry["metric"] for entry in found])
    add(ColumnHead("queries"), [f"{entry['n']:,}" for entry in found])
    if not of_groups:
        add(ColumnHead("candidates"), [f"{entry['candidates']:,}" for entry in found])
    if any("majority" in entry for entry in found):
        add(ColumnHead("majority"), [score(entry.get("majority")) for entry in found])
    if any("text_alone" in entry for entry in found):
        add(ColumnHead("text alone"), [score(entry.get("text_alone")) for entry in found])
    if any("no_image" in entry for entry in found):
        add(ColumnHead("no image"), [score(max(entry.get("no_image", {}).values(), default=None)) for entry in found])
    timed = any(entry["modes"][mode]["seconds_per_query"] is not None for entry in found for mode in modes)
    for mode in modes:
        numbers = [entry["modes"][mode] for entry in found]
        intervals = [between(one.get("interval")) for one in numbers]
        add(ColumnHead("score", mode), [score(one["score"]) for one in numbers], intervals)
        if reasoning_of(mode) == "auto":
            add(ColumnHead("thinks", mode), [f"{100 * one['invocation_ratio']:.1f} %" for one in numbers])
        if mode != "never":
            add(ColumnHead("tokens", mode), _decimals([one["mean_reasoning_tokens"] for one in numbers]))
        if timed:
            add(ColumnHead("ms", mode), _decimals([one["seconds_per_query"] for one in numbers], 1000))
    mains = {path[:1] for path in paths.values()} if any(len(path) > 1 for path in paths.values()) else set()
    rows: list[tuple[str, Sequence[Cell]]] = []
    before: tuple[str, ...] = ()
    for name, cells in zip(listed, zip(*(cells for _, cells in columns), strict=True), strict=True):
        if of_groups:
            rows.append(("total" if name == ALL else "group" if (name,) in mains else "", cells))
            continue
        if paths[name] and paths[name] != before:
            rows.append(("heading", [Cell(paths[name][-1])]))
        rows.append(("", cells))
        before = paths[name]
    return Table([head for head, _ in columns], rows)


def pair_table(results: Results) -> Table | None:
    """Lay out, where candidates think, what both sides of every mode take and get over all tasks; else `None`."""
    means = results["summary"][ALL]["modes"]
    if not any(numbers.get("document_invocation_ratio") for numbers in means.values()):
        return None
    heads = ["queries", "candidates", "queries think", "tokens", "candidates think", "tokens", "score"]
    rows = []
    for mode in results["config"]["modes"]:
        queries, _, documents = mode.partition("+")
        numbers = means[mode]
        cells = [queries, documents or results["config"]["document_reasoning"]]
        for ratio, tokens in (("", "reasoning"), ("document_", "document")):
            ratio, length = numbers.get(f"{ratio}invocation_ratio", 0.0), numbers.get(f"mean_{tokens}_tokens", 0.0)
            cells += [share(ratio), f"{length:.1f}"]
        rows.append(("", [*map(Cell, cells), Cell(score(numbers["score"]), between(numbers.get("interval")))]))
    return Table([ColumnHead(head, numbers=place > 1) for place, head in enumerate(heads)], rows)


def odd_table(results: Results) -> Table:
    """Lay out what was odd about rows of the tasks' data, a line per task and oddity."""
    heads = [ColumnHead("task", numbers=False), ColumnHead("rows"), ColumnHead("what is odd", numbers=False)]
    return Table(heads, [("", [Cell(str(cell)) for cell in row]) for row in odd_rows(results)])


def ordered_tasks(results: Results) -> list[str]:
    """List the tasks, those of a group side by side; groups as they first come, but the simple ones in front."""
    paths = {name: tuple(task["groups"].values()) for name, task in results["tasks"].items()}
    mains, groups = ([*dict.fromkeys(path[:end] for path in paths.values())] for end in (1, None))
    mains.sort(key=lambda main: main != (FIRST_GROUP,))
    return sorted(paths, key=lambda name: (mains.index(paths[name][:1]), groups.index(paths[name])))


def choice_table(judged: Mapping[str, Choice], gates: Mapping[str, GateQuality | None], decided: bool) -> Table:
    """Lay out what there was to gain by choosing, and, if decisions were made, what these gained."""
    heads = ["group", "queries", "better fixed", "oracle", "head-room"]
    heads += ["auto − fixed", "captured", "auto − random"] if decided else []
    has_gate = any(gates.values())
    heads += ["gate AUC", "counted"] if has_gate else []
    rows = []
    for group, choice in judged.items():
        quality = gates[group]
        cells = [Cell(group_name(group)), Cell(f"{choice.queries:,}"), Cell(choice.better_fixed)]
        cells += [_with_interval(choice.oracle), _with_interval(choice.headroom)]
        if decided:
            cells += [_signed(choice.gain), _signed(choice.captured, ".0f", 100, " %"), _signed(choice.over_random)]
        if has_gate:
            cells.append(_with_interval(quality.auc) if quality and quality.auc else Cell(NOTHING))
            cells.append(Cell(f"{quality.queries:,}", share(quality.share)) if quality else Cell(NOTHING))
        rows.append(("total" if group == ALL else "", cells))
    return Table([ColumnHead(head, numbers=head not in ("group", "better fixed")) for head in heads], rows)


def curve_table(curve: Sequence[CurvePoint]) -> Table:
    """Lay out the curve of invocation as numbers."""
    heads = ["gate threshold", "thinks", "score", "random", "score − random", "tokens"]
    tokens = _decimals([point.tokens for point in curve])
    times = _decimals([point.seconds for point in curve], 1000) if curve and curve[0].seconds is not None else []
    rows = []
    for place, point in enumerate(curve):
        cells = [
            Cell("none" if point.threshold > 1 else f"{point.threshold:.4f}"),
            Cell(f"{100 * point.invocation:.1f} %"),
            _with_interval(point.score),
            Cell(score(point.random.mean)),
            _signed(point.over_random),
            Cell(tokens[place]),
        ]
        rows.append(("", [*cells, *map(Cell, times[place : place + 1])]))
    return Table([ColumnHead(head) for head in (*heads, *(["ms"] if times else []))], rows)


def between(ends: Sequence[float] | None) -> str:
    """
    >>> between([0.25, 0.75]), between(None)
    ('0.250–0.750', '')
    """
    return f"{score(ends[0])}–{score(ends[1])}" if ends else ""


def _with_interval(value: Interval) -> Cell:
    return Cell(score(value.mean), between((value.low, value.high)))


def _signed(value: Interval | None, form: str = "+.3f", factor: int = 1, unit: str = "") -> Cell:
    if value is None:
        return Cell(NOTHING)
    mean, low, high = (_sign(f"{factor * part:{form}}") for part in value)
    return Cell(f"{mean}{unit}", f"{low} to {high}{unit}")


def _sign(text: str) -> str:
    """Write a minus as wide as a plus, and zero without a sign.

    >>> _sign("-0.012"), _sign("-0.000")
    ('−0.012', '0.000')
    """
    text = text if float(text) else text.lstrip("+-")
    return text.replace("-", "−")


def _decimals(values: Sequence[float | None], factor: float = 1) -> list[str]:
    """
    Write numbers to as many decimals as give the largest three digits, so that they stand in line.

    >>> _decimals([0.0123, 0.4, None], 1000)
    ['12', '400', '–']
    """
    known = [abs(value) * factor for value in values if value is not None]
    largest = max(known, default=0)
    digits = 0 if largest >= 100 else 1 if largest >= 10 else 2
    return [NOTHING if value is None else f"{value * factor:,.{digits}f}" for value in values]
