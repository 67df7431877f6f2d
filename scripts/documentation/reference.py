"""Write the page of each package with public names; mkdocstrings fills it from the docstrings."""

from __future__ import annotations

from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
OF_THE_PACKAGE = [
    "    options:",
    "      members: false",
    "      show_root_heading: false",
    "      show_root_toc_entry: false",
]


def reference_pages() -> dict[str, str]:
    """Make the pages of all packages with public names: file name -> Markdown. The page `index.md` lists them."""
    names = public_names()
    lines = ["# Python", "", "Public are these names, in the packages that they are imported from.", ""]
    for package, members in names.items():
        links = ", ".join(f"[`{name}`]({package}.md#{package}.{name})" for name in members)
        lines += [f"[`{package}`]({package}.md)", f":   {links}", ""]
    pages = {f"{package}.md": reference_page(package, members) for package, members in names.items()}
    return {"index.md": "\n".join(lines), **pages}


def public_names() -> dict[str, list[str]]:
    """Find the public names, `__all__`, of every package that has them."""
    options = ConfigParser()
    options.read(ROOT / "setup.cfg", encoding="utf-8")
    packages = {name: import_module(name) for name in options["options"]["packages"].split()}
    return {
        name: sorted((member for member in package.__all__ if not member.startswith("__")), key=str.lower)
        for name, package in packages.items()
        if hasattr(package, "__all__")
    }


def reference_page(package: str, members: list[str]) -> str:
    """Write the page of a package: what it is for, then each of its public names."""
    lines = [f"# {package}", "", f"::: {package}", *OF_THE_PACKAGE, ""]
    for name in members:
        lines += [f"::: {package}.{name}", ""]
    return "\n".join(lines)
