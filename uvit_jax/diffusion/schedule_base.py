"""The face that every noise schedule shows: `Schedule`, the base of those in schedule.py.

It knows no data and no network; it turns log alpha and its derivative, which a family supplies,
into everything that training and sampling ask for. The formulas here are those of a
variance-preserving schedule, alpha^2 + sigma^2 = 1; other families override them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TINY = 1e-6  # the floor of alpha and sigma where they stand in a denominator


def enter(t: Any) -> tuple[Any, Any]:
    """(numpy or jax.numpy, t as an array of float64 or of float32 at least)."""
    if isinstance(t, jax.Array):
        return jnp, t.astype(jnp.promote_types(t.dtype, jnp.float32))
    return np, np.asarray(t, np.float64)


class Schedule:
    """What all schedules share. Arguments and results are arrays of one shape; t in [0, 1].

    Attributes:
      config: what it was made from.
      t_min, t_max: the times between which samplers run unless told otherwise.
      log_snr_range: the same, for samplers that need a finite log-SNR.
      time_scale: what `network_time` multiplies t with.
      discrete_steps: T of a schedule published with T steps (t = n/T, n in 1..T), or None.
    """

    t_min, t_max = 1e-4, 1.0
    time_scale = 1.0
    discrete_steps: int | None = None

    def __init__(self, config: Any):
        self.config = config

    def __repr__(self) -> str:
        return f"Schedule({self.config})"

    @property
    def log_snr_range(self) -> tuple[float, float]:
        return self.t_min, self.t_max

    def log_alpha(self, t):
        """log alpha(t); -inf where alpha is 0."""
        raise NotImplementedError

    def d_log_alpha_dt(self, t):
        """d log alpha / dt, in 1 / unit of t."""
        raise NotImplementedError

    def inverse_half_log_snr(self, lam):
        """The t at which `half_log_snr(t)` is `lam`."""
        raise NotImplementedError

    def alpha(self, t):
        """The coefficient of the data."""
        xp, t = enter(t)
        return xp.exp(self.log_alpha(t))

    def sigma(self, t):
        """The coefficient of the noise; here that of a variance-preserving schedule.

        Computed as sqrt(-expm1(2 log alpha)), which keeps its relative precision as t goes to 0.
        """
        xp, t = enter(t)
        return xp.sqrt(-xp.expm1(2 * self.log_alpha(t)))

    def half_log_snr(self, t):
        """lambda(t) = log(alpha / sigma), the variable of DPM-Solver; +-inf at singular ends."""
        xp, t = enter(t)
        with np.errstate(divide="ignore"):
            return self.log_alpha(t) - xp.log(self.sigma(t))

    def log_snr(self, t):
        """2 log(alpha / sigma), strictly decreasing in t."""
        return 2 * self.half_log_snr(t)

    def inverse_log_snr(self, log_snr):
        """The t at which `log_snr(t)` is this."""
        _, log_snr = enter(log_snr)
        return self.inverse_half_log_snr(log_snr / 2)

    def d_alpha_dt(self, t):
        """alpha'(t)."""
        return self.alpha(t) * self.d_log_alpha_dt(t)

    def d_sigma_dt(self, t):
        """sigma'(t), infinite in the limit t = 0; sigma is floored at 1e-6 to keep it finite."""
        xp, t = enter(t)
        squared = xp.exp(2 * self.log_alpha(t))
        return -squared * self.d_log_alpha_dt(t) / xp.maximum(self.sigma(t), TINY)

    def f(self, t):
        """The drift coefficient of dx = f x dt + g dw (Song et al. 2021): d log alpha / dt."""
        return self.d_log_alpha_dt(t)

    def g2(self, t):
        """The squared diffusion coefficient g(t)^2 = d sigma^2/dt - 2 f sigma^2, here beta(t)."""
        return -2 * self.d_log_alpha_dt(t)

    def posterior(self, t, s):
        """q(x_s | x_t, x0), s < t: coefficients of x_t and x0, and the small and large variance.

        For any alpha and sigma (Kingma et al. 2021, appendix A.2): with
        r = sigma^2(t|s) / sigma_t^2 = -expm1(2 lambda_t - 2 lambda_s), the mean is
        (alpha_t / alpha_s) (sigma_s / sigma_t)^2 x_t + alpha_s r x0, beta tilde is r sigma_s^2, and
        the large variance is sigma^2(t|s), which is beta on a variance-preserving schedule.
        """
        xp, t = enter(t)
        alpha_s, alpha_t = self.alpha(s), self.alpha(t)
        variance_s, variance_t = self.sigma(s) ** 2, self.sigma(t) ** 2
        ratio = -xp.expm1(2 * (self.half_log_snr(t) - self.half_log_snr(s)))
        x = alpha_t / alpha_s * variance_s / variance_t
        return x, alpha_s * ratio, ratio * variance_s, ratio * variance_t

    def network_time(self, t):
        """The number that the network is told for t (float32 for jax arrays)."""
        _, t = enter(t)
        return t * self.time_scale

    def warp(self, u):
        """Uniform time u in [0, 1] to t; the identity except for a shifted rectified flow."""
        _, u = enter(u)
        return u

    def unwarp(self, t):
        """The inverse of `warp`."""
        _, t = enter(t)
        return t
