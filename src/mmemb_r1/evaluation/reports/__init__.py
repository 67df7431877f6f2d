"""
Reports of a run's results.

    layout, cells       lines, columns and numbers, whatever they are written as
    terminal, markdown  tables of them
    html_report         the page: html_tables and plots are its parts, run_answers what it knows of single queries
    files               the reports that stand in a run's folder
"""

from __future__ import annotations
