"""Miniatures of MMEB-V2 for the tests of commands that read it."""

from __future__ import annotations

from tests.mmeb_copy import copy, miniature, rows_of

__all__ = ["copy", "miniature", "rows_of"]
