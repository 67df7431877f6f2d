"""From nothing to a trained checkpoint on one machine: Atlas, a tiny backbone, the joint phase, a gate, a report."""

from __future__ import annotations
