"""
The shortcut test: does a model read its rationales?

    run         the test on tasks, in memory or in a folder; settings say how
    tester      one task of it; thoughts: what the model thinks of its own accord
    rows        what is kept of every query
    figures     means over queries, with intervals
    verdict     what they say
    table       these for the terminal
"""

from __future__ import annotations
