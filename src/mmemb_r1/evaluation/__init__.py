"""
Measure a model on retrieval tasks, and tell what came out.

What users call is here by its name; importing the package imports none of it: each name is looked up when it is first
used. The parts, and what each may import of the others (tests/test_packaging.py holds them to it):

    settings        nothing
    statistics      nothing
    metrics         nothing
    tasks           nothing
    mteb_model      nothing
    mmeb            tasks
    encoders        settings
    adaptivity      statistics
    run             encoders, metrics, settings, statistics, tasks
    reports         adaptivity, run, settings, statistics
    comparison      reports, run, statistics
    shortcut        encoders, reports, run, settings, statistics, tasks

`settings` say how a model is evaluated, `encoders` ask it, and `run` measures it on `tasks` by `metrics`. From what a
run wrote, `reports` show it, `comparison` sets it against another, and `adaptivity` says what the gate's choice is
worth. `shortcut` tests whether rationales are read. `mmeb` are the tasks and the rules of MMEB-V2, and `mteb_model`
runs a model under mteb.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmemb_r1._lazy import lazy_attributes

if TYPE_CHECKING:
    from mmemb_r1.evaluation.comparison.compare import compare_runs
    from mmemb_r1.evaluation.reports.terminal import results_table
    from mmemb_r1.evaluation.run.atlas import evaluate
    from mmemb_r1.evaluation.run.results import load_results, save_results
    from mmemb_r1.evaluation.run.rows import read_rows, rows_path
    from mmemb_r1.evaluation.run.runner import run_evaluation
    from mmemb_r1.evaluation.settings import Settings
    from mmemb_r1.evaluation.shortcut.run import diagnose
    from mmemb_r1.evaluation.shortcut.settings import ShortcutSettings
    from mmemb_r1.evaluation.tasks import RetrievalTask

__all__ = [
    "RetrievalTask",
    "Settings",
    "ShortcutSettings",
    "compare_runs",
    "diagnose",
    "evaluate",
    "load_results",
    "read_rows",
    "results_table",
    "rows_path",
    "run_evaluation",
    "save_results",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "RetrievalTask": "mmemb_r1.evaluation.tasks",
        "Settings": "mmemb_r1.evaluation.settings",
        "ShortcutSettings": "mmemb_r1.evaluation.shortcut.settings",
        "compare_runs": "mmemb_r1.evaluation.comparison.compare",
        "diagnose": "mmemb_r1.evaluation.shortcut.run",
        "evaluate": "mmemb_r1.evaluation.run.atlas",
        "load_results": "mmemb_r1.evaluation.run.results",
        "read_rows": "mmemb_r1.evaluation.run.rows",
        "results_table": "mmemb_r1.evaluation.reports.terminal",
        "rows_path": "mmemb_r1.evaluation.run.rows",
        "run_evaluation": "mmemb_r1.evaluation.run.runner",
        "save_results": "mmemb_r1.evaluation.run.results",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
