"""Scripted workers whose quality is known: they know the Atlas that they are asked about."""

from __future__ import annotations
