"""Images and other files."""

import os

import numpy as np
import pytest

from tests.helpers import hostile
from uvit_jax.errors import UvitError
from uvit_jax.io import atomic, grid, read_json, save_png, to_uint8, wrapped


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
    assert wrapped("skull, twemoji", 96) == ["skull, twemoji"]
    lines = wrapped("smiling face with heart-eyes, openmoji", 96)
    assert len(lines) > 1 and " ".join(lines) == "smiling face with heart-eyes, openmoji"
    cut = wrapped("one of very many words " * 9, 96)
    assert len(cut) == 3 and cut[-1].endswith("…") and "…" not in cut[0]
    assert wrapped("b" * 99, 96)[0].endswith("b…") and wrapped("", 96) == []


def test_captions_take_a_line_and_grey_images_stay_grey():
    images = np.zeros((2, 8, 8, 1))
    plain, captioned = (grid(images, captions=c, cell=8) for c in (None, ["a", "b" * 99]))
    assert captioned.height > plain.height and captioned.width == plain.width


@pytest.mark.parametrize("damaged", hostile.FILES.values(), ids=hostile.FILES)
def test_json_of_another_form_is_one_line(damaged, tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(damaged)
    with pytest.raises(UvitError, match=r"a\.json is damaged.*; delete it$"):
        read_json(file, remedy="; delete it")
    with pytest.raises(UvitError, match=r"nothing\.json cannot be read.*; delete it$"):
        read_json(tmp_path / "nothing.json", remedy="; delete it")
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')  # with a byte order mark, as Windows' editors write
    assert read_json(file) == {"a": 1}


def test_files_have_the_permissions_of_new_files(tmp_path):
    (tmp_path / "other").write_text("")
    with atomic(tmp_path / "own") as partial:
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "own").stat().st_mode == (tmp_path / "other").stat().st_mode
