"""The stages of the method on Atlas: warm-up, evaluator, prior, posterior, joint phase, gate, GRPO, answers."""

from __future__ import annotations
