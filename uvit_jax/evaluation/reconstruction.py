"""How close reconstructions are to their originals: PSNR and SSIM."""

import numpy as np
from scipy.ndimage import correlate1d

SIGMA, RADIUS = 1.5, 5
"""Of SSIM's Gaussian window, 11 pixels wide."""


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The peak signal-to-noise ratio in dB of each example, (B,), float64; inf if equal.

    Args:
      a, b: float (B, …) in [-1, 1], whose range of 2 is the peak.
    """
    error = np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(4 / error.reshape(len(error), -1).mean(axis=1))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The structural similarity of each example, (B,), float64, 1 if equal.

    The mean over frames, channels and all positions where the whole window fits (Wang et al. 2004,
    eq. 13, with K1 = .01, K2 = .03 and the window above, narrower for images of less than 11
    pixels).

    Args:
      a, b: float (B, …, H, W, C) in [-1, 1].
    """
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    radius = min(RADIUS, (min(a.shape[-3:-1]) - 1) // 2)
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / SIGMA) ** 2)
    window /= window.sum()

    def mean(x: np.ndarray) -> np.ndarray:
        for axis in (-3, -2):
            x = correlate1d(x, window, axis=axis)
            inner = [slice(None)] * x.ndim
            inner[axis] = slice(radius, x.shape[axis] - radius)
            x = x[tuple(inner)]
        return x

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    values /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return values.reshape(len(values), -1).mean(axis=1)
