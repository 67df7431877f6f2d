"""Open the checkpoint that is to be served, if it is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmemb_r1.engines import Engine
from mmemb_r1.engines.served import is_exported
from mmemb_r1.hub.checks import find_problems
from mmemb_r1.hub.pull import pull_checkpoint
from mmemb_r1.hub.source import check_source
from mmemb_r1.sentence_transformers import MMEmbR1


def open_model(
    name: str,
    *,
    revision: str | None = None,
    device: str | None = None,
    engine: Engine | None = None,
    **config: Any,
) -> MMEmbR1:
    """
    Load a checkpoint after it was verified.

    Args:
        name: a folder, whose files are checked for what a checkpoint consists of; or a Hub id, whose files are
            downloaded and compared with the hashes that the repository lists. Of a folder that was exported for
            vLLM the part beside the weights is loaded; the engine has those, and is compared with it when it starts.
        revision: of a Hub id: a branch, a tag or a commit. Default: its main branch.
        device: say `cpu` or `cuda:1`. Default: the best one there is.
        engine: runs the backbone. Default: this process does.
        **config: fields of the config that take the place of the checkpoint's; `None` leaves them.

    Raises:
        ValueError: if there is no such folder, it is no whole checkpoint, or the engine can't run it.
        HubError: an `OSError`, if the Hub refuses, or a file is not what it lists.
    """
    check_source(name)
    folder = name if is_exported(name) else _verified(name, revision)
    model = MMEmbR1(folder, device=device, engine=engine)
    for field, value in config.items():
        if value is not None:
            setattr(model[0] if field == "max_image_tokens" else model[0].model.config, field, value)
    if engine is not None:
        engine.check(model[0])  # of another limit of pictures it knows nothing
    return model


def _verified(name: str, revision: str | None) -> str:
    """Find a checkpoint's folder, and check its files."""
    folder = Path(name) if os.path.isdir(name) else pull_checkpoint(name, revision=revision).folder
    _, problems = find_problems(folder)
    if problems:
        raise ValueError(
            f"{name} is not served, because it is no whole checkpoint:" + "".join(f"\n- {one}" for one in problems)
        )
    return str(folder)
