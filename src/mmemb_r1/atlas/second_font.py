"""Renderings by a second vendor, from a colour font that may be installed: a shift of style nobody trained on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .pictures import fit_square, flag_hexcode

if TYPE_CHECKING:
    from PIL import Image, ImageFont

FONT_NAME = "NotoColorEmoji.ttf"
FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.fonts",
    "~/.local/share/fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
)
BITMAP_SIZE = 109  # the one size of the font's bitmaps
UNASSIGNED = "\U0010ffff"  # drawn as the font's picture of what it lacks


def find_font(choice: str | os.PathLike[str] | None) -> Path | None:
    """The font to use: `"auto"` searches the usual folders, a path must exist, None means no font."""
    if choice is None:
        return None
    if choice == "auto":
        found = (path for folder in FONT_FOLDERS for path in sorted(Path(folder).expanduser().rglob(FONT_NAME)))
        return next(found, None)
    path = Path(choice)
    if not path.is_file():
        raise ValueError(f"second_font is {str(path)!r}, which is no file. Give a colour font, 'auto' or None.")
    return path


def render_emoji(entity: str, font: Path, size: int) -> Image.Image | None:
    """A flag (alpha-2 code) or object (hexcode) drawn with `font`, RGB `size` x `size`; None if the font lacks it."""
    from PIL import ImageFont

    hexcodes = flag_hexcode(entity) if len(entity) == 2 else entity
    text = "".join(chr(int(code, 16)) for code in hexcodes.split("-"))
    typeface = ImageFont.truetype(str(font), BITMAP_SIZE)
    # The two letters of a flag are joined to one glyph only by a font that has the flag and by Pillow's Raqm layout.
    if typeface.getlength(text) > 1.5 * typeface.getlength(text[0]):
        return None
    drawn = _draw(text, typeface)
    if drawn.getbbox() is None or drawn.tobytes() == _draw(UNASSIGNED, typeface).tobytes():
        return None
    return fit_square(drawn, size)


def _draw(text: str, typeface: ImageFont.FreeTypeFont) -> Image.Image:
    from PIL import Image, ImageDraw

    canvas = Image.new("RGBA", (2 * BITMAP_SIZE, 2 * BITMAP_SIZE), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((BITMAP_SIZE // 4, BITMAP_SIZE // 4), text, font=typeface, embedded_color=True)
    return canvas
