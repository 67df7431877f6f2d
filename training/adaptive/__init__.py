"""The adaptive phase: GRPO teaches the gate when to think, and rationales by what they are worth."""

from __future__ import annotations
