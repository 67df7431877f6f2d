"""
Two runs of the same queries: what does one gain over the other?

    compare     the figures
    table       these for the terminal
"""

from __future__ import annotations
