"""The stages of the method on Atlas: warm-up, evaluator, prior, posterior, joint phase, gate, GRPO, outcomes."""

from __future__ import annotations
