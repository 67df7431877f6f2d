"""Write the sections of a model card, each from the file that holds its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any
from urllib.parse import quote

from mmemb_r1.evaluation.run_folder import Results
from mmemb_r1.evaluation.settings import LOOKING, LOOKS
from mmemb_r1.formatting import score, share, significant, table
from mmemb_r1.model_card.record import gate_is_trained, knows_the_beginning
from mmemb_r1.model_card.sources import RESULTS_FILE, Curve, Point
from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config

DATA_FACTS = (  # what a training saw; its other facts are settings
    *("data", "pairs", "pairs table", "rows of the pairs table", "tasks", "rationales", "rationales table"),
    *("selection", "joint pairs table", "candidates table", "left out as broken or too long"),
)
ATLAS = "Atlas"
WEAK = 0.5  # a task is weak if no mode scores this
CURVE_ROWS = 11


LIMITS_OF_FILES = (  # how those limits begin that files tell: a card that says one has to have the file for it
    *("Text beyond ", "Text is not cut", "No evaluation is reported here", "Weak tasks (", "No better than without "),
    *("The gate chose to think ", "How it was trained is not ", "What was trained before ", "Its gate was never "),
    *("Whether its gate was trained ", "Not stated: ", f"{RESULTS_FILE} beside "),
)
HEADER_FACTS = {"license": "licence", "language": "languages", "base_model": "base model"}


def limits(
    config: MMEmbR1Config, results: Results | None, training: Mapping[str, Any], header: Mapping[str, Any]
) -> list[str]:
    """List what this checkpoint cuts off, what it is bad at as far as its files say, and what nobody said of it."""
    frames = f"a video file is seen as {config.num_video_frames} frames"
    if config.max_text_tokens is None:
        items = [f"Text is not cut; {frames}."]
    else:
        items = [f"Text beyond {config.max_text_tokens:,} tokens of an input is cut off; {frames}."]
    items += _measured_limits(results) if results else ["No evaluation is reported here: measure it on data of yours."]
    items += _untold(training)
    if unknown := [name for key, name in HEADER_FACTS.items() if not header.get(key)]:
        items.append(f"Not stated: {', '.join(unknown)}.")
    return items


def _untold(training: Mapping[str, Any]) -> list[str]:
    """Say what the record of the training leaves open."""
    items = []
    if not training:
        items.append("How it was trained is not recorded here.")
    elif not knows_the_beginning(training):
        items.append("What was trained before the first phase recorded here is not recorded.")
    trained = gate_is_trained(training)
    if trained is False:
        items.append('Its gate was never trained: what `"auto"` decides means nothing. Use `"always"` or `"never"`.')
    elif trained is None:
        items.append('Whether its gate was trained is not recorded; if not, what `"auto"` decides means nothing.')
    return items


def _measured_limits(results: Results) -> list[str]:
    best = {
        task: max(numbers["score"] for numbers in result["modes"].values())
        for task, result in results["tasks"].items()
    }
    floors = {
        task: [result.get("majority", -1.0), result.get("text_alone", -1.0), *result.get("no_image", {}).values()]
        for task, result in results["tasks"].items()
    }
    items = []
    if weak := {task: value for task, value in best.items() if value < WEAK}:
        items.append(
            f"Weak tasks ({measured_on(results)}): in no mode measured does it "
            + ("answer half of the queries of " if metric_of(results) == "hit@1" else f"score {WEAK} on ")
            + ", ".join(f"{task} ({score(value)})" for task, value in sorted(weak.items(), key=lambda item: item[1]))
            + "."
        )
    if idle := [task for task, floor in floors.items() if best[task] <= max(floor)]:
        items.append(
            "No better than without the picture, or than the most frequent training answer: " + ", ".join(idle) + "."
        )
    ratio = results["summary"]["all"]["modes"].get("auto", {}).get("invocation_ratio")
    if ratio in (0, 1):
        chosen, same = ("all", "always") if ratio else ("none", "never")
        items.append(f'The gate chose to think on {chosen} of these queries: `"auto"` was the same as `"{same}"`.')
    return items


def training_section(facts: Mapping[str, Any], datasets: Sequence[str]) -> str:
    """Write data and selection, then settings, then the phases `before` this one, without logs and other lists."""
    told = _told(facts)
    data = {name: told.pop(name) for name in DATA_FACTS if name in told}
    if datasets:
        data["datasets"] = ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in datasets)
    text = ""
    if data:
        text += f"\n## Training data and selection\n\n{table(['', ''], data.items())}\n"
    if told:
        text += f"\n## Training\n\n{table(['', ''], told.items())}\n"
    for earlier in reversed(facts.get("before", [])):
        told = _told(earlier)
        text += f"\n### Before it: {told.pop('phase', 'training')}\n\n{table(['', ''], told.items())}\n"
    return text


def _told(facts: Mapping[str, Any]) -> dict[str, str | int | float]:
    return {name: value for name, value in facts.items() if isinstance(value, str | int | float)}


def measured_on(results: Results) -> str:
    """Name the dataset, whose reader it was read by, the split, and how many of the queries were taken."""
    config = results["config"]
    parts = [dataset_of(results) or "dataset not recorded"]
    parts += [f"read by {config['reader']}"] if config.get("reader") else []
    parts += [f"{config['split']} split"] if config.get("split") else []
    parts += [f"the first {config['limit']:,} queries of each task"] if config.get("limit") else []
    if (thinker := config.get("thinker")) is not None:
        definition = thinker["definition"]
        parts.append(f"rationales by {definition.get('model') or definition.get('kind')}, read as {thinker['form']}")
    return ", ".join(parts)


def dataset_of(results: Results) -> str | None:
    """
    Name what was evaluated, as far as the results prove it.

    Whoever runs an evaluation can call its dataset as they like, but for Atlas: that it was this one is only said
    where its tasks themselves name it, which the reader of Atlas notes with a digest of their content.
    """
    name = results["config"].get("dataset")
    sources = [task["data"] for task in results["tasks"].values() if isinstance(task.get("data"), Mapping)]
    proven = len(sources) == len(results["tasks"]) and all(
        source.get("dataset") == ATLAS and source.get("content") for source in sources
    )
    if not isinstance(name, str) or not name:
        return ATLAS if proven else None
    return name if proven or name.casefold() != ATLAS.casefold() else None


def _counted(results: Results) -> str:
    return f"{results['summary']['all']['n']:,} queries of {len(results['tasks'])} tasks"


def results_section(results: Results) -> str:
    """Write a table of the score of each task and mode with its interval, and of the baselines that were measured."""
    modes, tasks = results["config"]["modes"], results["tasks"]
    summaries = {f"**mean: {name}**": result for name, result in results["summary"].items()}
    optional = {
        "candidates": lambda result: result.get("candidates", ""),
        "majority": lambda result: score(result.get("majority")),
        "text alone": lambda result: score(result.get("text_alone")),
        "no image": lambda result: score(max(result.get("no_image", {}).values(), default=None)),
    }
    measured = {key.replace("_", " ") for result in tasks.values() for key in result}
    columns = {name: cell for name, cell in optional.items() if name in measured}
    rows = [
        [
            name,
            result["n"],
            *(cell(result) for cell in columns.values()),
            *(_scored(result["modes"][mode]) for mode in modes),
            *([share(result["modes"]["auto"]["invocation_ratio"])] if "auto" in modes else []),
        ]
        for name, result in {**tasks, **summaries}.items()
    ]
    told = {
        "majority": " *Majority* always gives the task's most frequent training answer.",
        "text alone": " *Text alone* gives the answer that is most frequent in training for the query's text.",
        "no image": " *No image* is the better of never and always without the query's pictures.",
    }
    thinks = ["auto thinks on"] if "auto" in modes else []
    looks = {mode.partition("+")[0] for mode in modes} & {*LOOKING}
    answers = results["config"].get("document_reasoning", "never")
    ways = {"never": "directly", "same": "each in the way of the query that it is compared with"}
    how = ways.get(answers, f'with reasoning="{answers}"')
    intervals = any("interval" in numbers for result in tasks.values() for numbers in result["modes"].values())
    return (
        f"\n## Results\n\n{measured_on(results)}, {_counted(results)}: {_what_is_scored(results)}, for each reasoning "
        f"mode of the queries. Answers are embedded {how}; ties count as misses; means give each task the same weight."
        + (" In brackets, 95 % intervals that draw whole clusters of queries." if intervals else "")
        + "".join(text for name, text in told.items() if name in columns)
        + (f" {LOOKS}" if looks else "")
        + f"\n\n{table(['task', 'queries', *columns, *modes, *thinks], rows)}\n"
    )


def metric_of(results: Results, group: str | None = None) -> str:
    """Name the metric of all tasks, or of those of a group; `"score"` where they have several."""
    metrics = {
        result["metric"]
        for result in results["tasks"].values()
        if group in (None, "all") or group in result["groups"].values()
    }
    return metrics.pop() if len(metrics) == 1 else "score"


def _what_is_scored(results: Results) -> str:
    if metric_of(results) == "hit@1":
        return "share of queries whose answer is ranked first among the task's candidates (hit@1)"
    return "mean over the queries of each task's metric, " + " or ".join(
        sorted({result["metric"] for result in results["tasks"].values()})
    )


def _scored(numbers: Mapping[str, Any]) -> str:
    if "interval" not in numbers:
        return score(numbers["score"])
    low, high = numbers["interval"]
    return f"{score(numbers['score'])} [{score(low)}, {score(high)}]"


def cost_section(results: Results) -> str:
    """Write a table of the tokens and time of a query in each mode, and of the score that they bring."""
    modes, means = results["config"]["modes"], results["summary"]["all"]["modes"]
    rows = [
        [
            mode,
            share(means[mode]["invocation_ratio"]),
            f"{means[mode]['mean_reasoning_tokens']:.1f}",
            _milliseconds(means[mode].get("seconds_per_query")),
            score(means[mode]["score"]),
        ]
        for mode in modes
    ]
    versions = results["config"].get("versions", {})
    how = [f"batches of {results['config']['batch_size']}"] if "batch_size" in results["config"] else []
    how += [f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions]
    return (
        f"\n## Cost of a query\n\n{measured_on(results)}, {_counted(results)}, means with the same weight for each "
        f"task{''.join(f', {part}' for part in how)}. Times are those of the machine that measured them.\n\n"
        + table(["mode", "queries that think", "rationale tokens", "ms", metric_of(results)], rows)
        + "\n"
        + _price(means, metric_of(results))
    )


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else significant(1000 * seconds)


def _price(means: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    direct, reasoned = means.get("never", {}), means.get("always", {})
    if not direct.get("seconds_per_query") or reasoned.get("seconds_per_query") is None:
        return ""
    factor = significant(reasoned["seconds_per_query"] / direct["seconds_per_query"])
    return (
        f"\nWith a rationale a query takes {_milliseconds(reasoned['seconds_per_query'])} ms and "
        f"{reasoned['mean_reasoning_tokens']:.1f} rationale tokens, without one "
        f"{_milliseconds(direct['seconds_per_query'])} ms: {factor} times as long, for a {metric} of "
        f"{score(reasoned['score'])} instead of {score(direct['score'])}.\n"
    )


def curve_section(curve: Curve, picture: str | None) -> str:
    """Write a table of the score over the invocation rate: at most [`CURVE_ROWS`] points of each model of the file."""
    chosen = {model: _spread(points) for model, points in curve.models.items()}
    header = [
        f"{model}: {name}" if model else name
        for model in chosen
        for name in ("queries that think", "R@1 [95 % interval]", "gate threshold")
    ]
    cells = zip_longest(*(map(_cells, points) for points in chosen.values()), fillvalue=[""] * 3)
    rows = [list(chain.from_iterable(row)) for row in cells]
    where = [
        curve.dataset or "dataset not recorded",
        f"{curve.split} split" if curve.split else "split not recorded",
        f"{curve.queries} queries" if curve.queries else "number of queries not recorded",
    ]
    link = f"[{curve.file}]({quote(curve.file)})"
    shown = f"\n![R@1 over the share of queries that think]({quote(picture)})\n" if picture else ""
    return (
        "\n## Invocation curve\n\nHow the score, mean R@1 over the tasks, moves as a lower gate threshold lets more "
        f"queries think. From {link}, {', '.join(where)}.\n{shown}\n{table(header, rows)}\n"
    )


def _spread(points: Sequence[Point]) -> list[Point]:
    """Choose the points whose invocation rates are nearest to 0, 10, ..., 100 %."""
    targets = [step / (CURVE_ROWS - 1) for step in range(CURVE_ROWS)]
    nearest = [min(points, key=lambda point: abs(point.invocation - target)) for target in targets]
    return list(dict.fromkeys(nearest))


def _cells(point: Point) -> list[str]:
    threshold = "> 1" if point.threshold > 1 else f"{point.threshold:.6g}"
    return [share(point.invocation), f"{score(point.r1)} [{score(point.low)}, {score(point.high)}]", threshold]


def carbon_section(emissions: Mapping[str, Any]) -> str:
    """Say in words what the Hub's `co2_eq_emissions` holds."""
    source = emissions.get("source")
    facts = [emissions[name] for name in ("hardware_used", "geographical_location") if emissions.get(name)]
    return (
        f"\n## Carbon\n\nTraining emitted {significant(emissions['emissions'])} g of CO2 equivalents, "
        + (f"estimated by {source}" if source == "CodeCarbon" else f"as told by {source or 'who published this card'}")
        + (f" ({'; '.join(facts)})" if facts else "")
        + ".\n"
    )
