"""The samplers with one rule per step, as tables: ddpm, ddim, Euler-Maruyama, Euler, Heun.

Each function turns a descending grid of times into rows (see table.py), on the host, in float64. It
is named as the sampler, and `solve.sample` looks it up by that name.
"""

from itertools import pairwise

import numpy as np

from uvit_jax.diffusion.schedule import Schedule
from uvit_jax.diffusion.solvers.table import SamplerConfig, SolverRow


def ddpm(config: SamplerConfig, schedule: Schedule, grid: np.ndarray) -> list[SolverRow]:
    """Ancestral sampling: x_s ~ q(x_s | x_t, x0) (Ho et al. 2020, eqs. 6, 7).

    The last step is its mean. With a grid of fewer steps this is the respaced DDPM of Nichol &
    Dhariwal 2021 (section 4).
    """
    rows = []
    for t, s in _pairs(grid):
        x, x0, small, large = schedule.posterior(t, s)
        last = s == grid[-1]
        variance = large if config.variance == "large" else small
        rows.append(
            SolverRow(
                t=t,
                t_next=s,
                x=x,
                x0=x0,
                noise=0.0 if last else variance**0.5,
                log_small=0.0 if last else np.log(small),
                log_large=0.0 if last else np.log(large),
            )
        )
    return rows


def ddim(config: SamplerConfig, schedule: Schedule, grid: np.ndarray) -> list[SolverRow]:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - n^2) eps + n z, n^2 = eta^2 beta tilde (DDIM, eq. 12)."""
    rows = []
    for t, s in _pairs(grid):
        noise = config.eta * schedule.posterior(t, s)[2] ** 0.5
        variance = schedule.sigma(s) ** 2
        rows.append(
            SolverRow(
                t=t,
                t_next=s,
                x0=schedule.alpha(s),
                eps=max(variance - noise**2, 0.0) ** 0.5,
                noise=0.0 if s == grid[-1] else noise,
            )
        )
    return rows


def euler_maruyama(config: SamplerConfig, schedule: Schedule, grid: np.ndarray) -> list[SolverRow]:
    """The reverse SDE dx = [f x - g^2 score] dt + g dw (Song et al. 2021, eq. 6)."""
    del config
    rows = []
    for t, s in _pairs(grid):
        g2 = schedule.g2(t)
        rows.append(
            SolverRow(
                t=t,
                t_next=s,
                x=1 + schedule.f(t) * (s - t),
                eps=g2 / schedule.sigma(t) * (s - t),  # score = -eps / sigma
                noise=0.0 if s == grid[-1] else (g2 * (t - s)) ** 0.5,
            )
        )
    return rows


def euler(config: SamplerConfig, schedule: Schedule, grid: np.ndarray) -> list[SolverRow]:
    """x_s = x_t + (s - t) dx/dt, dx/dt = alpha' x0 + sigma' eps; order 1 in t."""
    del config
    return [_slope(schedule, t, s, s - t, x=1.0) for t, s in _pairs(grid)]


def mean_flow(config: SamplerConfig, schedule: Schedule, grid: np.ndarray) -> list[SolverRow]:
    """`euler`, with the mean velocity between t and s in place of the one at t (`solve.sample`
    passes s to the denoiser)."""
    return euler(config, schedule, grid)


def heun(config: SamplerConfig, schedule: Schedule, grid: np.ndarray) -> list[SolverRow]:
    """The trapezoidal rule after an Euler predictor (Karras et al. 2022, algorithm 1); order 2.

    As the predictor is y = x + h k1, the corrector x + h (k1 + k2)/2 is (x + y)/2 + h k2 / 2. A
    step that ends without noise has no corrector, as there: eps, and with it k2, follows from x0
    only by a division by sigma = 0.
    """
    del config
    rows = []
    for t, s in _pairs(grid):
        if schedule.sigma(s) == 0:
            rows.append(_slope(schedule, t, s, s - t, x=1.0))
            continue
        rows.append(_slope(schedule, t, s, s - t, x=1.0, ends_step=False))
        rows.append(_slope(schedule, s, s, (s - t) / 2, x=0.5, y=0.5))
    return rows


def _slope(schedule: Schedule, t: float, t_next: float, h: float, **kwargs) -> SolverRow:
    """A row that adds h times dx/dt at t."""
    x0, eps = h * schedule.d_alpha_dt(t), h * schedule.d_sigma_dt(t)
    return SolverRow(t=t, t_next=t_next, x0=x0, eps=eps, **kwargs)


def _pairs(grid: np.ndarray) -> list[tuple[float, float]]:
    return list(pairwise(grid))
