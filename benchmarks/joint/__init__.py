"""The stages of `benchmarks/joint_phase.py`, one module each."""

from __future__ import annotations
