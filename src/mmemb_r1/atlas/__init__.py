"""Atlas: a small real benchmark, built from installed packages without a download."""

from __future__ import annotations

from .build import Atlas, build_atlas, load_atlas
from .pictures import augment
from .schema import candidate_features, pair_features
from .summary import atlas_texts, majority_baseline

__all__ = [
    "Atlas",
    "atlas_texts",
    "augment",
    "build_atlas",
    "candidate_features",
    "load_atlas",
    "majority_baseline",
    "pair_features",
]
