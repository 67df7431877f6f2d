"""Build Atlas, a small benchmark of real pictures and facts, from installed packages without a download."""

from __future__ import annotations

from mmemb_r1.atlas.baselines import majority_baseline, no_image_baseline
from mmemb_r1.atlas.build import Atlas, atlas_texts, build_atlas, load_atlas
from mmemb_r1.atlas.pictures import augment
from mmemb_r1.atlas.tables import candidate_features, pair_features

__all__ = [
    "Atlas",
    "atlas_texts",
    "augment",
    "build_atlas",
    "candidate_features",
    "load_atlas",
    "majority_baseline",
    "no_image_baseline",
    "pair_features",
]
