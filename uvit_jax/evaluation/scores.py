"""The Inception Score and the kernel distance (KID). NumPy, in float64."""

import numpy as np

from uvit_jax.errors import UvitError


def inception_score(logits_NK: np.ndarray, *, splits: int = 10) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)), of Salimans et al. 2016 (arXiv:1606.03498), section 4.

    Args:
      logits_NK: of a classifier, in the order of the samples.
      splits: the score is computed on this many equal parts, as in the paper.

    Returns:
      (mean, standard deviation) over the splits; the mean lies in [1, K].

    Raises:
      UvitError: if there are fewer samples than splits.
    """
    count = len(logits_NK)
    if not 1 <= splits <= count:
        raise UvitError(f"the Inception Score of {count} samples cannot have {splits} splits")
    scores = []
    for part in range(splits):
        logits = logits_NK[part * count // splits : (part + 1) * count // splits]
        logits = np.asarray(logits, np.float64)
        logits = logits - logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        log_mean = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
        scores.append(np.exp((p * (log_p - log_mean)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def kernel_distance(
    samples_ND: np.ndarray,
    reference_MD: np.ndarray,
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The squared MMD with the kernel (x·y / D + 1)³; with the official Inception it is KID.

    Bińkowski et al. 2018 (arXiv:1801.01401), section 4. Unbiased: it may be negative, and does not
    depend on the number of samples, unlike the Fréchet distance.

    Args:
      subsets, size: number and size of the random subsets that are averaged over; size is at most
        the number of features. seed: of their choice.

    Returns:
      (mean, standard deviation) over the subsets.

    Raises:
      UvitError: with fewer than two features.
    """
    size = min(size, len(samples_ND), len(reference_MD))
    if size < 2:
        raise UvitError("KID needs at least 2 samples and 2 references")
    if size == len(samples_ND) == len(reference_MD):
        subsets = 1  # there is only one
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        x, y = (
            features[rng.choice(len(features), size, replace=False)]
            for features in (samples_ND, reference_MD)
        )
        within = [_kernel(a, a) for a in (x, y)]
        apart = sum((k.sum() - np.trace(k)) / (size * (size - 1)) for k in within)
        values.append(apart - 2 * _kernel(x, y).mean())
    return float(np.mean(values)), float(np.std(values))


def _kernel(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
    # Products in the precision of the features, sums in float64.
    return ((x_ND @ y_MD.T).astype(np.float64) / x_ND.shape[1] + 1) ** 3
