"""Index pictures, videos, pages and texts of one's own, and search them: `build_index` and `Index`.

The extra `mmemb-r1[search]` has what it needs: LanceDB, which keeps the index in a folder, and pypdfium2 for PDFs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmemb_r1._lazy import lazy_attributes

if TYPE_CHECKING:
    from mmemb_r1.index.building import IndexSummary, build_index
    from mmemb_r1.index.results import Hit, SearchResult
    from mmemb_r1.index.searching import Index

__all__ = ["Hit", "Index", "IndexSummary", "SearchResult", "build_index"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Hit": "mmemb_r1.index.results",
        "Index": "mmemb_r1.index.searching",
        "IndexSummary": "mmemb_r1.index.building",
        "SearchResult": "mmemb_r1.index.results",
        "build_index": "mmemb_r1.index.building",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
