"""Write the results of an evaluation as a Markdown report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmemb_r1.evaluation.report.layout import Column, Line, columns_of, sections_of
from mmemb_r1.evaluation.run_folder import Results
from mmemb_r1.formatting import table

TOLD = {  # of the configuration, in this order
    "dataset": "dataset",
    "split": "split",
    "date": "measured",
    "checkpoint": "checkpoint",
    "seed": "seed",
    "document_reasoning": "reasoning of the candidates",
    "gate_threshold": "gate threshold",
    "max_reasoning_tokens": "rationale budget",
    "max_reasoning_rounds": "rounds of reasoning",
    "limit": "queries per task at most",
    "batch_size": "batch size",
    "versions": "versions",
}
HOW = {
    "95 %": "interval by drawing whole clusters of queries 2,000 times",
    "maj.": "always the task's most frequent training answer",
    "blind": "the better of never and always without the query's pictures",
    "thinks": "share of the queries that thought",
    "tokens": "of a rationale",
    "ms": "milliseconds per query on the machine that measured; not of what came from a cache",
}


def results_markdown(results: Results) -> str:
    """Write means of the groups, the overall where there is one, every task, and how it was measured."""
    config, columns, sections = results["config"], columns_of(results), sections_of(results)
    means = [line for section in sections for line in section if line.mean]
    tasks = [line for section in sections for line in section if not line.mean]
    metrics = ", ".join(dict.fromkeys(task["metric"] for task in results["tasks"].values()))
    parts = [
        f"# Evaluation of {config.get('model', 'a model')}",
        f"{results['summary']['all']['n']:,} queries of {len(tasks)} tasks, scored by {metrics}. Scores lie between 0 "
        "and 1, ties count as lost, and means give every task the same weight.",
        f"## Means\n\n{_lines('group', means, columns)}",
        *_overall(results),
        f"## Tasks\n\n{_lines('task', tasks, columns)}",
        "\n".join(f"- *{title}*: {text}" for title, text in HOW.items() if title in {one.title for one in columns}),
        f"## How it was measured\n\n{table(['', ''], _told(config))}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _lines(what: str, lines: list[Line], columns: list[Column]) -> str:
    rows = ([line.title.removeprefix("mean of "), *(one.cell(line.entry) for one in columns)] for line in lines)
    return table([what, *(one.title for one in columns)], rows)


def _overall(results: Results) -> Iterator[str]:
    overall: dict[str, Any] | None = results.get("overall")
    if overall is None:
        return
    if "refused" in overall:
        yield f"## Overall\n\nNone: {overall['refused']}."
        return
    rows = ([mode, f"{value:.4f}"] for mode, value in overall.items())
    yield f"## Overall\n\nThe mean over all tasks of the benchmark.\n\n{table(['mode', 'overall'], rows)}"


def _told(config: dict[str, Any]) -> Iterator[list[Any]]:
    for name, title in TOLD.items():
        value = config.get(name)
        if value is not None:
            yield [title, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value]
