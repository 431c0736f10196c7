"""Decodes images to arrays of one size: every PIL mode, alpha, EXIF orientation. Deterministic."""

import io

import numpy as np
from PIL import Image, ImageOps

from uvit_jax.errors import UvitError


def decode(
    data: bytes | np.ndarray,
    name: str,
    *,
    size: int,
    channels: int,
    background: tuple[int, int, int],
) -> np.ndarray:
    """Decodes one image.

    The order is: EXIF orientation, 16 bit to 8, alpha over `background`, resize, centre crop,
    greyscale. Compositing before resizing keeps the colours of invisible pixels out.

    Args:
      data: a PNG, JPEG, WebP or any other format of Pillow; or pixels, uint8 (H, W, 3).
      name: the image's name in error messages.
      size: height and width of the result; 0 keeps those of the image.
      channels: 1 or 3.
      background: red, green, blue in 0 to 255.

    Returns:
      uint8 (H, W, channels), values 0 to 255.

    Raises:
      UvitError: if the image is broken or of an unsupported kind, naming it.
    """
    try:
        pixels = isinstance(data, np.ndarray)
        image = Image.fromarray(data) if pixels else Image.open(io.BytesIO(data))
        image.load()
        image = ImageOps.exif_transpose(image)
        image = _opaque(image, background)
    except UvitError as error:
        raise UvitError(f"{name}: {error}") from None
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        raise UvitError(
            f"the image {name} cannot be decoded ({error}); replace or remove it"
        ) from error
    if size:
        image = fit(image, size)
    if channels == 1:
        return np.asarray(image.convert("L"))[..., None]
    return np.asarray(image)


def composite(pixels: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Composites straight-alpha RGBA over an opaque colour.

    Args:
      pixels: uint8 (..., 4).
      background: red, green, blue in 0 to 255.

    Returns:
      uint8 (..., 3): alpha * colour + (1 - alpha) * background, rounded to nearest.
    """
    values = pixels.astype(np.int32)
    alpha = values[..., 3:]
    mixed = values[..., :3] * alpha + np.asarray(background, np.int32) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def to_float(pixels: np.ndarray) -> np.ndarray:
    """uint8 0 to 255 as float32 -1 to 1, both ends exact."""
    values = pixels.astype(np.float32)
    values /= 127.5
    values -= 1
    return values


def fit(image: Image.Image, size: int) -> Image.Image:
    """Resizes the short side to `size` (2x2 means, then bicubic) and crops the centre.

    This is the preprocessing of ADM (Dhariwal & Nichol 2021), the standard for ImageNet metrics.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    shape = (round(image.width * scale), round(image.height * scale))
    if shape != image.size:
        image = image.resize(shape, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _opaque(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Any PIL mode as RGB."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it
        deep = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip((deep * 255 + 32767) // 65535, 0, 255).astype(np.uint8))
    if image.mode == "F":
        raise UvitError("floating-point images are not supported; convert it to PNG or JPEG")
    if image.has_transparency_data:
        return Image.fromarray(composite(np.asarray(image.convert("RGBA")), background))
    return image.convert("RGB")
