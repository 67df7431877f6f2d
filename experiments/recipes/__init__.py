"""Show what the recipes in examples/ need and bear: memory by model and GPU, and a night's run in small."""

from __future__ import annotations
