"""Build tiny random VLMs of several families without any download: for tests, docs and toy training."""

from __future__ import annotations

from mmemb_r1.tiny.factory import FAMILIES, build_tiny_vlm
from mmemb_r1.tiny.text import train_tokenizer

__all__ = ["FAMILIES", "build_tiny_vlm", "train_tokenizer"]
