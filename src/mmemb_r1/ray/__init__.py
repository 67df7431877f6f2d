"""
Embed corpora, draw rationales, score them and serve a model on Ray: in several processes, on several GPUs or machines.

The extra `mmemb-r1[ray]` has what it needs. `import ray` is still Ray itself, here and everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmemb_r1._lazy import lazy_attributes

if TYPE_CHECKING:
    from mmemb_r1.ray.cluster import connected
    from mmemb_r1.ray.embedding import embed_dataset
    from mmemb_r1.ray.parts import draw_rationales, select_rationales

__all__ = ["connected", "draw_rationales", "embed_dataset", "select_rationales"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "connected": "mmemb_r1.ray.cluster",
        "draw_rationales": "mmemb_r1.ray.parts",
        "embed_dataset": "mmemb_r1.ray.embedding",
        "select_rationales": "mmemb_r1.ray.parts",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
