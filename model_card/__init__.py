"""Write the model card from files on disk, and check it offline."""

from __future__ import annotations

from mmemb_r1.model_card.backing import check_against_files
from mmemb_r1.model_card.builder import TAGS, build_model_card, write_model_card
from mmemb_r1.model_card.validation import validate_model_card

__all__ = ["TAGS", "build_model_card", "check_against_files", "validate_model_card", "write_model_card"]
