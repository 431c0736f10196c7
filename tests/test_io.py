"""Pictures as files."""

import numpy as np

from uvit_jax.io import _wrapped, grid, save_png, to_uint8


def test_values_are_clipped_to_the_range():
    values = np.array([-2, -1, 0, 1, 2, np.nan, np.inf])
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255, 0, 255]


def test_every_image_is_at_its_place_in_the_grid(tmp_path):
    colours = np.linspace(-1, 1, 7)
    images = np.broadcast_to(colours[:, None, None, None], (7, 8, 8, 3))
    sheet = grid(images, columns=3, cell=8)
    assert sheet.size == (3 * 10 + 2, 3 * 10 + 2)
    for i, colour in enumerate(to_uint8(colours)):
        assert sheet.getpixel((2 + i % 3 * 10 + 4, 2 + i // 3 * 10 + 4)) == (colour,) * 3
    save_png(sheet, tmp_path / "new" / "a.png")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_long_captions_are_wrapped_between_words_and_what_is_cut_shows_it():
    assert _wrapped("skull, twemoji", 96) == ["skull, twemoji"]
    lines = _wrapped("smiling face with heart-eyes, openmoji", 96)
    assert len(lines) > 1 and " ".join(lines) == "smiling face with heart-eyes, openmoji"
    cut = _wrapped("one of very many words " * 9, 96)
    assert len(cut) == 3 and cut[-1].endswith("…") and "…" not in cut[0]
    assert _wrapped("b" * 99, 96)[0].endswith("b…") and _wrapped("", 96) == []


def test_captions_take_a_line_and_grey_images_stay_grey():
    images = np.zeros((2, 8, 8, 1))
    plain, captioned = (grid(images, captions=c, cell=8) for c in (None, ["a", "b" * 99]))
    assert captioned.height > plain.height and captioned.width == plain.width
