"""Test whether a model reads its rationales or only writes them: the shortcut test."""

from __future__ import annotations
