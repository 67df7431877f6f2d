"""Checkpoints to and from the Hugging Face Hub: checked before they go, whole or not at all, verified on arrival."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmemb_r1._lazy import lazy_attributes

if TYPE_CHECKING:
    from mmemb_r1.hub.checks import check_checkpoint
    from mmemb_r1.hub.errors import HubError, RepositoryMovedError
    from mmemb_r1.hub.pull import Pulled, pull_checkpoint
    from mmemb_r1.hub.push import Pushed, push_checkpoint


__all__ = [
    "HubError",
    "Pulled",
    "Pushed",
    "RepositoryMovedError",
    "check_checkpoint",
    "pull_checkpoint",
    "push_checkpoint",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "HubError": "mmemb_r1.hub.errors",
        "Pulled": "mmemb_r1.hub.pull",
        "Pushed": "mmemb_r1.hub.push",
        "RepositoryMovedError": "mmemb_r1.hub.errors",
        "check_checkpoint": "mmemb_r1.hub.checks",
        "pull_checkpoint": "mmemb_r1.hub.pull",
        "push_checkpoint": "mmemb_r1.hub.push",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
