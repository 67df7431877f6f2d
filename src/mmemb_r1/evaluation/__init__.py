"""Metrics, the benchmark runner, and the tables that report its results."""

from __future__ import annotations

from mmemb_r1.evaluation.report import results_table
from mmemb_r1.evaluation.results import load_results, save_results
from mmemb_r1.evaluation.runner import evaluate

__all__ = ["evaluate", "load_results", "results_table", "save_results"]
