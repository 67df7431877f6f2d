"""A hook of MkDocs: in the navigation, a folder stands for its pages by name, `index.md` first."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Replace each folder in the navigation by the list of its pages."""
    config.nav = with_pages(config.nav, Path(config.docs_dir))
    return config


def with_pages(entry: Any, pages: Path) -> Any:
    """Return an entry of the navigation, or a list of them, without folders."""
    if isinstance(entry, list):
        return [with_pages(one, pages) for one in entry]
    if isinstance(entry, dict):
        return {title: with_pages(inner, pages) for title, inner in entry.items()}
    if not entry.endswith("/"):
        return entry
    found = sorted((pages / entry).glob("*.md"), key=lambda page: (page.name != "index.md", page.stem))
    return [page.relative_to(pages).as_posix() for page in found]
