"""Models of any kind by their name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MODULES_FILE = "modules.json"


def load_model(name: str, device: str | None = None, trust_remote_code: bool = False) -> SentenceTransformer:
    """
    Load an mmemb-r1 checkpoint as an [`MMEmbR1`], any other model as a [`SentenceTransformer`].

    Args:
        name: a folder or a Hub id.
        device: say `"cpu"`. Default: the best one there is.
        trust_remote_code: whether code of another model's repository may run. An mmemb-r1 checkpoint needs none.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import load_file_path

    from mmemb_r1 import MMEmbR1
    from mmemb_r1.evaluation.encoders.factory import ADAPTIVE_MODULE

    path = load_file_path(name, MODULES_FILE)
    if path is not None:
        types = [module["type"] for module in json.loads(Path(path).read_text(encoding="utf-8"))]
        if any(kind.split(".")[-1] == ADAPTIVE_MODULE for kind in types):
            return MMEmbR1(name, device=device)
    return SentenceTransformer(name, device=device, trust_remote_code=trust_remote_code)
