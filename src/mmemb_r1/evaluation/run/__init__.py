"""
A run: a model measured on tasks, in memory or in a folder where it goes on after a kill.

    runner              the run; atlas: one over Atlas's tables
    task_runner         one task of it, mode by mode
    scoring             from vectors to a score per query
    summary             means over tasks
    folder, rows, columns       what is kept, per task and mode, and per query
    results             everything together, as JSON
    candidate_vectors, candidate_sets       candidates that are embedded once
"""

from __future__ import annotations
