"""Resized square crops of images: one subject of a scene, the input of a judge. NumPy."""

import numpy as np

MARGIN = 1.05
"""Half the side of a subject's crop, in units of its scale: its extent and a little margin."""


def crop(images_BHWC: np.ndarray, centre_B2: np.ndarray, half_B: np.ndarray, size: int):
    """Crops a square from every image and resizes it, bilinearly with antialiasing.

    Outside the image, its border is repeated.

    Args:
      images_BHWC: float32, of any range. H = W.
      centre_B2: the square's centre (x, y), in the image's coordinates [-1, 1]², y up.
      half_B: half its side. size: of the crop, in pixels.

    Returns:
      float32 (B, size, size, C).
    """
    centre_B2, half_B = np.asarray(centre_B2, np.float32), np.asarray(half_B, np.float32)
    side = images_BHWC.shape[1]
    rows_BSH = _weights(-centre_B2[:, 1], half_B, side, size)
    columns_BSW = _weights(centre_B2[:, 0], half_B, side, size)
    images_BHWC = np.asarray(images_BHWC, np.float32)
    B, H, W, C = images_BHWC.shape
    rows = np.matmul(rows_BSH, images_BHWC.reshape(B, H, W * C)).reshape(B, size, W, C)
    return np.matmul(columns_BSW[:, None], rows)


def _weights(centre_B: np.ndarray, half_B: np.ndarray, side: int, size: int) -> np.ndarray:
    """(B, size, side): the weight of each image pixel of a row or column in each crop pixel."""
    steps = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    positions_BS = (centre_B[:, None] + half_B[:, None] * steps + 1) * (side / 2) - 0.5
    positions_BS = np.clip(positions_BS, 0, side - 1)
    width_B = np.maximum(half_B * side / size, 1)  # image pixels per crop pixel
    far_BSH = np.abs(positions_BS[..., None] - np.arange(side, dtype=np.float32))
    weights = np.maximum(0, 1 - far_BSH / width_B[:, None, None])
    return weights / weights.sum(axis=-1, keepdims=True)
