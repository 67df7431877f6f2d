"""Make the pictures that the bare machine indexes: OpenMoji renderings with their names, photographs of a package."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from mmemb_r1.atlas.pictures import render_svg, svg_folder

SIZE = 128  # pixels
PHOTOGRAPH_COLOURS = 2000  # a drawing has fewer among its opaque pixels


def draw_emoji(folder: Path, number: int) -> None:
    """Render `number` pictures of OpenMoji into a folder, with metadata.csv: file_name, name, group."""
    import emoji

    folder.mkdir(parents=True)
    rows: dict[str, tuple[str, str]] = {}
    for character, data in emoji.EMOJI_DATA.items():
        hexcode = "-".join(f"{ord(letter):X}" for letter in character.rstrip("\ufe0f"))
        name = data["en"].strip(":").replace("_", " ")
        toned = any(0x1F3FB <= ord(letter) <= 0x1F3FF for letter in character)
        if not toned and name not in rows and (svg_folder() / f"{hexcode}.svg").exists():
            rows[name] = (hexcode, "flag" if 0x1F1E6 <= ord(character[0]) <= 0x1F1FF else "other")
        if len(rows) == number:
            break
    else:
        raise ValueError(f"OpenMoji has {len(rows)} pictures with names of their own, not {number}. Ask for fewer.")
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file_name", "name", "group"])
        for name, (hexcode, group) in rows.items():
            render_svg(hexcode, SIZE).save(folder / f"{hexcode}.png")
            writer.writerow([f"{hexcode}.png", name, group])


def copy_photographs(stamps: Path, folder: Path, number: int) -> None:
    """Copy the first `number` photographs below `stamps` into one folder, under names made of their paths."""
    folder.mkdir(parents=True)
    found = 0
    for file in sorted(stamps.rglob("*.png")):
        if found < number and is_photograph(file):
            name = "-".join(file.relative_to(stamps).parts)
            (folder / name).write_bytes(file.read_bytes())
            found += 1
    if found < number:
        raise ValueError(f"{stamps} has {found} photographs, not {number}. Ask for fewer with --photographs.")


def is_photograph(file: Path) -> bool:
    """Tell a photograph from a drawing by the number of its colours."""
    if "cartoon" in file.as_posix():
        return False
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGBA")).reshape(-1, 4)
    return len(np.unique(pixels[pixels[:, 3] == 255], axis=0)) >= PHOTOGRAPH_COLOURS
