"""UniPC and SDE-DPM-Solver++ as tables of coefficients (see table.py), both in terms of x0.

Each function is named as its sampler, as in simple.py.
"""

from itertools import pairwise

import numpy as np

from uvit_jax.diffusion.schedule import Schedule
from uvit_jax.diffusion.solvers.dpm_solver import carry, weights
from uvit_jax.diffusion.solvers.table import SamplerConfig, SolverRow


def unipc(config: SamplerConfig, schedule: Schedule, grid: np.ndarray) -> list[SolverRow]:
    """UniPC of order 2 with B(h) = exp(h) - 1 (Zhao et al. 2023, algorithm 2).

    The predictor from x_i to y_{i+1} is DPM-Solver++'s 2M. Once the network has been evaluated at
    y_{i+1}, the corrector integrates the parabola through this value and the two before, instead of
    the line, without another evaluation: x_{i+1} = y_{i+1} - predicted + corrected. The next
    predictor starts there, so x itself need not be stored. The first step has order 1, and so has
    the last if `config.lower_order_final`; the last is not corrected.
    """
    lam = schedule.half_log_snr(grid)
    now, past1, past2 = np.eye(3)
    rows = []
    correction = np.zeros(3)
    for i, (t, t_next) in enumerate(pairwise(grid)):
        h = lam[i + 1] - lam[i]
        w = weights("x0", schedule, t_next, h)
        decay = carry("x0", schedule, t, t_next)
        predicted = w[0] * now
        if i and (i < config.steps - 1 or not config.lower_order_final):
            r = (lam[i] - lam[i - 1]) / h
            predicted = predicted + w[0] / 2 * (now - past1) / r
        m0, m1, m2 = decay * correction + predicted
        rows.append(SolverRow(t=t, t_next=t_next, x=decay, x0=m0, past1=m1, past2=m2))
        # At the next row the values of this one are one evaluation older.
        corrected = w[0] / 2 * (now - past1) + w[0] * past1
        if i:
            # m(u) = m0 + slope u + curvature u^2, through u = -r, 0 and 1.
            r = (lam[i] - lam[i - 1]) / h
            back, ahead = (past1 - past2) / r, now - past1
            curvature = (ahead - back) / (1 + r)
            corrected = w[0] * past1 + w[1] * (ahead - curvature) + w[2] * curvature
        correction = corrected - np.array([0.0, *predicted[:2]])
    return rows


def sde_dpm_solver_pp(
    config: SamplerConfig, schedule: Schedule, grid: np.ndarray
) -> list[SolverRow]:
    """SDE-DPM-Solver++(2M) of the reverse SDE (Lu et al. 2022b, appendix B; midpoint form).

    The first step has order 1, and so has the last if `config.lower_order_final`.
    """
    lam = schedule.half_log_snr(grid)
    rows = []
    for i, (t, t_next) in enumerate(pairwise(grid)):
        h = lam[i + 1] - lam[i]
        share = -np.expm1(-2 * h)
        value, past = schedule.alpha(t_next) * share, 0.0
        if i and (i < config.steps - 1 or not config.lower_order_final):
            past = -value * h / (2 * (lam[i] - lam[i - 1]))
        rows.append(
            SolverRow(
                t=t,
                t_next=t_next,
                x=carry("x0", schedule, t, t_next) * np.exp(-h),
                x0=value - past,
                past1=past,
                noise=schedule.sigma(t_next) * share**0.5,
            )
        )
    return rows
