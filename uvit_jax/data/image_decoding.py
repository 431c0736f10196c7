"""Decodes images to arrays of one size: every PIL mode, alpha, EXIF orientation. Deterministic.

Files are not trusted: only `FORMATS` are opened, whatever a file is called, and only up to
`MAX_PIXELS`, which is checked before anything is decoded.
"""

import io
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from uvit_jax.data.buckets import nearest_sizes
from uvit_jax.errors import UvitError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 2**27
"""134 million: more than an image of 11585 by 11585 has."""

# `_opened` refuses large images itself, and images with a damaged EXIF are taken as upright.
warnings.filterwarnings("ignore", module="PIL")

_TRANSPOSE = Image.Transpose
_UPRIGHT = {  # by the EXIF orientation
    2: _TRANSPOSE.FLIP_LEFT_RIGHT,
    3: _TRANSPOSE.ROTATE_180,
    4: _TRANSPOSE.FLIP_TOP_BOTTOM,
    5: _TRANSPOSE.TRANSPOSE,
    6: _TRANSPOSE.ROTATE_270,
    7: _TRANSPOSE.TRANSVERSE,
    8: _TRANSPOSE.ROTATE_90,
}
_OTHERS = {  # what else is found under the name of an image, by its first bytes
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"8BPS": "a Photoshop document",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive",
    b"version https://git-lfs": "a Git LFS pointer (run `git lfs pull`)",
}


def decode(
    data: bytes | np.ndarray,
    name: str,
    *,
    sizes: Sequence[tuple[int, int]],
    channels: int,
    background: tuple[int, int, int],
    mask: bytes | None = None,
) -> np.ndarray:
    """Decodes one image.

    The order is: EXIF orientation, 16 bit to 8, alpha over `background`, resize, centre crop,
    greyscale. Compositing before resizing keeps the colours of invisible pixels out.

    Args:
      data: a PNG, JPEG or WebP; or pixels, uint8 (H, W, 3).
      name: the image's name in error messages.
      sizes: heights and widths of which the result has the nearest (see `nearest_sizes`); empty
        keeps those of the image.
      channels: 1 or 3.
      background: red, green, blue in 0 to 255.
      mask: an image of the same size, white where the image is opaque and black where it is
        transparent.

    Returns:
      uint8 (H, W, channels), values 0 to 255.

    Raises:
      UvitError: if the image is broken, of another format or larger than `MAX_PIXELS`, naming it.
    """
    try:
        pixels = isinstance(data, np.ndarray)
        image = Image.fromarray(data) if pixels else _opened(io.BytesIO(data))
        image.load()
        if (orientation := _orientation(image)) != 1:
            image = image.transpose(_UPRIGHT[orientation])
        image = _opaque(image, background)
        if mask is not None:
            image = _opaque(_masked(image, mask), background)
        if sizes:
            shape = (image.height, image.width)
            image = fit(image, sizes[0 if len(sizes) == 1 else nearest_sizes(shape, sizes)[0]])
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        raise UvitError(
            f"the image {name} cannot be decoded ({_reason(error)}); replace or remove it"
        ) from error
    if channels == 1:
        return np.asarray(image.convert("L"))[..., None]
    return np.asarray(image)


def problem(file: Path) -> str | None:
    """Why a file is no image that `decode` takes, or None. Reads headers, and PNG's checksums."""
    try:
        _check_regular(file)
        with file.open("rb") as stream, _opened(stream) as image:
            image.verify()
    except Exception as error:  # Pillow's readers raise a dozen kinds
        return _reason(error)


def problems(files: Iterable[Path]) -> list[str]:
    """The `problem` of each file that has one, as `FILE (reason)`, in their order."""
    files = list(files)
    with ThreadPoolExecutor(8) as pool:
        reasons = pool.map(problem, files)
        return [f"{file} ({why})" for file, why in zip(files, reasons, strict=True) if why]


def common_shape(files: Iterable[Path]) -> tuple[int, int] | None:
    """The common height and width of all images, after EXIF orientation, or None.

    Raises:
      UvitError: as `upright_shape`.
    """
    shapes = set(upright_shapes(files))
    return shapes.pop() if len(shapes) == 1 else None


def upright_shapes(files: Iterable[Path]) -> list[tuple[int, int]]:
    """`upright_shape` of each file."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(upright_shape, files))


def upright_shape(file: Path) -> tuple[int, int]:
    """The height and width of an image after EXIF orientation.

    Raises:
      UvitError: if it cannot be opened.
    """
    try:
        _check_regular(file)
        with file.open("rb") as stream:
            return _upright_shape(stream)
    except Exception as error:
        raise UvitError(
            f"the image {file} cannot be opened ({_reason(error)}); replace or remove it"
        ) from error


def encoded_shape(data: bytes, name: str) -> tuple[int, int]:
    """The height and width of an encoded image after EXIF orientation.

    Raises:
      UvitError: if it cannot be opened, with its name.
    """
    try:
        return _upright_shape(io.BytesIO(data))
    except Exception as error:
        raise UvitError(
            f"the image {name} cannot be opened ({_reason(error)}); replace or remove it"
        ) from error


def read_file(file: Path) -> bytes:
    """The bytes of an image file.

    Raises:
      UvitError: if it cannot be read, or is a pipe or device, whose reading might never end.
    """
    try:
        _check_regular(file)
        return file.read_bytes()
    except (OSError, UvitError) as error:
        raise UvitError(
            f"cannot read the image {file}: {getattr(error, 'strerror', None) or error}"
        ) from error


def composite(pixels: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Composites straight-alpha RGBA over an opaque colour.

    Args:
      pixels: uint8 (..., 4).
      background: red, green, blue in 0 to 255.

    Returns:
      uint8 (..., 3): alpha * colour + (1 - alpha) * background, rounded to nearest.
    """
    values = pixels.astype(np.uint16)  # 255 * 255 + 127 fits
    alpha = values[..., 3:]
    mixed = values[..., :3] * alpha + np.asarray(background, np.uint16) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def to_float(pixels: np.ndarray) -> np.ndarray:
    """uint8 0 to 255 as float32 -1 to 1, both ends exact."""
    values = pixels.astype(np.float32)
    values /= 127.5
    values -= 1
    return values


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resizes to cover (H, W) exactly along one side (2x2 means, then bicubic), and crops the
    centre.

    For squares this is the preprocessing of ADM (Dhariwal & Nichol 2021), the standard for ImageNet
    metrics.

    Raises:
      UvitError: if the image is so narrow that the resized one would exceed `MAX_PIXELS`.
    """
    height, width = size
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    shape = (round(image.width * scale), round(image.height * scale))
    if shape[0] * shape[1] > MAX_PIXELS:
        raise UvitError(f"{image.width}×{image.height} is too narrow for {width}×{height}; crop it")
    if shape != image.size:
        image = image.resize(shape, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _upright_shape(stream: IO[bytes]) -> tuple[int, int]:
    with _opened(stream) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def _masked(image: Image.Image, mask: bytes) -> Image.Image:
    """An RGB image with a mask as its alpha; UvitError if their sizes differ."""
    alpha = _opened(io.BytesIO(mask))
    if alpha.size != image.size:
        raise UvitError(
            f"its mask is {alpha.width}×{alpha.height} pixels, the image {image.width}×"
            f"{image.height}"
        )
    image.putalpha(_opaque(alpha, (0, 0, 0)).convert("L"))
    return image


def _opened(stream: IO[bytes]) -> Image.Image:
    """An image whose header was read; UvitError if it is of another format or too large."""
    head = stream.read(64)
    stream.seek(0)
    try:
        image = Image.open(stream, formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise UvitError(f"{_kind(head)}, not PNG, JPEG or WebP") from None
    except Image.DecompressionBombError:
        raise UvitError(f"it has more than {MAX_PIXELS} pixels; shrink it") from None
    if image.width * image.height > MAX_PIXELS:
        raise UvitError(
            f"it has {image.width}×{image.height} pixels, more than {MAX_PIXELS}; shrink it"
        )
    return image


def _kind(head: bytes) -> str:
    """What a file is, by its first bytes."""
    if not head:
        return "it is empty"
    if head[4:8] == b"ftyp":
        return f"it is of the kind {head[8:12].decode('ascii', 'replace')!r} (such as HEIC)"
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html", b"<?xml", b"<svg "):
        return "it is a page of HTML or XML"
    kind = next((kind for start, kind in _OTHERS.items() if head.startswith(start)), "")
    return f"it is {kind}" if kind else "it is of an unknown format"


def _check_regular(file: Path) -> None:
    file.stat()  # OSError if there is none
    if not file.is_file():
        raise UvitError("it is not a regular file")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. An image whose EXIF cannot be read is upright."""
    try:
        value = image.getexif().get(0x0112, 1)
        return value if isinstance(value, int) and value in _UPRIGHT else 1
    except Exception:  # Pillow's parser raises a dozen kinds
        image.load()  # and its own errors, if it is the image that is broken
        return 1


def _reason(error: Exception) -> str:
    """An error in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _opaque(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Any PIL mode as RGB."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it
        deep = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        return Image.fromarray(composite(np.asarray(image.convert("RGBA")), background))
    return image.convert("RGB")
