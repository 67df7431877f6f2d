"""Benchmarks that compare two ways of doing the same in one run; each states its ratio."""

from __future__ import annotations
