"""Take the pictures of Atlas, with their names, as a table to index."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset


def atlas_pictures(directory: str | os.PathLike[str]) -> Dataset:
    """
    List the candidate pictures of an Atlas: columns `id`, `image` (PNG) and `name` (`""` where no pair names one).

    Args:
        directory: what `build_atlas` wrote.

    Raises:
        ValueError: if there is no Atlas.
    """
    from datasets import Dataset

    from mmemb_r1.atlas import load_atlas
    from mmemb_r1.atlas.tables import NAME_TASKS

    atlas = load_atlas(directory)
    names = {
        row["entity"]: row["target"]["text"]
        for pairs in atlas.pairs.values()
        for row in pairs.select_columns(["task", "entity", "target"])
        if row["task"] in NAME_TASKS
    }
    pictures = [row for row in atlas.candidates if row["candidate_set"] == "picture"]
    return Dataset.from_list(
        [
            {
                "id": row["candidate_id"],
                "image": row["input"]["image"][0],
                "name": names.get(row["candidate_id"], ""),
            }
            for row in pictures
        ]
    )
