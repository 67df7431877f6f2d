"""Move checkpoints to and from the Hugging Face Hub: check them before a push, verify them after a pull."""

from __future__ import annotations

from mmemb_r1.hub.checks import check_checkpoint
from mmemb_r1.hub.client import HubError, RepositoryMovedError
from mmemb_r1.hub.pull import Pulled, pull_checkpoint
from mmemb_r1.hub.push import Pushed, push_checkpoint

__all__ = [
    "HubError", "Pulled", "Pushed", "RepositoryMovedError", "check_checkpoint", "pull_checkpoint", "push_checkpoint",
]  # fmt: skip
