"""Decoding: exact compositing, orientation, every mode, geometry."""

import io
import struct
import zlib
from binascii import crc32

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
        data,
        "image.x",
        sizes=((size, size),) if size else (),
        channels=channels,
        background=background,
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


def test_only_the_listed_formats_are_opened_whatever_the_name():
    image = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8))
    for kind in ("GIF", "BMP", "TIFF", "EPS", "PDF", "PPM", "TGA", "ICO", "PCX", "JPEG2000"):
        with pytest.raises(UvitError, match=r"image\.x .*not PNG, JPEG or WebP.*replace or remove"):
            decode(encoded(image, kind))
    for kind in image_decoding.FORMATS:
        assert decode(encoded(image, kind)).shape == (8, 8, 3)


@pytest.mark.parametrize(
    "data, kind",
    [
        (b"", "empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><title>404</title>", "HTML"),
    ],
)
def test_what_another_file_is_is_named(data, kind):
    with pytest.raises(UvitError, match=kind):
        decode(data)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header declares a size and whose pixels are missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(2**14, 2**13 + 1), (2**31 - 1, 2**31 - 1), (2**28, 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(size, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(UvitError, match=f"more than {image_decoding.MAX_PIXELS}.*; shrink it"):
        decode(png_of_size(*size))


def test_too_narrow_an_image_is_refused_before_it_is_resized():
    for shape in ((1, 40000), (40000, 1)):
        with pytest.raises(UvitError, match=r"image\.x .*too narrow for 256×256; crop it"):
            decode(encoded(Image.new("L", shape)), size=256)


@pytest.mark.parametrize("kind", image_decoding.FORMATS)
@pytest.mark.parametrize("at", range(0, 40, 2))
def test_an_image_with_damaged_exif_is_decoded_or_refused_in_a_sentence(kind, at, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    data = bytearray(encoded(Image.new("RGB", (5, 3)), kind, exif=exif))
    start = max(data.find(b"II*\0"), data.find(b"MM\0*"))
    data[start + at : start + at + 4] = b"\xff\xff\xff\xff"
    if kind == "PNG":  # so that its checksum is not what is wrong
        end = data.index(b"eXIf")
        length = struct.unpack(">I", data[end - 4 : end])[0]
        data[end + 4 + length : end + 8 + length] = struct.pack(
            ">I", crc32(data[end : end + 4 + length])
        )
    file = tmp_path / "a.png"
    file.write_bytes(data)
    assert image_decoding.problem(file) is None
    assert decode(bytes(data)).shape[:2] == image_decoding.upright_shape(file)


def test_an_unknown_orientation_is_upright():
    for value in (9, 0, 65535):
        exif = Image.Exif()
        exif[0x0112] = value
        assert decode(encoded(Image.new("RGB", (5, 3)), exif=exif)).shape == (3, 5, 3)
