"""Motion in videos, measured from pixels: dense optical flow, and the path of the camera.

Both assume small motions between frames, such as of 8 frames or more. Videos are float
(T, H, W, C) in [-1, 1]; image coordinates are x to the right and y up, the image is [-1, 1]².
"""

import itertools
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

SCALES = (4.0, 2.0, 1.0, 0.5)
"""Standard deviations in pixels, from coarse to fine, of the blur before an estimate; those of a
fraction of the image's side are left out."""
WINDOW = 2.5
"""Of optical flow: standard deviation in pixels of the neighbourhood that moves together."""
DAMPING = 1e-3
CAMERA_CHANGES = ("x", "y", "zoom", "roll")


def optical_flow(video: np.ndarray) -> np.ndarray:
    """The motion of each pixel to the next frame: float32 (T - 1, H, W, 2), (x, y up) in pixels.

    Iterated from coarse to fine (Lucas & Kanade 1981), with a Gaussian window and damping, so that
    where nothing is seen nothing moves.
    """
    video = np.asarray(video, np.float32)
    flows = [_flow(a, b) for a, b in itertools.pairwise(video)]
    return np.asarray(flows, np.float32).reshape(len(video) - 1, *video.shape[1:3], 2)


def dynamic_degree(video: np.ndarray) -> float:
    """The mean of the largest 5% of motions between frames, in pixels per frame relative to the
    image's side (VBench: Huang et al. 2024, with Lucas-Kanade's flow in place of RAFT's)."""
    if len(video) < 2:
        return 0.0
    flow = optical_flow(video)
    size = np.sort(np.linalg.norm(flow, axis=-1).reshape(len(flow), -1), axis=1)
    count = max(1, size.shape[1] // 20)
    return float(size[:, -count:].mean() / max(video.shape[1:3]))


def camera_path(video: np.ndarray) -> np.ndarray:
    """The path of a camera that would explain a video: float64 (T, 4) of `CAMERA_CHANGES`.

    Changes since the first frame: shift in half image sides (scene units, if the first frame has
    zoom 1), log of the zoom factor, and roll in radians, counter-clockwise. Between two frames it
    is the similarity that best aligns them (Gauss-Newton from coarse to fine, with Cauchy's robust
    weights, so that what moves by itself counts little).
    """
    video = np.asarray(video, np.float32)
    x, y, zoom, roll = 0.0, 0.0, 0.0, 0.0
    path = [(x, y, zoom, roll)]
    for before, after in itertools.pairwise(video):
        a, b, shift_x, shift_y = _similarity(before, after)
        zoom += 0.5 * np.log((1 + a) ** 2 + b**2)
        roll -= np.arctan2(b, 1 + a)
        # A point u is seen at s R(-Δroll) u + d, with d = -zoom' R(-roll') (camera' - camera).
        c, s = np.cos(roll) / np.exp(zoom), np.sin(roll) / np.exp(zoom)
        x -= c * shift_x - s * shift_y
        y -= s * shift_x + c * shift_y
        path.append((x, y, zoom, roll))
    return np.array(path)


def camera_moves(change: Sequence[float], threshold: float = 0.075) -> frozenset[str]:
    """The moves of a camera, from its changes (4,) of `CAMERA_CHANGES` over a video: "pan right",
    "pan left", "tilt up", "tilt down", "zoom in", "zoom out", "roll left" or "roll right"; none
    for a static one.

    Args:
      threshold: the least change, in scene units, log of a factor or radians; half of the smallest
        amplitude of totem videos.
    """
    words = (("pan right", "pan left"), ("tilt up", "tilt down"))
    words += (("zoom in", "zoom out"), ("roll left", "roll right"))
    return frozenset(
        pair[0] if value > 0 else pair[1]
        for pair, value in zip(words, change, strict=True)
        if abs(value) > threshold
    )


def _scales(side: int) -> tuple[float, ...]:
    return tuple(s for s in SCALES if 10 * s <= side) or SCALES[-1:]


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def _sampled(image_HWC: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The image at positions in pixels, bilinear, constant beyond its edges."""
    H, W, _ = image_HWC.shape
    row, column = np.clip(row, 0, H - 1), np.clip(column, 0, W - 1)
    i, j = np.minimum(row.astype(int), H - 2), np.minimum(column.astype(int), W - 2)
    di, dj = (row - i)[..., None], (column - j)[..., None]
    above = image_HWC[i, j] * (1 - dj) + image_HWC[i, j + 1] * dj
    below = image_HWC[i + 1, j] * (1 - dj) + image_HWC[i + 1, j + 1] * dj
    return above * (1 - di) + below * di


def _flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Of two frames (H, W, C): (H, W, 2) in pixels, (x, y up)."""
    H, W, _ = before.shape
    row, column = np.meshgrid(np.arange(H), np.arange(W), indexing="ij")
    u, v = np.zeros((H, W)), np.zeros((H, W))  # along rows and columns
    for sigma in _scales(min(H, W)):
        one, two = _blurred(before, sigma), _blurred(after, sigma)
        d_row, d_column = np.gradient(two, axis=0), np.gradient(two, axis=1)
        for _ in range(4):
            at = (row + u, column + v)
            gr, gc = _sampled(d_row, *at), _sampled(d_column, *at)
            error = _sampled(two, *at) - one
            rr, rc, cc, re, ce = (
                ndimage.gaussian_filter((a * b).sum(-1), WINDOW, mode="nearest")
                for a, b in ((gr, gr), (gr, gc), (gc, gc), (gr, error), (gc, error))
            )
            rr, cc = rr + DAMPING, cc + DAMPING
            determinant = rr * cc - rc * rc
            du, dv = (rc * ce - cc * re) / determinant, (rc * re - rr * ce) / determinant
            u, v = u + np.clip(du, -2, 2), v + np.clip(dv, -2, 2)
    return np.stack([v, -u], axis=-1)


def _similarity(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float, float]:
    """(a, b, dx, dy) such that the point (x, y) of `before` is at ((1 + a) x - b y + dx, b x +
    (1 + a) y + dy) in `after`."""
    H, W, _ = before.shape
    side = max(H, W) / 2  # pixels per unit
    row, column = np.meshgrid(np.arange(H), np.arange(W), indexing="ij")
    x, y = (column - (W - 1) / 2) / side, ((H - 1) / 2 - row) / side
    q = np.zeros(4)
    for sigma in _scales(min(H, W)):
        one, two = _blurred(before, sigma), _blurred(after, sigma)
        d_row, d_column = np.gradient(two, axis=0), np.gradient(two, axis=1)
        for _ in range(8):
            a, b, dx, dy = q
            u, v = (1 + a) * x - b * y + dx, b * x + (1 + a) * y + dy
            at = (H - 1) / 2 - v * side, u * side + (W - 1) / 2
            inside = (at[0] >= 0) & (at[0] <= H - 1) & (at[1] >= 0) & (at[1] <= W - 1)
            error = (_sampled(two, *at) - one)[inside]
            gx, gy = _sampled(d_column, *at)[inside] * side, -_sampled(d_row, *at)[inside] * side
            px, py = x[inside, None], y[inside, None]
            jacobian = np.stack([gx * px + gy * py, gy * px - gx * py, gx, gy], axis=-1)
            size = np.sqrt((error**2).mean(-1))
            scale = 1.5 * np.median(size) + 1e-3
            weight = 1 / (1 + (size / scale) ** 2)
            flat = jacobian.reshape(-1, 4) * np.repeat(weight, error.shape[-1])[:, None]
            normal = flat.T @ jacobian.reshape(-1, 4)
            normal += DAMPING * len(error) * np.diag([1.0, 1.0, 1.0, 1.0])
            step = np.linalg.solve(normal, flat.T @ error.reshape(-1))
            q = q - np.clip(step, -0.1, 0.1)
            if np.abs(step).max() < 1e-4:
                break
    return tuple(q)
