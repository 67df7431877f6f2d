"""The study's results as a page of the documentation."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmemb_r1.study.claims import points
from mmemb_r1.study.summary import GROUPS, MODES

Results = Mapping[str, Any]
WIDTH = 119
EVALUATORS = {
    "vlm": "The evaluator is a model of the same size that was taught to say whether a query and a target match.",
    "embedding": "The evaluator is the warmed-up model itself: it compares the vectors of a query and a target.",
}

AT_FULL_SIZE = """\
The published 71.2 on MMEB-V2 comes from a 4B backbone, an evaluator that is larger still, and GPUs. None of that is
here, so nothing on this page says whether it can be had. These commands would run it, on eight GPUs with 80 GB, from a
pairs table such as MMEB-train's:

    mmemb-r1 init --vlm Qwen/Qwen3-VL-4B-Instruct --output start
    mmemb-r1 rationales --pairs pairs.parquet --pool examples/pool.yaml --output rationales
    mmemb-r1 select --pairs pairs.parquet --rationales rationales --evaluator Qwen/Qwen3-VL-32B-Instruct \\
        --output selection
    accelerate launch --config_file examples/accelerate-fsdp-8gpu.yaml -m mmemb_r1.cli train joint \\
        --config examples/joint-qwen3-vl-4b-8gpu.yaml --model start --pairs pairs.parquet \\
        --rationales selection/selected.parquet --output joint
    accelerate launch --multi_gpu --num_processes 8 -m mmemb_r1.cli train adaptive --model joint/model \\
        --pairs policy.parquet --joint-pairs pairs.parquet --output adaptive
    mmemb-r1 evaluate --model adaptive/model --mmeb mmeb-v2 --modes never,always,auto --output results
"""


def page(results: Results) -> str:
    """The page, Markdown."""
    parts = [*_head(results), *_claims(results), *_rows(results), *_kinds(results), *_selection(results)]
    parts += [*_shortcut(results), *_curve(results), *_made(results)]
    parts += ["## The published figure\n", AT_FULL_SIZE]
    return "\n".join(map(_wrapped, parts)).rstrip() + "\n"


def _wrapped(part: str) -> str:
    """A paragraph in lines that are not too long; tables, headings and commands as they are."""
    if part.startswith(("|", "#")) or "\n    " in part:
        return part
    return textwrap.fill(part, WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right_from: int = 1) -> str:
    """
    >>> print(table(["row", "R@1"], [["a", ".5"]]), end="")
    | row | R@1 |
    | --- | ---: |
    | a | .5 |
    """
    marks = ["---" if place < right_from else "---:" for place in range(len(head))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, marks, *rows])


def share(number: Mapping[str, float] | float) -> str:
    """
    >>> share(0.4567), share({"mean": 1.0, "low": 1.0, "high": 1.0})
    ('.457', '1.000')
    """
    value = number if isinstance(number, float) else number["mean"]
    return f"{value:.3f}".removeprefix("0")


def with_interval(number: Mapping[str, float]) -> str:
    """
    >>> with_interval({"mean": 0.4567, "low": 0.4, "high": 0.5})
    '.457 [.400, .500]'
    """
    return f"{share(number)} [{share(number['low'])}, {share(number['high'])}]"


def _head(results: Results) -> Iterator[str]:
    form = results["form"]
    yield "# The study: what of the method holds on Atlas\n"
    yield (
        f"Written by `mmemb-r1 study --page docs/study.md`, the {form['name']} form. A tiny model (Qwen3-VL's "
        "architecture, 7.9 M parameters) is warmed up on names of pictures and facts as text. From there every row "
        f"below takes {form['joint_steps']} steps of the joint phase, a gate that supervision fits on the `policy` "
        f"split, and {form['grpo_steps']} steps of GRPO on the same split. Rows differ in what they are called after "
        "and in nothing else.\n"
    )
    yield (
        "All numbers are R@1 on the test split, means over tasks: questions of several steps about countries that no "
        "row was asked about, and pictures in renderings that none has seen. (Facts as text are taught for all "
        "countries: they are what a model knows.) Candidates are embedded directly. Tasks that no row is taught "
        "(comparisons, digits, words in other languages) are left out. Intervals are 95 %, from draws of whole "
        "countries or objects; differences are taken query by query, and p is corrected for the number of rows "
        "(Holm). Intervals say how far the queries carry, not how far "
        "another training would have come out the same: for that see the number of seeds.\n"
    )
    if results["missing"]:
        yield f"Not run: {', '.join(results['missing'])}.\n"


def _claims(results: Results) -> Iterator[str]:
    yield "## Claim by claim\n"
    yield (
        "`holds`: the effect is there, beyond chance, and not smaller than the published figure, where there is one. "
        "`not shown`: the interval reaches both sides of zero.\n"
    )
    rows = [
        [one["text"], f"{one['published']} ({one['source']})", one["ours"], f"**{one['verdict']}**"]
        for one in results["claims"]
    ]
    yield table(["claim", "published", "here", "verdict"], rows, right_from=4)


def _rows(results: Results) -> Iterator[str]:
    yield "## Row by row\n"
    yield "Differences to the full method (row 1), in points.\n"
    rows = []
    for row in results["rows"].values():
        levels, found = row["levels"], row.get("differences")
        several, whole = levels["multi-hop"], levels["all"]
        rows.append(
            [
                f"({row['number']}) {row['title']}",
                " ".join(map(str, row["seeds"])),
                with_interval(several["always"]),
                *_difference(found, "multi-hop", "always"),
                with_interval(whole["never"]),
                with_interval(whole["always"]),
                with_interval(whole["auto"]),
                *_difference(found, "all", "auto"),
                f"{whole['invocation']['mean']:.0%}",
                f"{whole['tokens']['mean']:.1f}",
            ]
        )
    head = [
        "row",
        "seeds",
        "several steps: always",
        "difference",
        "all: never",
        "always",
        "auto",
        "difference of auto",
    ]
    yield table([*head, "thinks on", "tokens of auto"], rows)
    if "three-thoughts" in results["rows"]:
        yield "Row 11 thinks three rounds in `always`, also where one would do; in `auto` its gate decides.\n"


def _difference(found: Mapping[str, Any] | None, group: str, mode: str) -> tuple[str, str]:
    """Points, and the corrected p."""
    if found is None:
        return "", ""
    return points(found[group][mode]), f"{found[group][mode]['p_corrected']:.3f}"


def _kinds(results: Results) -> Iterator[str]:
    yield "## By kind of task\n"
    first = next(iter(results["rows"].values()))["levels"]
    sizes = ", ".join(f"{group} {first[group]['queries']} of {first[group]['clusters']}" for group in GROUPS)
    yield f"never / always / auto; queries (of all seeds of the first row) of so many countries or objects: {sizes}.\n"
    rows = [
        [
            f"({row['number']}) {name}",
            *(" / ".join(share(row["levels"][group][mode]) for mode in MODES) for group in GROUPS),
            *(f"{row['levels'][group]['invocation']['mean']:.0%}" for group in ("simple", "multi-hop")),
            share(row["levels"]["multi-hop"]["right"]),
        ]
        for name, row in results["rows"].items()
    ]
    yield table(["row", *GROUPS, "thinks: simple", "thinks: multi-hop", "right thoughts, multi-hop"], rows)


def _selection(results: Results) -> Iterator[str]:
    yield "## What was selected\n"
    direct = results["evaluator"]
    if direct is not None:
        yield (
            "Four workers write two rationales each for every question of several steps; which of them help is known. "
            f"{EVALUATORS[direct['kind']]} Without a rationale it puts the partner before all {direct['negatives']} "
            f"wrong ones in {direct['accuracy']:.0%} of the trials (chance {direct['chance']:.0%}).\n"
        )
    rows = []
    for name, row in results["rows"].items():
        if row["selection"] is None:
            continue
        found = row["selection"]["all"]
        kept = [found["kept"].get(worker) for worker in ("correct", "confused", "verbose", "format")]
        shares = ["-" if one is None else f"{one:.2f}" for one in kept]
        covered = f"{found['inputs with any kept']} of {found['inputs']}"
        rows.append(
            [
                f"({row['number']}) {name}",
                "-" if found["precision"] is None else f"{found['precision']:.2f}",
                f"{found['recall']:.2f}",
                *shares,
                covered,
            ]
        )
    head = ["row", "precision", "recall", "kept: correct", "confused", "verbose", "format", "inputs with any kept"]
    yield table(head, rows)
    if "model-joins" in results["rows"]:
        kept = results["rows"]["model-joins"]["selection"]["kept rationales by worker"]
        yield f"Of the {sum(kept.values())} rationales of row 10, {kept.get('model', 0)} are the model's own.\n"
    if "one-worker" in results["rows"]:
        yield (
            "Row 5's worker is as good as the pool on average, but alone: about a quarter of the countries it is the "
            "right one, about the others one of the three that do not help, in all it says of them. (One of the four "
            "alone would be right about everything or nothing.)\n"
        )


def _shortcut(results: Results) -> Iterator[str]:
    yield "## Does it read its rationales?\n"
    yield (
        "Questions of several steps, the first seed: what R@1 loses, in points, and the cosine of the vectors, if a "
        "thought is left out, replaced by that of another query of its task, or has its words in another order.\n"
    )
    rows = []
    for name, row in results["rows"].items():
        if row["shortcut"] is None:
            continue
        found = row["shortcut"]
        cells = []
        for intervention in ("drop", "swap", "shuffle"):
            numbers = found["interventions"][intervention]
            cells += ["-", "-"] if numbers is None else [points(numbers["cost"]), f"{numbers['cosine']['mean']:.2f}"]
        rows.append([f"({row['number']}) {name}", *cells, found["verdict"]])
    head = ["row", "drop", "cosine", "swap", "cosine", "shuffle", "cosine", "verdict"]
    yield table(head, rows)


def _curve(results: Results) -> Iterator[str]:
    full = results.get("full")
    if full is None:
        return
    yield "## How often to think\n"
    gate = full["gate"]
    if gate is not None and gate["auc"] is not None:
        yield (
            f"The full method's gate as its threshold moves. On the {gate['share']:.0%} of the queries whose "
            f"alignment changes by 0.1 or more, it tells gains from losses with an area under the curve of "
            f"{with_interval(gate['auc'])}.\n"
        )
    rows = [
        [f"{point['share']:.0%}", with_interval(point["score"]), share(point["random"]), f"{point['tokens']:.1f}"]
        for point in full["curve"][::2]
    ]
    yield table(["queries that think", "R@1, all", "at random", "tokens"], rows)


def _made(results: Results) -> Iterator[str]:
    yield "## How it was made\n"
    form = results["form"]
    seeds = {name: numbers for name, numbers in form["seeds"].items() if len(numbers) > 1}
    if not seeds:
        yield "One seed of weights and order; the Atlas, the evaluator and its judgements are the same for all.\n"
    rows = [
        [
            one["began"],
            f"`{one['commit']}`" if one["commit"] else "unknown",
            f"{one['machine']}, {one['cores']} cores, {one['jobs']} stages at a time",
            ", ".join(f"{name} {number}" for name, number in one["versions"].items()),
            f"{one['seconds'] / 60:.0f} min",
        ]
        for one in results["sessions"]
    ]
    yield table(["began", "commit", "machine", "versions", "time"], rows, right_from=4)
    yield "Seconds of the stages, each with one process (a star: since it went on after a stop):\n"
    common = [[name, _seconds(cost)] for name, cost in results["seconds"].items()]
    yield table(["stage", "seconds"], common)
    stages = ("joint", "gate", "grpo", "answers-grpo", "shortcut-grpo")
    own = [
        [f"{name}, seed {seed}", *(_seconds(costs.get(stage)) for stage in stages)]
        for name, row in results["rows"].items()
        for seed, costs in row["seconds"].items()
        if costs
    ]
    yield table(["row", *stages], own)


def _seconds(cost: Mapping[str, Any] | None) -> str:
    if cost is None:
        return "not noted"
    return f"{cost['seconds']:.0f}{' *' if cost.get('resumed') else ''}"
