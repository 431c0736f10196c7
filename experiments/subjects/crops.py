"""Square cut-outs of pictures, resized: one subject of a scene as a judge sees it. NumPy."""

import numpy as np

MARGIN = 1.05
"""Half the side of a subject's cut-out, in units of its scale: what it can fill, and a little."""


def crop(pictures_BHWC: np.ndarray, centre_B2: np.ndarray, half_B: np.ndarray, size: int):
    """Cuts a square out of every picture and resizes it, bilinearly and without aliasing.

    What lies outside a picture has the colour of its border.

    Args:
      pictures_BHWC: float32, of any range. H = W.
      centre_B2: the square's middle (x, y), with the picture as [-1, 1]² and y up.
      half_B: half its side. size: of the result, in pixels.

    Returns:
      float32 (B, size, size, C).
    """
    centre_B2, half_B = np.asarray(centre_B2, np.float32), np.asarray(half_B, np.float32)
    side = pictures_BHWC.shape[1]
    rows_BSH = _weights(-centre_B2[:, 1], half_B, side, size)
    columns_BSW = _weights(centre_B2[:, 0], half_B, side, size)
    pictures_BHWC = np.asarray(pictures_BHWC, np.float32)
    B, H, W, C = pictures_BHWC.shape
    rows = np.matmul(rows_BSH, pictures_BHWC.reshape(B, H, W * C)).reshape(B, size, W, C)
    return np.matmul(columns_BSW[:, None], rows)


def of_box(box: tuple[int, int, int, int], side: int) -> tuple[tuple[float, float], float]:
    """Middle and half side of the square around a box (left, top, right, bottom) of a picture with
    this side, all in pixels; a tenth wider than the box."""
    left, top, right, bottom = box
    centre = ((left + right) / side - 1, 1 - (top + bottom) / side)
    return centre, 1.1 * max(right - left, bottom - top) / side


def _weights(centre_B: np.ndarray, half_B: np.ndarray, side: int, size: int) -> np.ndarray:
    """(B, size, side): what each pixel of a row or column counts in each of the cut-out."""
    steps = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    places_BS = (centre_B[:, None] + half_B[:, None] * steps + 1) * (side / 2) - 0.5
    places_BS = np.clip(places_BS, 0, side - 1)
    width_B = np.maximum(half_B * side / size, 1)  # pixels of the picture a pixel of the cut-out
    far_BSH = np.abs(places_BS[..., None] - np.arange(side, dtype=np.float32))
    weights = np.maximum(0, 1 - far_BSH / width_B[:, None, None])
    return weights / weights.sum(axis=-1, keepdims=True)
