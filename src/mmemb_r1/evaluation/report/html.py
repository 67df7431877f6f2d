"""Write a run's results as one HTML page that opens without a network: tables with intervals, plots, examples."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.invocation import Answers, choice_scores, gate_quality, invocation_curve, judge_choice
from mmemb_r1.evaluation.report import html_tables as tables
from mmemb_r1.evaluation.report import plots
from mmemb_r1.evaluation.report.text import ODD_ROWS
from mmemb_r1.evaluation.run_folder import RESULTS_FILE, Columns, Results, load_results, read_query_rows, rows_path
from mmemb_r1.evaluation.tasks import ALL
from mmemb_r1.runs import replaced_file

MAX_PANELS = 6  # groups that get plots of their own; more would say less
MAX_TASKS = 20  # in one plot
EXAMPLES, MAX_CHARACTERS = 8, 600
FIXED = ("never", "always")


def write_html(run: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """
    Write the report of a run's folder, one file that needs no other.

    Raises:
        ValueError: if the folder holds no results, rows are missing or damaged, or modes are not of the same queries.
        ImportError: if the extra `eval`, which brings what draws, is missing.
    """
    page = render_html(run)
    with replaced_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render_html(run: str | os.PathLike[str]) -> str:
    """Render the page of [`write_html`]."""
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("the HTML report needs jinja2: pip install 'mmemb-r1[eval]'") from error

    source = Path(run) / RESULTS_FILE
    if not source.is_file():
        raise ValueError(f"{source} is missing: a report is written of the folder of a finished evaluation")
    results = load_results(source)
    answers = read_answers(run, results)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_data("report.html.jinja")).render(
        style=_data("report.css"),
        title=f"Evaluation of {results['config'].get('model', 'a model')}",
        config=results["config"],
        facts=tables.run_facts(results),
        overall=_overall(results),
        modes=tables.modes_of(results),
        figures=tables.key_figures(results),
        summary=tables.score_table(results, results["summary"], "group"),
        tasks=tables.score_table(results, results["tasks"], "task"),
        task_plots=_task_plots(results),
        pairs=tables.pair_table(results),
        odd=tables.odd_table(results),
        odd_words=ODD_ROWS,
        choice=_choice_part(results, answers),
        examples=list(_examples(run, results)),
        max_characters=MAX_CHARACTERS,
        strays=answers.strays if answers else 0,
        queries=results["summary"][ALL]["n"],
    )


def _data(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _overall(results: Results) -> dict[str, Any] | None:
    """Lay out the overall of a benchmark: a score per mode, or why there is none."""
    overall = results.get("overall")
    if not overall:
        return None
    if "refused" in overall:
        return {"refused": overall["refused"]}
    return {"scores": [(mode, tables.score(overall[mode])) for mode in tables.modes_of(results) if mode in overall]}


def _panels(results: Results) -> dict[str, set[str]]:
    """Collect name -> tasks of all tasks and of every main group, one of the first kind of group."""
    panels: dict[str, set[str]] = {ALL: set(results["tasks"])}
    for name in tables.ordered_tasks(results):
        for group in list(results["tasks"][name]["groups"].values())[:1]:
            panels.setdefault(group, set()).add(name)
    return panels if 2 < len(panels) <= MAX_PANELS + 1 else {ALL: panels[ALL]}


def _mode_scores(entry: Mapping[str, Any], modes: Sequence[str]) -> dict[str, plots.ModeScore]:
    return {
        mode: plots.ModeScore(
            score=numbers["score"],
            interval=tuple(numbers["interval"]) if numbers.get("interval") else None,
            invocation=numbers["invocation_ratio"],
            seconds=numbers["seconds_per_query"],
        )
        for mode in modes
        for numbers in [entry["modes"][mode]]
    }


def _task_plots(results: Results) -> list[str]:
    """Plot the tasks of each main group; a large one is cut into several of equal height."""
    modes = tables.modes_of(results)
    panels = {name: tasks for name, tasks in _panels(results).items() if name != ALL} or _panels(results)
    plotted = []
    for panel, members in panels.items():
        scores = {name: _mode_scores(task, modes) for name, task in results["tasks"].items() if name in members}
        for part in np.array_split(list(scores), -(-len(scores) // MAX_TASKS)):
            title = tables.group_name(panel) + (", continued" if part[0] != next(iter(scores)) else "")
            plotted.append(plots.tasks_plot(title, {name: scores[name] for name in part.tolist()}, f"tasks {title}"))
    return plotted


def _choice_part(results: Results, answers: RunAnswers | None) -> dict[str, Any]:
    """Collect everything that compares modes query by query."""
    if answers is None:
        return {"missing": [mode for mode in FIXED if mode not in results["config"]["modes"]]}
    parts = {panel: answers.of_tasks(members) for panel, members in _panels(results).items()}
    has_gate, decided = answers.answers.gate_prob is not None, answers.thinks is not None
    judged, gates, curves, plotted = {}, {}, {}, defaultdict(list)
    for panel, part in parts.items():
        title, scores = tables.group_name(panel), _mode_scores(results["summary"][panel], tables.modes_of(results))
        thinks = np.zeros(len(part.answers.task), bool) if part.thinks is None else part.thinks
        judged[panel] = judge_choice(part.answers, thinks)
        gates[panel] = gate_quality(part.answers) if has_gate else None
        curve = curves[panel] = invocation_curve(part.answers) if has_gate else None
        oracle = judged[panel].oracle.mean
        plotted["invocation"].append(plots.invocation_plot(title, curve, oracle, scores, f"invocation {panel}"))
        if all(results["summary"][ALL]["modes"][mode]["seconds_per_query"] is not None for mode in FIXED):
            plotted["frontier"].append(plots.frontier_plot(title, curve, scores, f"frontier {panel}"))
        gap = part.answers.gap()
        known = ~np.isnan(gap)
        if known.any():
            decisions = None if part.thinks is None else part.thinks[known]
            plotted["gaps"].append(plots.gap_plot(title, gap[known], decisions, f"gap {panel}"))
    return {
        "missing": [],
        "has_gate": has_gate,
        "decided": decided,
        "table": tables.choice_table(judged, gates, decided),
        "points": tables.curve_table(curves[ALL] or []),
        **{kind: plotted[kind] for kind in ("invocation", "frontier", "gaps")},
    }


def _examples(run: str | os.PathLike[str], results: Results) -> Iterator[dict[str, Any]]:
    """Yield rationales of some tasks, at places that nothing of their results decides."""
    mode = next((mode for mode in ("always", "auto") if mode in results["config"]["modes"]), None)
    names = tables.ordered_tasks(results)
    places = np.linspace(0, len(names) - 1, min(EXAMPLES, len(names))).round().astype(int).tolist()
    for step, name in enumerate(names[place] for place in places if mode):
        rows = read_query_rows(rows_path(run, name, str(mode)))
        there = [row for row, text in enumerate(rows["rationale"]) if text]
        if not there:
            continue
        row = there[(7 * step + 5) % len(there)]
        direct = None
        if "never" in results["config"]["modes"]:
            before = read_query_rows(rows_path(run, name, "never"))
            direct = dict(zip(before["query_id"], before["rank"], strict=True)).get(rows["query_id"][row])
        yield {
            "task": name,
            "query": rows["query_id"][row],
            "text": rows["query_text"][row],
            "rationale": rows["rationale"][row],
            "tokens": int(rows["num_reasoning_tokens"][row]),
            "gate": None if np.isnan(rows["gate_prob"][row]) else f"{rows['gate_prob'][row]:.2f}",
            "rank_direct": None if direct is None else int(direct),
            "rank": int(rows["rank"][row]),
        }


@dataclass(frozen=True)
class RunAnswers:
    """
    Holds all queries of a run.

    Args:
        answers: of N queries.
        thinks: `(N,)` for which of them `auto` wrote a rationale. `None` if it was not run.
        strays: for how many the score of `auto` is not that of the fixed mode which it chose: more than a few means
            several rounds of reasoning, or other options than those of `always`.
    """

    answers: Answers
    thinks: npt.NDArray[np.bool_] | None
    strays: int

    def of_tasks(self, names: set[str]) -> RunAnswers:
        """Keep the queries of some tasks. `strays` stays that of the run."""
        where = np.isin(self.answers.task, sorted(names))
        return RunAnswers(self.answers.where(where), None if self.thinks is None else self.thinks[where], self.strays)


def read_answers(run: str | os.PathLike[str], results: Results) -> RunAnswers | None:
    """Read a run's rows of `never`, `always` and, where it was run, `auto`; `None` if it lacks a fixed mode."""
    modes = results["config"]["modes"]
    if not set(FIXED) <= set(modes):
        return None
    columns: dict[str, list[npt.NDArray[Any]]] = defaultdict(list)
    for task, result in results["tasks"].items():
        rows = read_modes(run, task, [*FIXED, *(["auto"] if "auto" in modes else [])])
        for name, values in _columns(task, rows, result["modes"]).items():
            columns[name].append(values)
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    thinks, auto = joined.pop("thinks", None), joined.pop("auto", None)
    for name in ("gate_prob", "seconds_never", "seconds_always"):
        if np.isnan(joined[name]).any():  # there is no gate; all vectors came from a cache
            del joined[name]
    answers = Answers(**joined)
    strays = 0
    if thinks is not None and auto is not None:
        strays = int((~np.isclose(choice_scores(answers, thinks), auto)).sum())
    return RunAnswers(answers, thinks, strays)


def read_modes(run: str | os.PathLike[str], task: str, modes: Sequence[str]) -> dict[str, Columns]:
    """Read the rows of several modes of a task, all in the order of the first one's queries."""
    found = {mode: read_query_rows(rows_path(run, task, mode)) for mode in modes}
    ids = found[modes[0]]["query_id"]
    for mode in modes[1:]:
        place = {query: row for row, query in enumerate(found[mode]["query_id"])}
        if different := set(ids) ^ set(place):
            raise ValueError(
                f"{task}: {modes[0]} and {mode} are not of the same queries; {len(different)} are in one of them only,"
                f" say {min(different)!r}. Remove {rows_path(run, task, mode).with_suffix('.json')} and evaluate"
                " again: only what it held is measured again."
            )
        order = [place[query] for query in ids]
        found[mode] = {name: values[order] for name, values in found[mode].items()}
    return found


def _columns(task: str, rows: Mapping[str, Columns], numbers: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    never, always = (rows[mode] for mode in FIXED)
    queries = len(never["score"])
    columns = {
        "task": np.full(queries, task, object),
        "cluster": never["cluster"],
        "never": never["score"],
        "always": always["score"],
        "tokens": always["num_reasoning_tokens"],
        "gate_prob": never["gate_prob"],
        "target_probability_never": never["alignment"],
        "target_probability_always": always["alignment"],
    }
    columns |= {f"seconds_{mode}": np.full(queries, numbers[mode]["seconds_per_query"], float) for mode in FIXED}
    if "auto" in rows:
        columns |= {"auto": rows["auto"]["score"], "thinks": rows["auto"]["reasoned"]}
    return columns
