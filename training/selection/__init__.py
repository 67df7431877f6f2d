"""The posterior: which of the proposed rationales help a query meet its target."""

from __future__ import annotations
