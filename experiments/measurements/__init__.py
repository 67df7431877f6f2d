"""Measure once what a page of the documentation states; each script says which question it answers."""

from __future__ import annotations
