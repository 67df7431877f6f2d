"""Multimodal embeddings that decide when to reason.

Importing the package imports neither torch nor transformers: each name is looked up when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmemb_r1._lazy import lazy_attributes

if TYPE_CHECKING:
    from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
    from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
    from mmemb_r1.sentence_transformers import MMEmbR1


__version__ = "0.2.0"
__all__ = ["MMEmbR1", "MMEmbR1Config", "MMEmbR1Model", "__version__"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "MMEmbR1": "mmemb_r1.sentence_transformers",
        "MMEmbR1Config": "mmemb_r1.modeling.configuration_mmemb_r1",
        "MMEmbR1Model": "mmemb_r1.modeling.modeling_mmemb_r1",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
