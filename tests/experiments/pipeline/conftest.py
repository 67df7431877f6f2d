from __future__ import annotations

import pytest

from mmemb_r1.atlas import Atlas, build_atlas

SMALL = {
    "size": 64,
    "num_countries": 24,
    "num_objects": 10,
    "generated_rows": 4,
    "num_drawings": 12,
    "second_font": None,
}


@pytest.fixture(scope="session")
def small_atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return build_atlas(tmp_path_factory.mktemp("atlas") / "small", **SMALL)
