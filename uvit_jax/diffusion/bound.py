"""The terms of the variational bound, the loss of learned variances.

A network with a learned range returns, besides its prediction, a number r in [-1, 1] for each
entry, and its reverse step is p(x_s | x_t) = N(mean, exp(v log beta + (1 - v) log beta tilde)) with
v = (r + 1)/2 (Nichol & Dhariwal 2021, eq. 15), s = t - 1/T. The bound's term of step n = tT is

    n > 1    KL(q(x_s | x_t, x0) || p(x_s | x_t))
    n = 1    -log p(x0 | x_1), integrated over the bin of x0 among 256 levels in [-1, 1]

(Ho et al. 2020, eqs. 5 and 13), here in bits per dimension. A stop_gradient on the mean leaves it
to the simple loss alone. Latents, which have no levels, are treated like pixels, as DiT does; they
too are of order 1, and only one step of T is affected.

Given x_t, two means differ by a multiple of the difference between prediction and target, so that
x_t itself is not needed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from uvit_jax.diffusion import process
from uvit_jax.diffusion.schedule import Schedule
from uvit_jax.errors import UvitError

_HALF_BIN = 1 / 255


class ReverseStep(NamedTuple):
    """A batch's true reverse steps; every leaf has the leading axis B.

    Attributes:
      x0: the data, (B, ...), float32.
      last: whether n = 1, (B,) bool.
      log_small, log_large: log beta tilde and log beta, (B,). At n = 1, where beta tilde is 0, the
        value of n = 2 replaces it, as in the published code.
      gain: the error of the mean per error of the prediction, (B,).
      weight: of the term in the loss, 0.001 T, (B,).
    """

    x0: jax.Array
    last: jax.Array
    log_small: jax.Array
    log_large: jax.Array
    gain: jax.Array
    weight: jax.Array


def check(schedule: Schedule, time_sampling: str) -> None:
    """Raises UvitError unless all training times are steps of a discrete schedule."""
    if time_sampling != "discrete":
        raise UvitError(
            "learned_range=True learns the variances of discrete steps: it needs the schedule "
            "'ddpm_linear' or 'sd' and time_sampling='discrete', not "
            f"{schedule.config.name!r} and {time_sampling!r}; or set learned_range=False"
        )


def reverse_step(schedule: Schedule, prediction: str, x0: jax.Array, t: jax.Array) -> ReverseStep:
    """The true reverse steps from t = n/T, (B,), to (n - 1)/T.

    Args:
      schedule: one with discrete steps.
      prediction: of the network, a name in process.py's table.
      x0: (B, ...).
    """
    total = schedule.discrete_steps
    n = np.arange(1, total + 1)
    _, of_x0, small, large = schedule.posterior(n / total, (n - 1) / total)
    small[0] = small[1]
    # An error e of a prediction with determinant d is one of -sigma/d e in x0 (see process.py).
    in_x0 = -schedule.sigma(t) / process.determinant(prediction, schedule, t)
    index = jnp.clip(jnp.round(t * total).astype(jnp.int32) - 1, 0, total - 1)

    def at(table: np.ndarray) -> jax.Array:
        return jnp.asarray(table, jnp.float32)[index]

    return ReverseStep(
        x0=jnp.asarray(x0, jnp.float32),
        last=index == 0,
        log_small=at(np.log(small)),
        log_large=at(np.log(large)),
        gain=at(of_x0) * in_x0,
        weight=jnp.full(t.shape, total / 1000, jnp.float32),
    )


def bits(value: jax.Array, raw: jax.Array, target: jax.Array, step: ReverseStep) -> jax.Array:
    """The bound's terms in bits per dimension, (B,), float32.

    Args:
      value: the network's prediction, (B, ...); no gradient reaches it.
      raw: the network's r, (B, ...), from -1 for beta tilde to 1 for beta.
      target: the exact prediction, like `value`.
      step: the result of `reverse_step`.
    """

    def along(a: jax.Array) -> jax.Array:
        return a.reshape(-1, *[1] * (raw.ndim - 1))

    error = along(step.gain) * (jax.lax.stop_gradient(value) - target)
    mix = (raw + 1) / 2
    log_true = along(step.log_small)
    log_variance = mix * along(step.log_large) + (1 - mix) * log_true
    kl = 0.5 * (
        log_variance
        - log_true
        + jnp.expm1(log_true - log_variance)
        + jnp.square(error) * jnp.exp(-log_variance)
    )
    # At the last step the true mean is x0 itself.
    last = along(step.last)
    # Elsewhere the likelihood must be finite too: its gradient is multiplied by 0, not left out.
    of_last = jnp.where(last, error, 0.0), jnp.where(last, log_variance, 0.0)
    nll = -log_likelihood(step.x0, step.x0 + of_last[0], of_last[1])
    term = jnp.where(last, nll, kl)
    return term.reshape(term.shape[0], -1).mean(axis=1) / np.log(2)


def log_likelihood(x0: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """The log of the probability mass of N(mean, variance) in the bins of x0, elementwise, in nats.

    The bins reach 1/255 to either side, those of -1 and 1 to infinity (Ho et al. 2020, eq. 13).
    Exact even far out in the tails; the code of ADM and DiT approximates the normal distribution
    function by a tanh and clips the mass at 1e-12.
    """
    scale = jnp.exp(-log_variance / 2)
    low, high = scale * (x0 - mean - _HALF_BIN), scale * (x0 - mean + _HALF_BIN)
    # Mirrored into the tail that log_ndtr resolves: the mass of [a, b] is that of [-b, -a].
    flip = low > 0
    a, b = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
    upper = log_ndtr(b)
    share = -jnp.expm1(log_ndtr(a) - upper)
    inside = upper + jnp.log(jnp.maximum(share, np.finfo(np.float32).tiny))
    return jnp.where(x0 < -0.999, log_ndtr(high), jnp.where(x0 > 0.999, log_ndtr(-low), inside))
