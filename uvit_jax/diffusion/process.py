"""Adding noise, and one table that converts every prediction into every other.

The state is a pytree whose top level may be a dict by segment, {"image": (B, H, W, C), ...}. Times
t lie in [0, 1]: one array, () or (B,), for all segments, or a dict of such arrays by segment.
Results are float32, or float64 where an input is. Nothing here depends on what a segment is.

A prediction is a linear combination p = a(t) x0 + b(t) eps:

    name       a        b          source
    x0         1        0          Ho et al. 2020
    eps        0        1          Ho et al. 2020
    v          -sigma   alpha      Salimans & Ho 2022, v = alpha eps - sigma x0
    velocity   alpha'   sigma'     dx/dt of the path; eps - x0 for a rectified flow
    score      0        -1/sigma   grad log p(x_t | x0) (Song et al. 2021)

Together with x_t = alpha x0 + sigma eps it determines x0 and eps, unless the determinant
alpha b - sigma a vanishes: `eps` and `score` do not determine the data where alpha = 0, nor `x0`
the noise where sigma = 0. There the determinant is floored at 1e-6 (keeping its sign), as is sigma
in `score`: conversions are finite at both ends of every schedule, exact where the result is
determined, and amplified errors where it is not. Samplers keep away from such times
(solvers/stability.py).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from uvit_jax.diffusion.schedule import TINY, Schedule
from uvit_jax.errors import UvitError, nearest

Tree = Any
Times = Any  # an array () or (B,), or a dict of them by segment
Prediction = Literal["x0", "eps", "v", "velocity", "score"]

_COEFFICIENTS = {
    "x0": lambda s, t: (jnp.ones_like(t), jnp.zeros_like(t)),
    "eps": lambda s, t: (jnp.zeros_like(t), jnp.ones_like(t)),
    "v": lambda s, t: (-s.sigma(t), s.alpha(t)),
    "velocity": lambda s, t: (s.d_alpha_dt(t), s.d_sigma_dt(t)),
    "score": lambda s, t: (jnp.zeros_like(t), -1 / jnp.maximum(s.sigma(t), TINY)),
}


class Denoised(NamedTuple):
    """The result of one network evaluation for a sampler; pytrees like the state x_t.

    Attributes:
      x0: the expected data, float32.
      eps: the expected noise; x_t = alpha x0 + sigma eps.
      log_variance_mix: only for networks with a learned range (Nichol & Dhariwal 2021, eq. 15):
        their v, in [0, 1] from the small to the large posterior variance. Otherwise None.
    """

    x0: Tree
    eps: Tree
    log_variance_mix: Tree = None


def coefficients(prediction: str, schedule: Schedule, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The row (a, b) of the table at times t; arrays like t.

    Raises:
      UvitError: if `prediction` is not in the table.
    """
    if prediction not in _COEFFICIENTS:
        hint = nearest(prediction, _COEFFICIENTS)
        raise UvitError(f"prediction={prediction!r} is not a known value{hint}")
    return _COEFFICIENTS[prediction](schedule, _wide(t))


def determinant(prediction: str, schedule: Schedule, t: jax.Array) -> jax.Array:
    """alpha b - sigma a at times t, never smaller than 1e-6 in magnitude; an array like t."""
    a, b = coefficients(prediction, schedule, t)
    t = _wide(t)
    value = schedule.alpha(t) * b - schedule.sigma(t) * a
    return jnp.where(jnp.abs(value) < TINY, jnp.where(value < 0, -TINY, TINY), value)


def add_noise(schedule: Schedule, x0: Tree, eps: Tree, t: Times) -> Tree:
    """x_t = alpha(t) x0 + sigma(t) eps.

    Args:
      schedule: gives alpha and sigma.
      x0, eps: pytrees of equal structure, leaves (B, ...).
      t: in [0, 1]; (), (B,), or a dict by segment.

    Raises:
      UvitError: if a time is missing or does not fit its segment's batch.
    """
    return _combine(x0, eps, t, lambda time: (schedule.alpha(time), schedule.sigma(time)))


def combine(prediction: str, schedule: Schedule, x0: Tree, eps: Tree, t: Times) -> Tree:
    """The exact `prediction` for known data and noise: a(t) x0 + b(t) eps, leaves (B, ...).

    Raises:
      UvitError: if `prediction` is not in the table, or a time does not fit its segment.
    """
    return _combine(x0, eps, t, lambda time: coefficients(prediction, schedule, time))


def convert(value: Tree, x_t: Tree, t: Times, schedule: Schedule, source: str, target: str) -> Tree:
    """Converts the prediction `value` at (x_t, t) from `source` to `target`.

    With determinant d = alpha b - sigma a of the source (a, b), x0 = (b x_t - sigma p) / d and
    eps = (alpha p - a x_t) / d; the target is their combination.

    Args:
      value, x_t: pytrees of equal structure, leaves (B, ...).
      t: in [0, 1]; (), (B,), or a dict by segment.
      schedule: gives alpha and sigma.
      source, target: names in the table.

    Raises:
      UvitError: for a name that is not in the table, or times that do not fit.
    """
    if source == target:
        return jax.tree.map(_wide, value)

    def weights(time):
        a, b = coefficients(source, schedule, time)
        c, d = coefficients(target, schedule, time)
        alpha, sigma = schedule.alpha(time), schedule.sigma(time)
        denominator = determinant(source, schedule, time)
        return (c * b - d * a) / denominator, (d * alpha - c * sigma) / denominator

    return _combine(x_t, value, t, weights)


def denoiser(
    predict: Callable[[Tree, jax.Array], Tree],
    schedule: Schedule,
    prediction: str,
    *,
    clip: float | None = None,
    quantile: float | None = None,
    learned_range: bool = False,
) -> Callable[[Tree, jax.Array], Denoised]:
    """Wraps a network as the function `denoise(x, t) -> Denoised` that samplers call.

    Args:
      predict: `predict(x, network_time)`, x a pytree with leaves (B, ...) and network_time (B,); it
        returns `prediction` for (at least) every segment of x, shaped like x. Of a network of mean
        velocities, `predict(x, network_time, t - t_next)`, where `denoise` is given t_next.
      schedule: of the state, with one scalar t in [0, 1] for all segments.
      prediction: of the network, a name in the table.
      clip: x0 is clipped to [-clip, clip] and eps recomputed from it. None does not clip.
      quantile: with `clip`, dynamic thresholding (Saharia et al. 2022, section 2.3): each example
        is clipped to this quantile of its own |x0|, if above `clip`, and scaled back to `clip`.
      learned_range: the network returns twice the channels, the second half being the variance
        parameter in [-1, 1] of Nichol & Dhariwal 2021 (eq. 15; DiT).

    Raises:
      UvitError: for impossible thresholds, or, when called, an unknown prediction or outputs whose
        shapes differ from those of x.
    """
    if clip is not None and clip <= 0:
        raise UvitError(f"clip must be positive, got {clip}")
    if quantile is not None and (clip is None or not 0 < quantile <= 1):
        raise UvitError("quantile must lie in (0, 1] and needs clip")

    def threshold(x0):
        if quantile is None:
            return jnp.clip(x0, -clip, clip)
        size = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), quantile, axis=1)
        size = jnp.maximum(size, clip).reshape((-1,) + (1,) * (x0.ndim - 1))
        return jnp.clip(x0, -size, size) * (clip / size)

    def denoise(x: Tree, t: jax.Array, t_next: jax.Array | None = None) -> Denoised:
        batch = jax.tree.leaves(x)[0].shape[0]
        interval = () if t_next is None else (jnp.broadcast_to(t - t_next, (batch,)),)
        value = predict(x, jnp.broadcast_to(schedule.network_time(t), (batch,)), *interval)
        if isinstance(x, Mapping):
            value = {name: value[name] for name in x if name in value}
        mix = None
        if learned_range:
            halves = jax.tree.map(lambda p: jnp.split(_wide(p), 2, axis=-1), value)
            outer = jax.tree.structure(value)
            value, mix = jax.tree.transpose(outer, jax.tree.structure([0, 0]), halves)
            mix = jax.tree.map(lambda m: (m + 1) / 2, mix)
        _check_shapes(value, x)
        x0 = convert(value, x, t, schedule, prediction, "x0")
        if clip is not None:
            x0 = jax.tree.map(threshold, x0)
            return Denoised(x0, convert(x0, x, t, schedule, "x0", "eps"), mix)
        return Denoised(x0, convert(value, x, t, schedule, prediction, "eps"), mix)

    return denoise


def _wide(x: Any) -> jax.Array:
    """An array of float32 at least."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _combine(first: Tree, second: Tree, t: Times, weights: Callable) -> Tree:
    """w1(t) first + w2(t) second, leaf by leaf, each segment at its own time."""

    def one(pair, a, b):
        return _scale(pair[0], _wide(a)) + _scale(pair[1], _wide(b))

    if not isinstance(t, Mapping):
        return jax.tree.map(partial(one, weights(_wide(t))), first, second)
    missing = [name for name in first if name not in t]
    if missing:
        raise UvitError(f"no time for the segment {missing[0]!r}{nearest(missing[0], t)}")
    return {
        name: jax.tree.map(partial(one, weights(_wide(t[name]))), first[name], second[name])
        for name in first
    }


def _scale(weight: jax.Array, x: jax.Array) -> jax.Array:
    if weight.shape != x.shape[: weight.ndim]:
        raise UvitError(f"times of shape {weight.shape} do not match a segment of shape {x.shape}")
    return weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim)) * x


def _check_shapes(value: Tree, x: Tree) -> None:
    expected, actual = jax.tree.map(jnp.shape, x), jax.tree.map(jnp.shape, value)
    if expected != actual:
        raise UvitError(f"the network must return the shapes {expected}, but returned {actual}")
