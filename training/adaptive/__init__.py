"""Teach the gate when to think, and rationales by what they are worth, with GRPO: the adaptive phase."""

from __future__ import annotations
