from __future__ import annotations

import pytest

from experiments.atlas_workers.look_alikes import LookAlikes
from experiments.atlas_workers.worker import recall
from mmemb_r1.atlas import Atlas
from mmemb_r1.atlas.tasks import AtlasQuestion
from mmemb_r1.atlas.world import World


@pytest.fixture(scope="session")
def recalled(small_atlas: Atlas) -> tuple[World, dict[str, AtlasQuestion]]:
    return recall(small_atlas)


@pytest.fixture(scope="session")
def look_alikes(recalled: tuple[World, dict[str, AtlasQuestion]]) -> LookAlikes:
    world, asked = recalled
    return LookAlikes(world, [question for pair_id, question in asked.items() if pair_id.startswith("train/")])
