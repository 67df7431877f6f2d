"""The study's results as a page of the documentation."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.pipeline.tasks import JOINT_TASK_WEIGHTS, MULTI_HOP, PICTURE_TARGETS
from experiments.study.at_full_size import AT_FULL_SIZE
from experiments.study.summary import GROUPS, ONE_STEP
from experiments.study.wording import points, share
from mmemb_r1.evaluation.settings import MODES
from mmemb_r1.evaluation.statistics import NUM_PAIRED_SAMPLES as NUM_SAMPLES

Results = Mapping[str, Any]
WIDTH = 119
RUN_IT = """\
In a checkout of the project, after `make setup`, which puts the command into `.venv/bin`:

    make study                                               # the quick form: all rows, one seed
    mmemb-r1 study --output runs/study --rows full no-selection --seeds 0 1 2  # further seeds of some rows
    mmemb-r1 study --output runs/study --rows full --page docs/study.md        # this page, of all that is there
    make study STUDY_ARGS="--full --output runs/study-full"  # more of everything, see below

The full form has twice the steps of the joint phase and three times those of GRPO, an evaluator that is trained, and
three seeds of rows 1 to 3, 8 and 9.

Each stage (a warm-up, a selection, a phase of a row, its answers) is done once: the same command goes on after a kill,
in the middle of a training, too. A stage that was made of another one which is gone or was made anew since is refused.
"""
EVALUATORS = {
    "vlm": "The evaluator is a model of the same size that was taught to say whether a query and a target match.",
    "embedding": "The evaluator is the warmed-up model itself: it compares the vectors of a query and a target.",
}


def page(results: Results) -> str:
    """The page, Markdown."""
    parts = [*_head(results), *_claims(results), *_rows(results), *_kinds(results), *_selection(results)]
    parts += [*_shortcut(results), *_curve(results), *_made(results)]
    parts += ["## Run it\n", RUN_IT, "## The published figure\n", AT_FULL_SIZE]
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


def with_interval(number: Mapping[str, float]) -> str:
    """
    >>> with_interval({"mean": 0.4567, "low": 0.4, "high": 0.5})
    '.457 [.400, .500]'
    """
    return f"{share(number)} [{share(number['low'])}, {share(number['high'])}]"


def _head(results: Results) -> Iterator[str]:
    form = results["form"]
    yield "# The study: what of the method holds on Atlas\n"
    count = results["parameters"]
    size = "" if count is None else f", {count / 1e6:.1f} M parameters"
    yield (
        f"Written by `mmemb-r1 study --page docs/study.md`, the {form['name']} form. A tiny model (Qwen3-VL's "
        f"architecture{size}) is warmed up for {form['warm_up_steps']} steps on names of pictures and facts as text. "
        f"From there every row that trains takes {form['joint_steps']} steps of the joint phase, a gate that "
        f"supervision fits on the `policy` split, and {form['grpo_steps']} steps of GRPO on the same split; it "
        "differs from row 1 in what it is called after.\n"
    )
    yield (
        "Four rows are different. Rows 8 and 9 train nothing: 8 is row 1's model before GRPO, 9 is row 1's answers "
        "with another gate. Row 10 and its control start from row 1's last model and go through all phases again, so "
        "they had twice the steps of row 1: they are to be compared with each other.\n"
    )
    if "absolute-probability" in results["rows"]:
        yield (
            "Row 3 is there twice. As all other rows, it takes gains in log-odds and takes off what a rationale does "
            "for wrong pairs; so without the baseline it is a rationale's confidence less that of wrong pairs. The "
            "paper has gains in probability and takes off nothing: `3, as published` is that without the baseline, "
            "and to be compared with its own control, which has it. (It was added after the first had shown no loss, "
            "as a second try at the same claim.)\n"
        )
    facts = [task for task in JOINT_TASK_WEIGHTS if task.startswith("fact-") and task not in MULTI_HOP]
    yield (
        "All numbers are R@1 on the test split, means over tasks: questions of several steps about countries that no "
        "row was asked about, and pictures in renderings that none has seen. (Facts as text are taught for all "
        "countries, word for word as they are asked here: they are what a model knows. They are "
        f"{len(facts)} of the {len(JOINT_TASK_WEIGHTS)} tasks of `all`, and most of `simple`.) Candidates are "
        "embedded directly. Left out are comparisons and digits, which no row is taught, and names in other "
        "languages, areas and populations, which only the warm-up touches. Differences are in points, and "
        "taken query by query. Intervals are 95 %, from draws of whole countries or objects. p is of the differences "
        "that claims go by, and corrected for their number, "
        f"{results['corrected']} here (Holm; by {NUM_SAMPLES} draws none can be below "
        f"{2 * results['corrected'] / (NUM_SAMPLES + 1):.3f}); the shortcut test is judged by the size of its "
        "figures.\n"
    )
    yield (
        "Intervals and p hold the seed fixed: they say how far the queries carry, not whether another training would "
        "have come out the same. Where a row has one seed, `beyond chance` means that these two trained models differ "
        "on more questions like these, and no more. And all rows but 10 and `3, as published` are compared with the "
        "same models of row 1: whatever these trainings happened to get is in all of these differences.\n"
    )
    if results["missing"]:
        yield f"Not run: {', '.join(results['missing'])}.\n"


def _claims(results: Results) -> Iterator[str]:
    yield "## Claim by claim\n"
    yield (
        "`holds`: the effect is there beyond chance (its interval excludes zero, its corrected p is below 0.05, and "
        "it has one sign in all seeds), and its mean is not smaller than the published figure, where there is one; if "
        "it is, `holds, but smaller`. `does not hold`: the opposite is there beyond chance. `not shown`: neither; "
        "`and not as large`, if the interval shuts out the published figure all the same.\n"
    )
    rows = [
        [one["text"], f"{one['published']} ({one['source']})", one["ours"], f"**{one['verdict']}**"]
        for one in results["claims"]
    ]
    yield table(["claim", "published", "here", "verdict"], rows, right_from=4)


def _rows(results: Results) -> Iterator[str]:
    yield "## Row by row\n"
    yield (
        "Differences to the full method (row 1), in points; after `to` is what they are differences to: row 1's level "
        "over the seeds that both rows have, which is not that of its own line where it has more seeds. p stands "
        "where a claim goes by the difference. Rows 10 and `3, as published` are judged by their difference to their "
        "control, which is in the table above: that to row 1 is of more than one change.\n"
    )
    rows = []
    for row in results["rows"].values():
        levels, found = row["levels"], row.get("differences")
        several, whole = levels["multi-hop"], levels["all"]
        rows.append(
            [
                f"({row['number']}) {row['title']}",
                " ".join(map(str, row["seeds"])),
                row["steps"],
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
        "steps: joint + GRPO",
        "several steps: always",
        "difference",
        "p",
        "all: never",
        "always",
        "auto",
    ]
    yield table([*head, "difference of auto", "p", "thinks on", "tokens of auto"], rows)
    if "full" in results:
        over = results["full"]["over"]
        yield (
            f"Row 1 over all tasks: auto is {points(over['never'])} better than never and {points(over['always'])} "
            "than always, query by query.\n"
        )
    if "three-thoughts" in results["rows"]:
        yield "Row 11 thinks three rounds in `always`, also where one would do; in `auto` its gate decides.\n"
    yield from _seeds(results)


def _difference(found: Mapping[str, Any] | None, group: str, mode: str) -> tuple[str, str]:
    """Points, and the corrected p where a claim goes by it."""
    if found is None:
        return "", ""
    number = found[group][mode]
    p = f"{number['p_corrected']:.3f}" if "p_corrected" in number else "-"
    return f"{points(number)} to {share(number['theirs'])}", p


def _seeds(results: Results) -> Iterator[str]:
    """Differences seed by seed, where there are several."""
    rows = []
    for row in results["rows"].values():
        found = row.get("differences")
        if found is None or len(found["all"]["auto"]["seeds"]) < 2:
            continue
        numbers = [found[group][mode]["seeds"] for group, mode in (("multi-hop", "always"), ("all", "auto"))]
        cells = [" / ".join(f"{100 * value:+.1f}" for value in by_seed.values()) for by_seed in numbers]
        rows.append([f"({row['number']}) {row['title']}", " ".join(numbers[0]), *cells])
    if rows:
        yield "Seed by seed:\n"
        yield table(["row", "seeds", "several steps: always", "all: auto"], rows)


def _kinds(results: Results) -> Iterator[str]:
    yield "## By kind of task\n"
    first = next(iter(results["rows"].values()))["levels"]
    groups = [group for group in GROUPS if group in first]
    sizes = ", ".join(f"{group} {first[group]['queries']} of {first[group]['clusters']}" for group in groups)
    yield (
        f"never / always / auto; `two-sided` are {' and '.join(PICTURE_TARGETS)}, whose targets are pictures and have "
        f"rationales too. Queries (of all seeds of the first row) of so many countries or objects: {sizes}.\n"
    )
    lines = [(f"({row['number']}) {name}", row["levels"]) for name, row in results["rows"].items()]
    if (alone := results.get("full", {}).get("first")) is not None:
        lines.insert(1, ("(1) full, its first seed alone", alone))
        yield "Rows of one seed are to be compared with the second line: row 1 has several.\n"
    rows = [
        [
            line,
            *(" / ".join(share(found[group][mode]) for mode in MODES) for group in groups),
            *(f"{found[group]['invocation']['mean']:.0%}" for group in ("simple", "multi-hop")),
            share(found["multi-hop"]["right"]),
        ]
        for line, found in lines
    ]
    yield table(["row", *groups, "thinks: simple", "thinks: multi-hop", "right thoughts, multi-hop"], rows)


def _selection(results: Results) -> Iterator[str]:
    yield "## What was selected\n"
    direct = results["evaluator"]
    if direct is not None:
        yield (
            "Four workers write two rationales each for every question of several steps and for "
            f"{' and '.join(ONE_STEP)}, where a thought hardly helps; which of them help is known. "
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
        covered = [f"{share_of:.0%}" for share_of in row["selection"]["covered"].values()]
        rows.append(
            [
                f"({row['number']}) {name}",
                "-" if found["precision"] is None else f"{found['precision']:.2f}",
                f"{found['recall']:.2f}",
                "-" if (drawn := row["selection"]["right share"]) is None else f"{drawn:.2f}",
                *shares,
                *covered,
            ]
        )
    workers = ["kept: correct", "confused", "verbose", "format"]
    inputs = ["inputs with any: several steps", "one step"]
    yield table(["row", "precision", "recall", "right ones drawn", *workers, *inputs], rows)
    yield (
        "`right ones drawn`: the joint phase draws from what is kept by the posterior, so that what is hardly better "
        "than nothing is hardly ever drawn.\n"
    )
    joins = results["rows"].get("model-joins", {}).get("selection")
    if joins is not None:
        kept = joins["kept rationales by worker"]
        yield (
            f"Of the {sum(kept.values())} rationales of row 10, {kept.get('model', 0)} are the model's own; the line "
            "in the table is of the four workers'.\n"
        )
    if "one-worker" in results["rows"]:
        yield (
            "Row 5's worker says as much of every input as the pool, eight things, and as many of them are right, "
            "two. The other six all mistake what is seen, where the pool's are of three kinds. So what is compared is "
            "errors. Whether several workers are right in more ways than one, Atlas can't tell: it has one right "
            "chain of thought per question.\n"
        )


def _shortcut(results: Results) -> Iterator[str]:
    yield "## Does it read its rationales?\n"
    most = results["form"]["shortcut_queries"]
    some = "" if most is None else f" ({most} of each task at most)"
    yield (
        f"Questions of several steps{some}, the first seed: what R@1 loses, in points, and the cosine of the vectors, "
        "if a thought is left out, replaced by that of another query of its task, or has its words in another order. "
        "`reads`: swapping costs more than chance, and the cost is 10 points or the cosine at most 0.80; the claim "
        "above asks for both.\n"
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
    swaps = [_swap(results["rows"].get(name)) for name in ("full", "no-selection")]
    if None not in swaps:
        yield (
            f"Another query's thought costs {swaps[0]} where rationales were selected, and {swaps[1]} where they were "
            "not: the nearer the cosine is to 1, the less a vector follows what was thought.\n"
        )


def _swap(row: Mapping[str, Any] | None) -> str | None:
    """What swapping does to a row, if that was measured."""
    found = None if row is None or row["shortcut"] is None else row["shortcut"]["interventions"]["swap"]
    return (
        None if found is None else f"{100 * found['cost']['mean']:.1f} points (cosine {found['cosine']['mean']:.2f})"
    )


def _curve(results: Results) -> Iterator[str]:
    full = results.get("full")
    if full is None:
        return
    yield "## How often to think\n"
    gate = full["gate"]
    if gate is not None and gate["auc"] is not None:
        yield (
            f"The full method's gate as its threshold moves. On the {gate['share']:.0%} of the queries whose "
            "alignment (the probability of the right candidate) thinking changes by 0.1 or more, it tells gains from "
            f"losses with an area under the curve of {with_interval(gate['auc'])}. Each seed's gate has its own "
            "thresholds, those at which it thinks on such a share.\n"
        )
    rows = [
        [f"{point['share']:.0%}", with_interval(point["score"]), share(point["random"]), f"{point['tokens']:.1f}"]
        for point in full["curve"][::2]
    ]
    yield table(["queries that think", "R@1, all", "at random", "tokens"], rows)


def _made(results: Results) -> Iterator[str]:
    yield "## How it was made\n"
    yield (
        "A seed is of weights and order. The Atlas, the evaluator and its judgements are the same for all, and so is "
        "what was selected, but for row 10.\n"
    )
    yield from _given(results)
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
    yield "Runs, each with its time until the last stage that it began or ended (what a kill cut off is not in it):\n"
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


def _given(results: Results) -> Iterator[str]:
    for name, what in (("warm_up", "The warm-up of seed 0"), ("evaluator", "The evaluator")):
        noted = results["given"].get(name, "made here")
        if noted != "made here":
            digest = noted.removeprefix("given, ")
            yield f"{what} was given to the study and not made by it (digest of its files: `{digest}`).\n"
    if results["commits"]:
        yield f"Commits that the rows' stages were made at: {', '.join(f'`{one}`' for one in results['commits'])}.\n"


def _seconds(cost: Mapping[str, Any] | None) -> str:
    if cost is None:
        return "not noted"
    return f"{cost['seconds']:.0f}{' *' if cost.get('resumed') else ''}"
