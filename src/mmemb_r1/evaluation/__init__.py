"""
Measure a model on retrieval tasks, and report the results.

What users call is here by its name, imported when it is first used. Tasks come from the table of `readers`; `runner`
encodes them with an encoder of `encoders` in each mode and scores them by `scoring` and `metrics`; `run_folder` keeps
what was measured; `report` shows it, `compare` compares two runs, `invocation` says what the gate's choice is worth,
`diagnose` tests whether the model reads its rationales, `mteb_model` runs a model under mteb, and
`retrieval_evaluator` measures one while it is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmemb_r1._lazy import lazy_attributes

if TYPE_CHECKING:
    from mmemb_r1.evaluation.compare import compare_runs
    from mmemb_r1.evaluation.diagnose.run import ShortcutSettings, run_diagnosis
    from mmemb_r1.evaluation.readers import read_tasks
    from mmemb_r1.evaluation.report.text import results_table
    from mmemb_r1.evaluation.retrieval_evaluator import RetrievalEvaluator
    from mmemb_r1.evaluation.run_folder import load_results, read_query_rows, rows_path, save_results
    from mmemb_r1.evaluation.runner import run_evaluation
    from mmemb_r1.evaluation.settings import Settings
    from mmemb_r1.evaluation.tasks import RetrievalTask, TaskSource


__all__ = [
    "RetrievalEvaluator",
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

_NAMES_OF = {
    "compare": ["compare_runs"],
    "diagnose.run": ["ShortcutSettings", "run_diagnosis"],
    "readers": ["read_tasks"],
    "report.text": ["results_table"],
    "retrieval_evaluator": ["RetrievalEvaluator"],
    "run_folder": ["load_results", "read_query_rows", "rows_path", "save_results"],
    "runner": ["run_evaluation"],
    "settings": ["Settings"],
    "tasks": ["RetrievalTask", "TaskSource"],
}
__getattr__ = lazy_attributes(
    __name__, {name: f"{__name__}.{module}" for module, names in _NAMES_OF.items() for name in names}
)


def __dir__() -> list[str]:
    return sorted(__all__)
