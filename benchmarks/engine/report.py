"""Show results as tables, and write them as JSON."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.engine.subject import device_facts
from benchmarks.facts import write_facts

WIDTH = 119


def show(title: str, rows: Sequence[Mapping[str, str]], *notes: str) -> None:
    """Print a table, whose columns are the rows' keys, and lines below it."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)  # also where output is not a terminal
    console.print(table)
    for note in notes:
        console.print(note)


def verdict(name: str, value: float, wanted: str, ok: bool) -> str:
    """One line: what was measured, what was wanted, and whether it is so."""
    return f"{name}: {value:.3g} (wanted: {wanted}) {'yes' if ok else 'NO'}"


def save(results: Any, args: Namespace) -> None:
    """Write the JSON file, if one is wanted."""
    if args.output is not None:
        write_facts(args.output, results, args, **device_facts(args.device))
