from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmemb_r1.atlas import augment
from mmemb_r1.atlas.pictures import find_font, flag_hexcode, keep_distinct, render_digits, render_emoji, render_svg


def test_flag_fills_the_width_of_a_white_square():
    pixels = np.asarray(render_svg(flag_hexcode("JP"), 64))
    assert pixels.shape == (64, 64, 3)
    assert (pixels[0] == 255).all() and (pixels[:, 0] == 255).all()
    assert (pixels[32, 2:5].min(axis=1) < 60).any()  # the outline, right beside the margin
    red, green, blue = (int(channel) for channel in pixels[32, 32])
    assert red > 180 and green < 80 and blue < 80


def test_augment_is_a_function_of_the_stream():
    picture = render_svg("1F436", 64)
    before = picture.tobytes()
    first, again, other = (augment(picture, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert picture.tobytes() == before
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert (first.mode, first.size) == ("RGB", (64, 64))


def test_augment_varies_little():
    picture = render_svg("1F436", 64)
    rng = np.random.default_rng(0)
    canonical = np.asarray(picture, dtype=float) / 255
    distances = [np.abs(np.asarray(augment(picture, rng)) / 255 - canonical).mean() for _ in range(50)]
    assert 0.005 < min(distances) and max(distances) < 0.35


def test_digits_lie_in_reading_order():
    blank, full = np.zeros((8, 8)), np.full((8, 8), 16)
    pixels = np.asarray(render_digits([blank, full, blank], 64))
    quarters = [pixels[row : row + 32, column : column + 32].mean() for row in (0, 32) for column in (0, 32)]
    assert quarters[0] == quarters[2] == quarters[3] == 255 and quarters[1] < 100


def test_keep_distinct_keeps_the_first():
    red, nearly, blue = (Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (253, 0, 0), (0, 0, 255)))
    assert keep_distinct({"a": red, "b": nearly, "c": blue}, 0.01) == ["a", "c"]
    assert keep_distinct({"a": red, "b": nearly, "c": blue}, 0.0) == ["a", "b", "c"]


def test_countries_that_share_a_flag_are_look_alikes():
    pictures = {code: render_svg(flag_hexcode(code), 64) for code in ("ID", "MC", "PL", "RO", "TD", "FR")}
    assert keep_distinct(pictures, 0.0125) == ["ID", "PL", "RO", "FR"]


def test_no_second_font_unless_asked():
    assert find_font(None) is None
    with pytest.raises(ValueError, match="is no file"):
        find_font("missing.ttf")


def test_second_font_draws_what_it_has_only():
    """A plain font stands in: it has the umbrella but neither flags nor a unicorn."""
    import matplotlib

    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    picture = render_emoji("2602", font, 48)
    assert picture is not None and picture.size == (48, 48)
    assert render_emoji("1F984", font, 48) is None
    assert render_emoji("PE", font, 48) is None


def test_installed_colour_font_makes_a_task(tmp_path):
    from mmemb_r1.atlas import build_atlas

    font = find_font("auto")
    if font is None:
        pytest.skip("NotoColorEmoji is not installed")
    small = {"size": 32, "num_countries": 12, "num_objects": 10, "generated_rows": 5, "num_drawings": 12}
    atlas = build_atlas(tmp_path / "atlas", **small, second_font=font)
    counts = atlas.manifest["counts"]
    assert "picture-name-noto" not in counts["train"]
    for split in ("policy", "validation", "test"):
        named = counts[split].get("picture-name-flag", 0) + counts[split]["picture-name-object"]
        assert 0 < counts[split]["picture-name-noto"] <= named
