"""
Collect the pages of the site in a folder: `python -m scripts.documentation.pages build/pages`.

The folder has the layout of the repository, so that a link between two documents is right in both. To what is written
by hand it adds a page for each command and one for each package with public names.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from scripts.documentation.commands import command_pages
from scripts.documentation.reference import reference_pages

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "LICENSE")
FOLDERS = ("docs", "examples")
STYLE = "scripts/documentation/site.css"
RECIPES_PAGE = "examples/recipes.md"
COMMANDS_FOLDER = "docs/commands"
REFERENCE_FOLDER = "docs/reference"
LESS_FOUND = "---\nsearch:\n  boost: 0.3\n---\n\n"  # who searches finds what is written for readers first


def write_pages(target: Path) -> None:
    """Write all pages of the site, and the files that they link to, into `target`, which is emptied first."""
    shutil.rmtree(target, ignore_errors=True)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, target / folder)
    for name in (*DOCUMENTS, STYLE):
        shutil.copy(ROOT / name, target / Path(name).name)
    (target / RECIPES_PAGE).write_text(recipes_page(), encoding="utf-8")
    readme = target / "README.md"
    linked = readme.read_text(encoding="utf-8").replace("](examples)", f"]({RECIPES_PAGE})")
    readme.write_text(linked, encoding="utf-8")
    for folder, pages in ((COMMANDS_FOLDER, command_pages()), (REFERENCE_FOLDER, reference_pages())):
        (target / folder).mkdir()
        for name, text in pages.items():
            (target / folder / name).write_text(LESS_FOUND + text, encoding="utf-8")


def recipes_page() -> str:
    """Write the page that shows the recipes in examples/, each with its file."""
    lines = ["# Recipes", "", "Settings for training and for `accelerate`. Each file says how it is used.", ""]
    for file in sorted((ROOT / "examples").glob("*.yaml")):
        lines += [f"## {file.name}", "", f"[The file]({file.name})", "", "```yaml"]
        lines += [file.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Collect the pages of the documentation site.")
    parser.add_argument("target", type=Path, metavar="DIR", help="a folder, which is emptied first")
    write_pages(parser.parse_args(argv).target)


if __name__ == "__main__":
    main()
