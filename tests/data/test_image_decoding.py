"""Decoding: exact compositing, orientation, every mode, geometry."""

import io

import numpy as np
import pytest
from PIL import Image

from uvit_jax.data import image_decoding
from uvit_jax.errors import UvitError

RNG = np.random.default_rng(0)
WHITE = (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decode(data: bytes, *, size: int = 0, channels: int = 3, background=WHITE) -> np.ndarray:
    return image_decoding.decode(
        data, "image.x", size=size, channels=channels, background=background
    )


def test_compositing_is_exact_on_hand_made_pixels():
    rgba = np.array(
        [[10, 20, 30, 255], [10, 20, 30, 0], [255, 0, 0, 128], [0, 0, 0, 1], [9, 9, 9, 51]],
        np.uint8,
    )
    over_white = [[10, 20, 30], [255, 255, 255], [255, 127, 127], [254, 254, 254], [206, 206, 206]]
    assert image_decoding.composite(rgba, WHITE).tolist() == over_white
    assert image_decoding.composite(rgba, (0, 100, 200))[2].tolist() == [128, 50, 100]


def test_compositing_rounds_to_nearest_for_every_value():
    colour, alpha, behind = np.meshgrid(*3 * [np.arange(0, 256, 5)], indexing="ij")
    rgba = np.stack([colour, colour, colour, alpha], -1).astype(np.uint8)
    exact = (colour * alpha + behind * (255 - alpha)) / 255
    got = np.stack(
        [image_decoding.composite(rgba[..., b, :], (5 * b,) * 3)[..., 0] for b in range(52)], -1
    )
    assert np.abs(got - exact).max() <= 0.5


def test_colours_of_invisible_pixels_do_not_bleed_into_a_resize():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :4] = [0, 0, 0, 255]
    reference = decode(encoded(Image.fromarray(rgba)), size=4)
    rgba[:, 4:, :3] = [255, 0, 0]  # red under zero alpha
    assert (decode(encoded(Image.fromarray(rgba)), size=4) == reference).all()
    assert (reference[..., 0] == reference[..., 1]).all()


def test_a_lossless_image_of_the_right_size_is_untouched():
    pixels = RNG.integers(0, 256, (8, 8, 3), np.uint8)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        data = encoded(Image.fromarray(pixels), kind, **options)
        assert (decode(data) == pixels).all()
        assert (decode(data, size=8) == pixels).all()


def test_all_modes_decode_to_the_same_pixels():
    grey = RNG.integers(0, 256, (6, 6), np.uint8)
    wanted = np.repeat(grey[..., None], 3, -1)
    plain = Image.fromarray(grey)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    opaque = np.full_like(grey, 255)
    variants = {
        "L": plain,
        "16 bit": deep,
        "LA": Image.merge("LA", [plain, Image.fromarray(opaque)]),
        "RGBA": plain.convert("RGBA"),
        "P": plain.convert("P"),
    }
    for name, variant in variants.items():
        assert (decode(encoded(variant)) == wanted).all(), name
    assert (decode(encoded(plain), channels=1) == grey[..., None]).all()
    assert set(np.unique(decode(encoded(plain.convert("1"))))) <= {0, 255}
    cmyk = decode(encoded(Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "JPEG"))
    assert cmyk[0, 0, 0] < 30 and cmyk[0, 0, 2] > 220


def test_transparent_palette_shows_the_background():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    pixels = decode(encoded(image, transparency=0), background=(1, 2, 3))
    assert pixels.tolist() == [[[1, 2, 3], [0, 0, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    upright = RNG.integers(0, 256, (3, 5, 3), np.uint8)
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(turned)), exif=exif)
    assert (decode(data) == upright).all()


@pytest.mark.parametrize("shape", [(7, 30), (30, 7), (5, 5), (64, 64), (33, 97), (1, 400)])
def test_fit_gives_a_square_that_keeps_the_centre(shape):
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[shape[0] // 2 :] = 255
    got = decode(encoded(Image.fromarray(pixels)), size=8)
    assert got.shape == (8, 8, 3)
    if shape[0] > 1:
        assert got[0].max() < 40 and got[-1].min() > 215


def test_fit_commutes_with_mirroring():
    pixels = RNG.integers(0, 256, (32, 48, 3), np.uint8)
    straight = decode(encoded(Image.fromarray(pixels)), size=16)
    mirrored = decode(encoded(Image.fromarray(pixels[:, ::-1].copy())), size=16)
    assert np.abs(straight[:, ::-1].astype(int) - mirrored).max() <= 1


def test_halving_is_the_mean_but_for_rounding():
    pixels = RNG.integers(0, 256, (16, 16, 3), np.uint8)
    mean = pixels.reshape(8, 2, 8, 2, 3).mean((1, 3))
    assert np.abs(decode(encoded(Image.fromarray(pixels)), size=8) - mean).max() <= 1


def test_to_float_reaches_both_ends_and_comes_back():
    pixels = np.arange(256, dtype=np.uint8)
    values = image_decoding.to_float(pixels)
    assert values.dtype == np.float32 and values[0] == -1 and values[255] == 1
    assert (np.round((values + 1) * 127.5).astype(np.uint8) == pixels).all()


def test_broken_images_raise_with_their_name():
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    for data in (whole[: len(whole) // 2], whole[:10], b"", b"not an image"):
        with pytest.raises(UvitError, match=r"image\.x cannot be decoded .* replace or remove"):
            decode(data)
    with pytest.raises(UvitError, match=r"image\.x: floating-point"):
        decode(encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"))
