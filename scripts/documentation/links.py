"""
Check the built site: `python -m scripts.documentation.links build/site`.

Each link inside the site, and each place in a page that a link names, has to be there; and nothing that a browser
loads by itself may come from elsewhere. Links to other sites are listed and not followed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"audio", "embed", "iframe", "img", "link", "object", "script", "source", "track", "video"}
REMOTE_STYLE = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\s\"')]+)")


class Page(HTMLParser):
    """Find what a page links to, what it loads, the places in it that have names, and how often each element is there.

    Elements are counted inside `<article>` only: around it is what every page has.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = set()
        self.elements: Counter[str] = Counter()
        self.inside = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.inside += tag == "article"
        if self.inside:
            self.elements[tag] += 1
        self.places.update(place for name in ("id", "name") if (place := found.get(name)))
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        if tag in LOADED:
            self.loaded += [found[name] or "" for name in ("src", "href", "data") if found.get(name)]
        if found.get("style"):
            self.loaded += REMOTE_STYLE.findall(found["style"] or "")

    def handle_endtag(self, tag: str) -> None:
        self.inside -= tag == "article"


def read_pages(site: Path) -> dict[Path, Page]:
    """Read all pages of a site but the one for addresses that are not there, which does not know where it is shown."""
    files = (file for file in sorted(site.rglob("*.html")) if file.name != "404.html")
    return {file.resolve(): Page(file.read_text(encoding="utf-8")) for file in files}


def broken_links(site: Path) -> list[str]:
    """List the links inside a site whose file, or whose place in a page, is not there: "page: link"."""
    pages, broken = read_pages(site), []
    for path, page in pages.items():
        for link in (link for link in page.links + page.loaded if not is_remote(link)):
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            missing = not target.is_file() or not target.is_relative_to(site.resolve())
            if missing or (place and target in pages and place not in pages[target].places):
                broken.append(f"{path.relative_to(site.resolve())}: {link}")
    return broken


def remote_resources(site: Path) -> list[str]:
    """List what the browser of a reader would load from elsewhere, fonts and pictures of style sheets included."""
    root = site.resolve()
    found = [f"{path.relative_to(root)}: {link}" for path, page in read_pages(site).items() for link in _remote(page)]
    for file in sorted(root.rglob("*.css")):
        links = REMOTE_STYLE.findall(file.read_text(encoding="utf-8"))
        found += [f"{file.relative_to(root)}: {link}" for link in links]
    return found


def _remote(page: Page) -> Iterator[str]:
    return (link for link in page.loaded if is_remote(link))


def is_remote(link: str) -> bool:
    """
    Tell whether a link leaves the site: to another host, or to a program that is no browser.

    >>> [is_remote(link) for link in ("https://sbert.net", "mailto:me@example.org", "a.html#b", "data:,")]
    [True, True, False, False]
    """
    parts = urlsplit(link)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check the links of the built site.")
    parser.add_argument("site", type=Path, metavar="DIR", help="what `mkdocs build` wrote")
    site = parser.parse_args(argv).site
    pages = read_pages(site)
    inside = sum(not is_remote(link) for page in pages.values() for link in page.links)
    outside = sorted({link for page in pages.values() for link in page.links if is_remote(link)})
    broken, remote = broken_links(site), remote_resources(site)
    print(*outside, sep="\n")
    print(f"{len(pages)} pages; {inside} links inside, {len(broken)} broken; {len(outside)} other sites, not followed")
    for kind, found in (("broken", broken), ("loaded from elsewhere", remote)):
        for one in found:
            print(f"{kind}: {one}", file=sys.stderr)
    return 1 if broken or remote or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
