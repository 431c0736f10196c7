"""Noise schedules: the coefficients of data and noise at time t.

Everywhere in this package t lies in [0, 1], t = 0 is data, t = 1 is noise, and

    x_t = alpha(t) x0 + sigma(t) eps,        eps ~ N(0, I).

A `Schedule` is these two functions and what follows from them, and the scale in which networks of
that family take the time (`network_time`). Make one from a `ScheduleConfig` with `make`.

Every method is elementwise. Given a `jax.Array` (or a tracer) it computes with `jax.numpy` in that
array's precision, float32 at least. Given anything else (numpy, a Python float) it computes with
numpy in float64, which the samplers use for their coefficients.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.config import Config
from uvit_jax.errors import UvitError

TINY = 1e-6  # the floor of alpha and sigma in denominators


def enter(t: Any) -> tuple[Any, Any]:
    """(numpy or jax.numpy, t as an array of float64 or of float32 at least)."""
    if isinstance(t, jax.Array):
        return jnp, t.astype(jnp.promote_types(t.dtype, jnp.float32))
    return np, np.asarray(t, np.float64)


_STEPS = 1000  # of the published discrete schedules
_BETAS = {"vp_linear": (0.1, 20.0), "sd": (0.00085, 0.012), "ddpm_linear": (1e-4, 0.02)}
_TIME_SCALES = {"vp_linear": 999.0, "cosine": 999.0, "rectified_flow": 1000.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """A noise schedule and its parameters; None is the published value.

    Attributes:
      name: the family.
        `vp_linear`: the VP-SDE with beta(t) linear (Song et al. 2021, eq. 32; U-ViT on pixels).
        `sd`: Stable Diffusion's 1000 discrete steps, sqrt(beta) linear (U-ViT-H, UniDiffuser).
        `ddpm_linear`: DDPM's 1000 discrete steps, beta linear (Ho et al. 2020; DiT).
        `cosine`: alpha = cos (Nichol & Dhariwal 2021, eq. 17), in continuous time.
        `rectified_flow`: alpha = 1 - t, sigma = t (Liu et al. 2022; Stable Diffusion 3).
      beta_min, beta_max: of `vp_linear`, `sd`, `ddpm_linear`.
      time_scale: of continuous schedules: the network's time is t times this. The default is 1000
        for `rectified_flow` and U-ViT's 999 for the other two.
      shift: of `rectified_flow`: uniform times u become shift u / (1 + (shift - 1) u), in training
        and in the samplers' uniform spacing (Esser et al. 2024, eq. 23). 1 is no shift.

    Raises:
      UvitError: for an unknown name, a parameter that the schedule lacks, or an impossible value.
    """

    name: Literal["vp_linear", "sd", "ddpm_linear", "cosine", "rectified_flow"] = "vp_linear"
    beta_min: float | None = None
    beta_max: float | None = None
    time_scale: float | None = None
    shift: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        betas = (self.beta_min, self.beta_max)
        if self.name not in _BETAS and betas != (None, None):
            raise UvitError(f"the schedule {self.name!r} has no beta_min and beta_max; drop them")
        if self.name not in _TIME_SCALES and self.time_scale is not None:
            raise UvitError(f"time_scale is fixed for the discrete schedule {self.name!r}; drop it")
        if self.name != "rectified_flow" and self.shift != 1.0:
            raise UvitError(f"only 'rectified_flow' has a shift, not {self.name!r}; drop it")
        if self.shift <= 0:
            raise UvitError(f"shift must be positive, got {self.shift}")
        if self.name in _BETAS:
            low, high = self.betas
            limit = math.inf if self.name == "vp_linear" else 1.0
            if not 0 < low <= high < limit:
                raise UvitError(f"beta_min {low} and beta_max {high} must satisfy 0 < min <= max")

    @property
    def betas(self) -> tuple[float, float]:
        """(beta_min, beta_max), with the published values in place of None."""
        low, high = _BETAS[self.name]
        return (
            low if self.beta_min is None else self.beta_min,
            high if self.beta_max is None else self.beta_max,
        )


class Schedule:
    """Base class of schedules. Arguments and results are arrays of one shape; t in [0, 1].

    Attributes:
      config: the `ScheduleConfig`.
      t_min, t_max: the times between which samplers run by default.
      log_snr_range: the same, for samplers that need a finite log-SNR.
      time_scale: `network_time` is t times this.
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
        """The coefficient of the noise; the default is that of a variance-preserving schedule.

        Computed as sqrt(-expm1(2 log alpha)), which keeps its relative precision as t goes to 0.
        """
        xp, t = enter(t)
        return xp.sqrt(-xp.expm1(2 * self.log_alpha(t)))

    def half_log_snr(self, t):
        """lambda(t) = log(alpha / sigma), DPM-Solver's variable; infinite at singular ends."""
        xp, t = enter(t)
        with np.errstate(divide="ignore"):
            return self.log_alpha(t) - xp.log(self.sigma(t))

    def log_snr(self, t):
        """2 log(alpha / sigma), strictly decreasing in t."""
        return 2 * self.half_log_snr(t)

    def inverse_log_snr(self, log_snr):
        """The t at which `log_snr(t)` is `log_snr`."""
        _, log_snr = enter(log_snr)
        return self.inverse_half_log_snr(log_snr / 2)

    def d_alpha_dt(self, t):
        """alpha'(t)."""
        return self.alpha(t) * self.d_log_alpha_dt(t)

    def d_sigma_dt(self, t):
        """sigma'(t); it diverges as t goes to 0, where sigma is floored at 1e-6."""
        xp, t = enter(t)
        squared = xp.exp(2 * self.log_alpha(t))
        return -squared * self.d_log_alpha_dt(t) / xp.maximum(self.sigma(t), TINY)

    def f(self, t):
        """The drift coefficient of dx = f x dt + g dw (Song et al. 2021): d log alpha / dt."""
        return self.d_log_alpha_dt(t)

    def g2(self, t):
        """The squared diffusion coefficient g(t)^2 = d sigma^2/dt - 2 f sigma^2; beta(t) on VP."""
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
        """The network's time input for t (float32 for jax arrays)."""
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


@functools.lru_cache
def make(config: ScheduleConfig) -> Schedule:
    """The schedule that `config` describes; equal configs give the same object."""
    schedule = _CLASSES[config.name](config)
    if config.name in _TIME_SCALES:
        scale = config.time_scale
        schedule.time_scale = _TIME_SCALES[config.name] if scale is None else scale
    return schedule


class _VPLinear(Schedule):
    def log_alpha(self, t):
        _, t = enter(t)
        low, high = self.config.betas
        return -t * (0.25 * (high - low) * t + 0.5 * low)

    def d_log_alpha_dt(self, t):
        _, t = enter(t)
        low, high = self.config.betas
        return -0.5 * (low + (high - low) * t)

    def inverse_half_log_snr(self, lam):
        # -2 log alpha = softplus(-2 lambda) = (high - low)/2 t^2 + low t, without cancellation.
        xp, lam = enter(lam)
        low, high = self.config.betas
        integral = xp.logaddexp(0.0, -2 * lam)
        return 2 * integral / (low + xp.sqrt(low**2 + 2 * (high - low) * integral))


class _Discrete(Schedule):
    """log alpha is tabulated at t = n/1000 and linear in between; alpha(0) = 1.

    The network's time is n (`sd`) or n - 1 (`ddpm_linear`), fractional between the steps. Below
    t = 1/1000 the schedule is an extrapolation that no network was trained on, so t_min = 1/1000.
    """

    discrete_steps = _STEPS
    t_min = 1 / _STEPS

    def __init__(self, config: ScheduleConfig):
        super().__init__(config)
        low, high = config.betas
        if config.name == "sd":
            betas = np.linspace(low**0.5, high**0.5, _STEPS, dtype=np.float64) ** 2
        else:
            betas = np.linspace(low, high, _STEPS, dtype=np.float64)
        self._offset = 0 if config.name == "sd" else 1
        self._table = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-betas))])
        self._slope = np.diff(self._table)

    def log_alpha(self, t):
        xp, t = enter(t)
        n = t * _STEPS
        below = xp.clip(xp.floor(n), 0, _STEPS - 1).astype(np.int32)
        table, slope = xp.asarray(self._table, t.dtype), xp.asarray(self._slope, t.dtype)
        return table[below] + (n - below) * slope[below]

    def d_log_alpha_dt(self, t):
        # At a step the slope of the interval below it, that is of the step's own beta.
        xp, t = enter(t)
        above = xp.clip(xp.ceil(t * _STEPS - 1e-3), 1, _STEPS).astype(np.int32)
        return xp.asarray(self._slope * _STEPS, t.dtype)[above - 1]

    def inverse_half_log_snr(self, lam):
        xp, lam = enter(lam)
        log_alpha = -0.5 * xp.logaddexp(0.0, -2 * lam)
        ascending = xp.asarray(self._table[::-1], lam.dtype)
        times = xp.asarray(np.arange(_STEPS, -1, -1) / _STEPS, lam.dtype)
        return xp.interp(log_alpha, ascending, times)

    def network_time(self, t):
        # n/1000 * 1000 is not always n in floating point; steps are rounded back to whole numbers.
        xp, t = enter(t)
        n = t * _STEPS
        nearest = xp.round(n)
        n = xp.where(xp.abs(n - nearest) < 1e-3, nearest, n)
        return xp.maximum(n - self._offset, 0.0)


class _Cosine(Schedule):
    """alpha(t) = cos(a(t)) / cos(a(0)), a(t) = pi/2 (c t + s)/(1 + s), s = 0.008.

    Nichol & Dhariwal clip beta at 0.999, which with 1000 steps affects only the last and leaves
    alpha(1)^2 = 0.001 alpha(0.999)^2. Here time is compressed by c = 1 - 3.2e-5 so that alpha(1) =
    5e-5 has the same value: nothing is clipped, and log-SNR stays strictly monotone. Because
    1 / alpha(1) is still very large, samplers start at t_max = 0.9946 (DPM-Solver's T).
    """

    t_max = 0.9946
    _S = 0.008
    _A0 = math.pi / 2 * _S / (1 + _S)
    _END = math.asin(0.001**0.5 * math.sin(math.pi / 2 * 0.001 / (1 + _S)))  # pi/2 - a(1)
    _RATE = math.pi / 2 - _END - _A0

    def _angles(self, t):
        """a(t) - a(0), a(t) + a(0) and pi/2 - a(t), each without cancellation."""
        _, t = enter(t)
        return self._RATE * t, self._RATE * t + 2 * self._A0, self._END + self._RATE * (1 - t)

    def log_alpha(self, t):
        xp, t = enter(t)
        return xp.log(xp.sin(self._angles(t)[2])) - math.log(math.cos(self._A0))

    def sigma(self, t):
        # 1 - cos^2 a / cos^2 a0 = sin(a - a0) sin(a + a0) / cos^2 a0
        xp, t = enter(t)
        difference, total, _ = self._angles(t)
        return xp.sqrt(xp.sin(difference) * xp.sin(total)) / math.cos(self._A0)

    def d_log_alpha_dt(self, t):
        xp, t = enter(t)
        return -self._RATE / xp.tan(self._angles(t)[2])

    def inverse_half_log_snr(self, lam):
        xp, lam = enter(lam)
        cos0, sin0 = math.cos(self._A0), math.sin(self._A0)
        alpha = xp.exp(-0.5 * xp.logaddexp(0.0, -2 * lam))
        variance = xp.exp(-xp.logaddexp(0.0, 2 * lam))
        cos, sin = alpha * cos0, xp.sqrt(sin0**2 + cos0**2 * variance)
        sin_difference = variance * cos0**2 / (sin * cos0 + cos * sin0)
        return xp.arctan2(sin_difference, cos * cos0 + sin * sin0) / self._RATE


class _RectifiedFlow(Schedule):
    t_min, t_max = 0.0, 1.0

    @property
    def log_snr_range(self) -> tuple[float, float]:
        return 1e-3, 1 - 1e-3

    def alpha(self, t):
        return 1 - enter(t)[1]

    def log_alpha(self, t):
        xp, t = enter(t)
        with np.errstate(divide="ignore"):
            return xp.log1p(-t)

    def sigma(self, t):
        return enter(t)[1]

    def d_log_alpha_dt(self, t):
        xp, t = enter(t)
        return -1 / xp.maximum(1 - t, TINY)

    def d_alpha_dt(self, t):
        xp, t = enter(t)
        return -xp.ones_like(t)

    def d_sigma_dt(self, t):
        xp, t = enter(t)
        return xp.ones_like(t)

    def g2(self, t):
        xp, t = enter(t)
        return 2 * t / xp.maximum(1 - t, TINY)

    def inverse_half_log_snr(self, lam):
        xp, lam = enter(lam)
        return xp.exp(-xp.logaddexp(0.0, lam))

    def warp(self, u):
        _, u = enter(u)
        shift = self.config.shift
        return shift * u / (1 + (shift - 1) * u)

    def unwarp(self, t):
        _, t = enter(t)
        return t / (self.config.shift - (self.config.shift - 1) * t)


_CLASSES = {
    "vp_linear": _VPLinear,
    "sd": _Discrete,
    "ddpm_linear": _Discrete,
    "cosine": _Cosine,
    "rectified_flow": _RectifiedFlow,
}
