"""
Measure a model on retrieval tasks, and report the results.

What users call is here by its name; importing the package imports none of it: each name is looked up when it is first
used. Tasks come from the table of `readers`; `runner` encodes them with an encoder of `encoders` in
each mode and scores them with `scoring` and `metrics`; `run_folder` keeps what was measured; `report` shows it,
`compare` compares two runs, `invocation` says what the gate's choice is worth, and `diagnose` tests whether the model
reads its rationales. `mteb_model` runs a model under mteb.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmemb_r1._lazy import lazy_attributes

if TYPE_CHECKING:
    from mmemb_r1.evaluation.compare import compare_runs
    from mmemb_r1.evaluation.diagnose.run import ShortcutSettings, run_diagnosis
    from mmemb_r1.evaluation.readers import read_tasks
    from mmemb_r1.evaluation.report.text import results_table
    from mmemb_r1.evaluation.run_folder import load_results, read_query_rows, rows_path, save_results
    from mmemb_r1.evaluation.runner import run_evaluation
    from mmemb_r1.evaluation.settings import Settings
    from mmemb_r1.evaluation.tasks import RetrievalTask, TaskSource


__all__ = [
    "RetrievalTask",
    "Settings",
    "ShortcutSettings",
    "TaskSource",
    "compare_runs",
    "run_diagnosis",
    "load_results",
    "read_query_rows",
    "read_tasks",
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
        "ShortcutSettings": "mmemb_r1.evaluation.diagnose.run",
        "TaskSource": "mmemb_r1.evaluation.tasks",
        "compare_runs": "mmemb_r1.evaluation.compare",
        "run_diagnosis": "mmemb_r1.evaluation.diagnose.run",
        "load_results": "mmemb_r1.evaluation.run_folder",
        "read_query_rows": "mmemb_r1.evaluation.run_folder",
        "read_tasks": "mmemb_r1.evaluation.readers",
        "results_table": "mmemb_r1.evaluation.report.text",
        "rows_path": "mmemb_r1.evaluation.run_folder",
        "run_evaluation": "mmemb_r1.evaluation.runner",
        "save_results": "mmemb_r1.evaluation.run_folder",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
