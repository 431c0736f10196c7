"""Whether fine-tuning on a few images overfits: samples that copy them, and drift of the model."""

import numpy as np

RATIO = 1 / 3
"""A sample is a copy if its distance to the nearest training image is less than this times that to
the second nearest image (Yoon et al. 2023, "Diffusion Probabilistic Models Generalize when They
Fail to Memorize")."""


def copy_rate(samples: np.ndarray, trained: np.ndarray, others: np.ndarray) -> float | None:
    """The share of samples that are copies of training images; None if there are no two images to
    compare distances to.

    Args:
      samples: (n, …), in pixels or latents. trained: (m, …), the training images.
      others: (k, …), other images of their class, which only the second distance takes; may be
        empty.
    """
    flat_nd, trained_md, others_kd = (
        np.asarray(x, np.float64).reshape(len(x), int(np.prod(np.shape(x)[1:])))
        for x in (samples, trained, others)
    )
    if len(trained_md) + len(others_kd) < 2:
        return None

    def distances(images_d: np.ndarray) -> np.ndarray:
        return np.linalg.norm(flat_nd[:, None] - images_d, axis=2)

    own_nm = np.sort(distances(trained_md), axis=1)
    second_n = own_nm[:, 1] if len(trained_md) > 1 else np.full(len(flat_nd), np.inf)
    if len(others_kd):
        second_n = np.minimum(second_n, distances(others_kd).min(axis=1))
    return float((own_nm[:, 0] < RATIO * second_n).mean())
