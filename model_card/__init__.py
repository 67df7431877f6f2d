"""The model card: a template, and the builder that fills it from what is on disk."""

from __future__ import annotations

from mmemb_r1.model_card.builder import build_model_card

__all__ = ["build_model_card"]
