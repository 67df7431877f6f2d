"""Read a folder of pictures, videos, PDFs and text files as items."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

from mmemb_r1.content import content_key
from mmemb_r1.index.items import Item, Opened, Source, Unreadable
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions, check_size, parse_address

TEXT_SUFFIXES = (".txt", ".md", ".rst")
PAGE_SCALE = 2.0  # pixels per point of a page of a PDF: 144 dots per inch
_UNSUPPORTED = "files of this kind are not read (docs/inputs.md lists those that are); convert it first"


def folder_source(root: Path, leave_out: Path) -> Source:
    """
    Read all files of a folder and the folders in it, sorted by name; or one file.

    Ids are paths inside the folder; pages of a PDF have `#page=N` after it. Hidden files and folders are passed over,
    so are files of which nothing knows the suffix. Symbolic links to folders are not followed.

    Args:
        root: the folder or file.
        leave_out: a folder inside that is passed over: the index itself.
    """
    known, unknown = _listed(root, leave_out)

    def items(media: MediaOptions) -> Iterator[Item | Unreadable | int]:
        for path, name, kind in known:
            yield from _items_of(path, name, kind, media)
            yield 1

    return Source(str(root.absolute()), len(known), items, passed_over=dict(sorted(unknown.items())))


def _listed(root: Path, leave_out: Path) -> tuple[list[tuple[Path, str, str]], Counter[str]]:
    """List files with their names inside the folder and their kinds; count the suffixes of all others."""
    known, unknown = [], Counter[str]()
    for path in [root] if root.is_file() else _walk(root, leave_out.resolve()):
        suffix = path.suffix.lower()
        kind = "page" if suffix == ".pdf" else "text" if suffix in TEXT_SUFFIXES else parse_address(path.name).kind
        if kind is None:
            unknown[suffix] += 1
        else:
            name = path.name if root.is_file() else path.relative_to(root).as_posix()
            known.append((path, name, kind))
    return sorted(known, key=lambda one: one[1]), unknown


def _walk(root: Path, leave_out: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [
            name for name in folders if not name.startswith(".") and Path(folder, name).resolve() != leave_out
        ]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _items_of(path: Path, name: str, kind: str, media: MediaOptions) -> Iterator[Item | Unreadable]:
    """Read one file: a PDF as its pages, all else as one item."""
    try:
        name.encode()
    except UnicodeEncodeError:
        yield Unreadable(ascii(name), "its name is no UTF-8; rename it")
        return
    if kind == "page":
        yield from _pages(path, name, media)
    elif kind == "unsupported":
        yield Unreadable(name, _UNSUPPORTED)
    elif kind == "text":
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            yield Unreadable(name, f"it can't be read as text in UTF-8 ({error}); convert it first")
            return
        if not text.strip():
            yield Unreadable(name, "it is empty")
            return
        value = {"text": text}
        yield Item(name, kind, content_key(value, media), partial(Opened, value, text), path=name)
    else:
        medium = {kind: str(path)}
        yield Item(name, kind, content_key(medium, media), partial(Opened, medium, ""), path=name)


def _pages(path: Path, name: str, media: MediaOptions) -> Iterator[Item | Unreadable]:
    pdfium = pdf_reader()
    try:
        with path.open("rb") as file:
            content = file_digest(file, lambda: blake2b(digest_size=32)).digest()
        with pdfium.PdfDocument(path) as document:
            number = len(document)
    except (OSError, pdfium.PdfiumError) as error:
        yield Unreadable(name, f"it is no PDF that can be opened without a password, or a damaged one ({error})")
        return
    for page in range(1, number + 1):
        digest = blake2b(f"page {page} at {PAGE_SCALE} of ".encode() + content, digest_size=32).digest()
        opened = partial(open_page, path, page, media)
        yield Item(f"{name}#page={page}", "page", digest, opened, path=name, page=page)


def open_page(path: Path, page: int, media: MediaOptions) -> Opened:
    """
    Draw a page of a PDF as a picture, and read its text.

    Args:
        path: of the PDF.
        page: counted from 1.
        media: says how large a picture may be.

    Raises:
        ValueError: if the page is damaged, or larger than allowed.
    """
    pdfium = pdf_reader()
    try:
        with pdfium.PdfDocument(path) as document:
            drawn = document[page - 1]
            width, height = (round(side * PAGE_SCALE) for side in drawn.get_size())
            check_size(f"page {page}", (width, height), media)
            picture = drawn.render(scale=PAGE_SCALE).to_pil().convert("RGB")
            text = drawn.get_textpage().get_text_bounded()
    except (OSError, pdfium.PdfiumError) as error:
        raise ValueError(f"page {page} can't be drawn ({error})") from error
    return Opened({"image": picture}, text.replace("\r\n", "\n").replace("\0", ""))


def pdf_reader() -> Any:
    """Import pypdfium2, which reads PDFs."""
    try:
        import pypdfium2
    except ImportError as error:
        raise ImportError("PDFs need pypdfium2: pip install 'mmemb-r1[search]'") from error
    return pypdfium2
