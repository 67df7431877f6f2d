"""Find a format by its name, or by the import path of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mmemb_r1._lazy import import_object
from mmemb_r1.modeling.options_mmemb_r1 import nearest_name
from mmemb_r1.tables.columns import ColumnMap
from mmemb_r1.tables.files import PICTURES
from mmemb_r1.training.importing.columns import OwnColumns, picture_columns
from mmemb_r1.training.importing.layouts import PairLayout, page_to_answer, query_to_page, video_pairs

ALL_FILES = (".json", ".jsonl", ".parquet", ".csv")


@dataclass(frozen=True)
class Format:
    """
    Say how the rows of a source become pairs.

    Args:
        convert: takes a row and the stem of its file, and returns a pair (see [`as_pair`]) or several.
        source: for whom ids and rationales are named.
        needs: sets of columns, one of which the first row of each file has to have.
        files: endings of the names of files that are read; none for a data set of the Hub.
        columns: gives a row the columns that `needs` and `convert` know.
    """

    convert: Callable[[Mapping[str, Any], str], Any]
    source: str
    needs: tuple[tuple[str, ...], ...] = ()
    files: tuple[str, ...] = (".json", ".jsonl", ".parquet")
    columns: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict


_CHATS = (("qry", "pos"), ("qry_text", "pos_text"))
_FLAT = ("qry", "qry_image_path", "pos_text", "pos_image_path")
_COTS = (("query", "query_cot"), ("target", "pos_cot"))
_ALIGN = "Align the question with for representation:"  # Embed-RL's, before the questions of ViDoRe and VisRAG
FORMATS: Mapping[str, Format] = {
    "ume-r1": Format(PairLayout(), "ume-r1", _CHATS),
    "rime": Format(PairLayout(), "rime", _CHATS),
    "twn": Format(PairLayout(), "twn", _CHATS),
    "embed-rl": Format(
        PairLayout(answers=False, rationales=_COTS, prefix=_ALIGN), "embed-rl", (("qry", "pos"), ("qry", "pos_text"))
    ),
    "mmeb-train": Format(PairLayout(), "mmeb-train", (_FLAT,)),
    "vidore": Format(page_to_answer, "vidore", (("query", "image", "answer"),), (".parquet",)),
    "visrag": Format(query_to_page, "visrag", (("query", "image"),), (".parquet",)),
    "llava-hound": Format(video_pairs, "llava-hound", (("conversations", "video"),), (".jsonl", ".json")),
}
BY_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".json"),
    "csv": (".csv",),
    "parquet": (".parquet",),
    "folder": PICTURES,
    "hub": (),
}


def find_format(name: str, columns: ColumnMap | None = None) -> Format:
    """
    Find a format.

    Args:
        name: of `FORMATS`; of `BY_COLUMNS`, whose columns have our names or those that `columns` maps; or the import
            path of a function of one's own, `module:function`, which takes a row (a dict) and returns a pair, or
            several in a list.
        columns: ours -> theirs, see [`OwnColumns`].

    Raises:
        ValueError: if there is no such format, or `columns` is not for it.
    """
    if name in BY_COLUMNS:
        own = OwnColumns(columns)
        return Format(own, name, (own.needs,), BY_COLUMNS[name], picture_columns if name == "folder" else dict)
    if columns:
        raise ValueError(f"columns are mapped for {', '.join(BY_COLUMNS)}, not for {name!r}; leave them out.")
    if name in FORMATS:
        return FORMATS[name]
    if ":" not in name:
        raise ValueError(
            f"there is no format {name!r}; allowed: {', '.join((*FORMATS, *BY_COLUMNS))}, or the import path of a "
            f"function of your own, module:function{nearest_name(name, (*FORMATS, *BY_COLUMNS))}"
        )
    return Format(partial(_own, import_object(name)), name.rpartition(":")[2], files=ALL_FILES)


def _own(function: Callable[[Mapping[str, Any]], Any], row: Mapping[str, Any], file: str) -> Any:
    return function(row)
