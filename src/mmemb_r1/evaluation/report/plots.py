"""
Draw the plots of the HTML report, as inline SVG whose text is text and with the colours of the style sheet.

`title` says of what queries a plot is, and `salt`, another one for each plot of a page, tells its ids from theirs.
Each is 360 wide, so that a phone shows it at its size and a wide screen sets several side by side.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.invocation import LEAST_GAP, CurvePoint, efficient

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Colours that no one means, for matplotlib to carry through: each becomes a variable of the style sheet.
INK, MUTED, GRID, SURFACE = "#010101", "#010102", "#010103", "#010104"
MODES = {"never": "#010105", "always": "#010106", "auto": "#010107"}
MODES |= {"always-second-look": "#010108", "auto-second-look": "#010109"}
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface"}
_VARIABLES |= {color: mode for mode, color in MODES.items()}
WIDTH = 5.0  # inches, of 72 units each
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # names of tasks may hold dollars
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


class ModeScore(NamedTuple):
    """Holds a mode's mean score over tasks, its invocation rate, and its seconds per query."""

    score: float
    interval: tuple[float, float] | None  # if known
    invocation: float
    seconds: float | None  # `None` if nothing was timed


@contextmanager
def _canvas(height: float) -> Iterator[Figure]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the HTML report needs matplotlib: pip install 'mmemb-r1[eval]'") from error
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(WIDTH, height), layout="constrained")


def _inlined(figure: Figure, kind: str, title: str, salt: str) -> str:
    """Write a figure as an `<svg>` for a page that may hold others."""
    import matplotlib

    figure.axes[0].set_title(_short(title), loc="left", fontsize=11, fontweight="bold")
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the page's reader has a font for it
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    view = re.search(r'viewBox="([^"]+)"', text)
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"(?s)<style.*?</style>|font-family: [^;\"]+;?", "", re.sub(r'<g id="[^"]*"', "<g", body))
    for color, name in _VARIABLES.items():
        body = body.replace(color, f"var(--{name})")
    box = view[1] if view else ""
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(f"{kind}: {title}")}">{body}'


def invocation_plot(
    title: str, curve: Sequence[CurvePoint] | None, oracle: float, measured: Mapping[str, ModeScore], salt: str
) -> str:
    """
    Plot the score over the share of queries that think: `curve` as the gate's threshold sweeps (`None` without a
    gate), `oracle` if every query got the better of both vectors, `measured` by mode, of the fixed ones at least.
    """
    with _canvas(3.3) as figure:
        axes = figure.subplots()
        ends = [measured[mode].score for mode in ("never", "always")]
        axes.axhline(oracle, color=INK, linewidth=1, linestyle=(0, (1, 2)))
        axes.plot([0, 100], ends, color=MUTED, linewidth=1, linestyle=(0, (5, 3)))
        if curve:
            share = [100 * point.invocation for point in curve]
            low, high = ([getattr(point.score, end) for point in curve] for end in ("low", "high"))
            axes.fill_between(share, low, high, color=MODES["auto"], alpha=0.15, linewidth=0)
            axes.plot(share, [point.score.mean for point in curve], color=MODES["auto"], linewidth=1.8)
        for mode, numbers in measured.items():
            _mark(axes, 100 * numbers.invocation, numbers, mode)
        axes.set_xlim(-3, 103)
        axes.set_xlabel("queries that think, %")
        axes.set_ylabel("score, mean over tasks")
        return _inlined(figure, "Score over the share of queries that think", title, salt)


def frontier_plot(title: str, curve: Sequence[CurvePoint] | None, measured: Mapping[str, ModeScore], salt: str) -> str:
    """
    Plot the score over time per query. Points of the curve that another one beats in both are hollow, and modes that
    were not timed are left out.
    """
    with _canvas(3.3) as figure:
        axes = figure.subplots()
        if curve and curve[0].seconds is not None:
            times = np.array([1000 * (point.seconds or 0) for point in curve])
            scores = np.array([point.score.mean for point in curve])
            best = efficient(times, scores)
            color = MODES["auto"]
            axes.plot(times, scores, color=color, linewidth=0.8, alpha=0.5)
            axes.scatter(times[~best], scores[~best], s=16, facecolors=SURFACE, edgecolors=color, zorder=3)
            axes.scatter(times[best], scores[best], s=16, color=color, zorder=3)
        for mode, numbers in measured.items():
            if numbers.seconds is not None:
                _mark(axes, 1000 * numbers.seconds, numbers, mode)
        axes.set_xlim(left=0)
        axes.set_xlabel("milliseconds per query")
        axes.set_ylabel("score, mean over tasks")
        return _inlined(figure, "Score over time per query", title, salt)


_MARKERS = {"never": "o", "always": "s", "auto": "D", "always-second-look": "^", "auto-second-look": "v"}


def _mark(axes: Any, place: float, numbers: ModeScore, mode: str) -> None:
    if numbers.interval:
        axes.vlines(place, *numbers.interval, color=MODES[mode], linewidth=1.4, zorder=4)
    marker = _MARKERS[mode]
    axes.plot(place, numbers.score, marker, color=MODES[mode], markeredgecolor=SURFACE, markersize=7.5, zorder=5)


def gap_plot(title: str, gap: npt.NDArray[np.float64], thinks: npt.NDArray[np.bool_] | None, salt: str) -> str:
    """
    Plot how the utility gap `(N,)` is spread. Gaps below 0.1 in size stand in the middle, cut off if they tower above
    the rest. `thinks` says for which queries `auto` wrote a rationale; `None` if it was not run.
    """
    edges = np.linspace(-1, 1, 21)  # two of them are the least gaps that count
    # which side of an edge a gap of this size falls on must not hang on its last bits
    place = np.clip(np.floor(np.round((gap + 1) * 10, 9)).astype(int), 0, 19)
    parts = {MUTED: np.ones(len(gap), bool)} if thinks is None else {MODES["never"]: ~thinks, MODES["always"]: thinks}
    heights = {
        color: 100 * np.bincount(place[which], minlength=20) / max(len(gap), 1) for color, which in parts.items()
    }
    total = np.sum(list(heights.values()), axis=0)
    small = (edges[:-1] > -LEAST_GAP - 1e-9) & (edges[1:] < LEAST_GAP + 1e-9)
    with _canvas(2.9) as figure:
        axes = figure.subplots()
        bottom = np.zeros(20)
        for color, height in heights.items():
            axes.bar(edges[:-1], height, 0.1, bottom, align="edge", color=color, edgecolor=SURFACE, linewidth=0.8)
            bottom += height
        top = 1.25 * max(total[~small].max(), 1.0)
        cut = bool(total[small].max() > top)
        axes.set_ylim(0, top if cut else 1.15 * total.max())
        middle = 100 * float((np.abs(gap) < LEAST_GAP).mean())
        axes.text(
            0.16, 0.98, f"{middle:.1f} % of the queries\nwithin ±{LEAST_GAP:g}{', bars cut off' if cut else ''}",
            transform=axes.get_xaxis_transform(), va="top", fontsize=9.5, color=MUTED,
        )  # fmt: skip
        axes.axvspan(-LEAST_GAP, LEAST_GAP, color=GRID, alpha=0.5, zorder=0, linewidth=0)
        axes.set_xlim(-1.02, 1.02)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("utility gap: ← thinking hurts · thinking helps →")
        axes.set_ylabel("queries, %")
        return _inlined(figure, "Histogram of the utility gap", title, salt)


def tasks_plot(title: str, tasks: Mapping[str, Mapping[str, ModeScore]], salt: str) -> str:
    """Plot bars of every mode per task, with intervals; each task's name stands above its bars."""
    modes = list(next(iter(tasks.values())))
    label, thick, gap = 0.18, 0.09, 0.1  # inches
    step = label + thick * len(modes) + gap
    with _canvas(step * len(tasks) + 0.85) as figure:
        axes = figure.subplots()
        for row, (task, measured) in enumerate(tasks.items()):
            axes.text(0, row + 0.75 * label / step, _short(task), fontsize=9.5, color=INK)
            for place, mode in enumerate(modes):
                numbers, y = measured[mode], row + (label + thick * (place + 0.5)) / step
                axes.barh(y, numbers.score, 0.9 * thick / step, color=MODES[mode])
                if numbers.interval:
                    axes.hlines(y, *numbers.interval, color=INK, linewidth=0.9)
        axes.set_xlim(0, 1)
        axes.set_ylim(len(tasks), -0.15)
        axes.set_yticks([])
        axes.tick_params(axis="x", top=True, labeltop=True, length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.grid(visible=False, axis="y")
        return _inlined(figure, "Scores per task", title, salt)


def _short(name: str, length: int = 52) -> str:
    """
    >>> _short("ViDoRe_energy", 9)
    'ViDoRe_e…'
    """
    name = " ".join(name.split())
    return name if len(name) <= length else f"{name[: length - 1]}…"
