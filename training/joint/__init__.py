"""The joint phase: train thinking and embedding together, contrastively, on selected rationales."""

from __future__ import annotations
