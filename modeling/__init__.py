"""The model: what a checkpoint on the Hub carries as remote code, and nothing else of the package.

Each file imports third parties and, through `from .sibling import name`, its neighbours in this folder only.
"""

from __future__ import annotations
