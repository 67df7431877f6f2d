"""Write a checkpoint in forms that programs load which do not know this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmemb_r1._lazy import lazy_attributes

if TYPE_CHECKING:
    from mmemb_r1.export.direct import export_direct
    from mmemb_r1.export.vllm_folder import export_vllm

__all__ = ["export_direct", "export_vllm"]

__getattr__ = lazy_attributes(
    __name__, {"export_direct": "mmemb_r1.export.direct", "export_vllm": "mmemb_r1.export.vllm_folder"}
)
