"""Confidence intervals of clustered values: the images of one subject are not independent.

    clustered_interval(values, subjects)    a mean over images
    crossed(values, subjects, networks)     the same over several trained networks

The bootstrap resamples subjects with all their images, which reproduces the variance both between
and within subjects (Davison & Hinkley 1997, section 3.8; resampling images as well would count
their noise twice). All subjects have equal weight, whatever their number of images. Percentiles are
widened as Student's t is wider than a normal distribution (Hesterberg 2015, section 5.3.3). In
simulations with normal values, the coverage of 95 % intervals is 93 % with 6 subjects, 94.7 % with
10 and 95.3 % with 20; unwidened, 89 % with 10.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from scipy import special

from uvit_jax.errors import UvitError
from uvit_jax.evaluation.statistics import Interval

RESAMPLES = 4000
_AT_ONCE = 1 << 22  # random numbers at once


def cluster_means(
    values: Sequence[float], clusters: Sequence[Hashable]
) -> tuple[np.ndarray, list[Hashable]]:
    """The mean of each cluster, float64 (S,), and the clusters in order of first appearance.

    Raises:
      UvitError: if there are no values, one is not finite, or their numbers differ.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise UvitError("an interval needs one or more finite values")
    if len(clusters) != len(array):
        raise UvitError(f"{len(array)} values have {len(clusters)} clusters; each value needs one")
    names = list(dict.fromkeys(clusters))
    index = {name: i for i, name in enumerate(names)}
    rows = np.fromiter((index[c] for c in clusters), np.int64, len(array))
    sums = np.bincount(rows, weights=array, minlength=len(names))
    return sums / np.bincount(rows, minlength=len(names)), names


def clustered_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean over clusters of their means, with a bootstrap interval over clusters.

    Args:
      values: one per image. clusters: the subject of each.
      confidence: the coverage, in (0, 1).
      resamples: of the clusters. seed: of the resampling.

    Returns:
      The interval; `count` is the number of clusters. With one cluster, low and high are NaN.

    Raises:
      UvitError: as `cluster_means`, or if confidence is not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise UvitError(f"confidence must lie in (0, 1), got {confidence}")
    means_S, names = cluster_means(values, clusters)
    S, mean = len(names), float(means_S.mean())
    if S == 1:
        return Interval(mean=mean, low=np.nan, high=np.nan, count=1)
    rng = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // S)
    parts = [
        means_S[rng.integers(0, S, (min(rows, resamples - start), S))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    # The bootstrap's variance divides by S, not by S - 1.
    quantile = special.stdtrit(S - 1, (1 + confidence) / 2) * np.sqrt(S / (S - 1))
    tail = float(special.ndtr(-quantile))
    low, high = np.quantile(np.concatenate(parts), [tail, 1 - tail])
    return Interval(mean=mean, low=float(low), high=float(high), count=S)


@dataclasses.dataclass(frozen=True)
class Crossed:
    """A mean over K networks × S subjects, and its uncertainty over both.

    Attributes:
      mean: of the cells' means. interval: of a bootstrap over networks and subjects.
      variance: of the mean. df: its degrees of freedom; 0 if there is one cell.
    """

    mean: float
    interval: Interval
    variance: float
    df: float

    def p(self, null: float, side: int = 0) -> float:
        """The p-value of the null that the mean is `null` (side 0), at most `null` (side 1) or at
        least (side -1), by Student's t. NaN if the uncertainty is unknown."""
        if not self.df:
            return float("nan")
        if not self.variance:
            away = side * (self.mean - null) if side else abs(self.mean - null)
            return 0.0 if away > 0 else 1.0
        t = (self.mean - null) / self.variance**0.5
        if side:
            return float(special.stdtr(self.df, -side * t))
        return float(2 * special.stdtr(self.df, -abs(t)))


def crossed(
    values: Sequence[float],
    subjects: Sequence[Hashable],
    networks: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Crossed:
    """The mean over networks × subjects, with a bootstrap that resamples both.

    The two are independent (Owen 2007, the pigeonhole bootstrap). Subjects are resampled as in
    `clustered_interval`; of networks there are few, and what they add is drawn from Student's t
    with their standard error. With one network it is `clustered_interval`. In simulations with
    normal values of 3 networks × 24 subjects, the coverage of 95 % intervals is 95 to 99 %.

    Args:
      values: one per image. subjects, networks: of each. Subjects that not all networks have are
        left out.

    Raises:
      UvitError: as `clustered_interval`; or if no subject has a value of every network.
    """
    names = list(dict.fromkeys(networks))
    parts = []
    for name in names:
        rows = [i for i, network in enumerate(networks) if network == name]
        means, clusters = cluster_means([values[i] for i in rows], [subjects[i] for i in rows])
        parts.append(dict(zip(clusters, means, strict=True)))
    shared = [subject for subject in parts[0] if all(subject in part for part in parts)]
    if not shared:
        raise UvitError("no subject has values of every network")
    cells_KS = np.array([[part[subject] for subject in shared] for part in parts])
    K, S = cells_KS.shape
    mean = float(cells_KS.mean())
    options = dict(confidence=confidence, resamples=resamples, seed=seed)
    # The variance of the mean, of each factor with more than one level, and its freedom.
    effects = [cells_KS.mean(axis=1 - axis) - mean for axis in (0, 1) if cells_KS.shape[axis] > 1]
    variances = [float((e**2).sum()) / (len(e) * (len(e) - 1)) for e in effects]
    variance = sum(variances)
    spread = sum(v**2 / (len(e) - 1) for v, e in zip(variances, effects, strict=True))
    df = variance**2 / spread if spread else float(max(K, S) - 1)
    if K == 1:
        interval = clustered_interval(cells_KS[0], shared, **options)
        return Crossed(mean, interval, variance, df)
    rng, quantile = np.random.default_rng(seed), (1 + confidence) / 2
    total = mean + variances[0] ** 0.5 * rng.standard_t(K - 1, resamples)
    if S > 1:
        wider = special.stdtrit(S - 1, quantile) / special.ndtri(quantile) * np.sqrt(S / (S - 1))
        total += wider * effects[1][rng.integers(0, S, (resamples, S))].mean(axis=1)
    low, high = np.quantile(total, [1 - quantile, quantile])
    interval = Interval(mean=mean, low=float(low), high=float(high), count=S)
    return Crossed(mean, interval, variance, df)


def holm(p_values: Mapping[Hashable, float]) -> dict[Hashable, float]:
    """p-values adjusted for multiple comparisons (Holm 1979)."""
    ordered = sorted(p_values, key=p_values.__getitem__)
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def worst(
    values: Sequence[float], clusters: Sequence[Hashable], k: int
) -> list[tuple[Hashable, float]]:
    """The k clusters with the lowest means, ascending."""
    means_S, names = cluster_means(values, clusters)
    return [(names[i], float(means_S[i])) for i in np.argsort(means_S, kind="stable")[:k]]


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Which points (N, D) are Pareto-optimal, where higher is better on all axes: bool (N,)."""
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise UvitError(f"a Pareto front needs finite points (N, D), got {points.shape}")
    as_good = (points[:, None] >= points[None]).all(axis=-1)
    better = (points[:, None] > points[None]).any(axis=-1)
    return ~(as_good & better).any(axis=0)


def ratio_interval(
    numerator: tuple[float, float, int],
    denominator: tuple[float, float, int],
    *,
    confidence: float = 0.95,
) -> Interval:
    """The ratio of two independent means, with Fieller's interval (1954).

    Args:
      numerator, denominator: (estimate, variance of the estimate, degrees of freedom); the smaller
        degrees of freedom are used.

    Returns:
      The interval, unbounded if the denominator does not differ significantly from 0. `count` is
      the degrees of freedom + 1.
    """
    (a, var_a, df_a), (b, var_b, df_b) = numerator, denominator
    df = min(df_a, df_b)
    ratio = a / b if b else float("nan")
    if df < 1:
        return Interval(mean=ratio, low=np.nan, high=np.nan, count=df + 1)
    t2 = float(special.stdtrit(df, (1 + confidence) / 2)) ** 2
    leading = b * b - t2 * var_b
    if leading <= 0:
        return Interval(mean=ratio, low=-np.inf, high=np.inf, count=df + 1)
    root = np.sqrt(max((a * b) ** 2 - leading * (a * a - t2 * var_a), 0.0))
    low, high = (float((a * b + sign * root) / leading) for sign in (-1, 1))
    return Interval(mean=ratio, low=low, high=high, count=df + 1)


def break_even(
    finetune: Sequence[float],
    context: Sequence[float],
    lora: Sequence[float],
    *,
    confidence: float = 0.95,
) -> Interval:
    """The number of images per subject at which fine-tuning breaks even: n* = t_f / (t_c - t_l).

    Args:
      finetune: seconds per subject. context, lora: seconds per image, in context and with adapters.
        An interval needs two or more measurements of each.

    Returns:
      n* with Fieller's interval. Mean and high are infinite if images in context are no slower, and
      high alone if they are not significantly slower.

    Raises:
      UvitError: if times are missing, not finite or not positive.
    """
    stats = []
    for name, times in (("finetune", finetune), ("context", context), ("lora", lora)):
        array = np.asarray(times, np.float64)
        if array.ndim != 1 or not array.size or not (np.isfinite(array) & (array > 0)).all():
            raise UvitError(f"break-even needs positive times, got {name}={list(times)}")
        spread = array.var(ddof=1) / array.size if array.size > 1 else 0.0
        stats.append((float(array.mean()), float(spread), array.size - 1))
    (f, var_f, df_f), (c, var_c, df_c), (o, var_o, df_o) = stats
    saved = (c - o, var_c + var_o, min(df_c, df_o))
    interval = ratio_interval((f, var_f, df_f), saved, confidence=confidence)
    if c <= o or np.isinf(interval.high):
        least = _least(f, saved, confidence)
        mean = np.inf if c <= o else interval.mean
        return Interval(mean=mean, low=least, high=np.inf, count=interval.count)
    return interval


def _least(finetune: float, saved: tuple[float, float, int], confidence: float) -> float:
    """The lower end of n* where the upper is infinite."""
    mean, variance, df = saved
    most = mean + float(special.stdtrit(df, (1 + confidence) / 2)) * variance**0.5
    return finetune / most if most > 0 else np.inf
