"""The shortcut test: does a model read its rationales?"""

from __future__ import annotations
