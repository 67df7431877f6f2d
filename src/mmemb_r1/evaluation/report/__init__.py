"""Write the reports of a run beside its results."""

from __future__ import annotations

import logging
from pathlib import Path

from mmemb_r1.evaluation.report.html import write_html
from mmemb_r1.evaluation.report.text import results_markdown
from mmemb_r1.evaluation.run_folder import RESULTS_FILE, Results, save_results
from mmemb_r1.runs import replaced_file

MARKDOWN_FILE, HTML_FILE = "results.md", "report.html"
logger = logging.getLogger(__name__)


def write_reports(results: Results, run: Path) -> None:
    """Write `results.json`, `results.md` and, if what draws is installed, `report.html`; else remove an older page."""
    save_results(results, run / RESULTS_FILE)
    with replaced_file(run / MARKDOWN_FILE) as temporary:
        temporary.write_text(results_markdown(results), encoding="utf-8")
    try:
        write_html(run, run / HTML_FILE)
    except ImportError as error:  # of an extra, and all else is there without it
        stale = run / HTML_FILE
        removed = " (the one of an earlier run was removed)" if stale.exists() else ""
        stale.unlink(missing_ok=True)
        logger.warning("there is no %s%s: %s", HTML_FILE, removed, error)
