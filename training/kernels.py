"""Put the kernels of Liger into the backbone of a model that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.utils import is_liger_kernel_available

# These replace the backbone's own loss, which is not used: log-probabilities are computed a few tokens at a time.
LOSSES = ("cross_entropy", "fused_linear_cross_entropy")


def apply_liger_kernels(vlm: Any, options: Mapping[str, Any] | None, device: torch.device) -> None:
    """
    Change a backbone in place: its norms, rotary positions and MLPs run through Liger's kernels, as far as there are
    any for it.

    `Trainer` would look for kernels of the whole model, find that there are none for it, and go on without a word.

    Args:
        vlm: an `AutoModelForImageTextToText`.
        options: of Liger's function for this backbone, `{"rope": False}` say. `None`: Liger's defaults.
        device: where the backbone will be run; kernels are for GPUs.

    Raises:
        ValueError: if Liger is not installed, has nothing for this device or backbone, or its losses are asked for.
    """
    if not is_liger_kernel_available():
        raise ValueError(
            "use_liger_kernel: Liger is not installed here; pip install liger-kernel, on a machine with a GPU, or "
            "leave it out."
        )
    if device.type == "cpu":
        raise ValueError("use_liger_kernel: Liger's kernels run on GPUs, this training on a CPU; leave it out.")
    if asked := [name for name in LOSSES if (options or {}).get(name)]:
        raise ValueError(
            f"liger_kernel_config: {asked[0]} has no effect, as the backbone's own loss is not used; leave it out."
        )
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = vlm.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(
            f"use_liger_kernel: Liger has no kernels for a {kind} backbone; leave it out. It has some for: "
            f"{', '.join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))}."
        )
    _apply_liger_kernel_to_instance(model=vlm, **{**dict.fromkeys(LOSSES, False), **(options or {})})
