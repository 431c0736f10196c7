"""DPM-Solver and DPM-Solver++ as tables of coefficients (see table.py), on the host, in float64.

Both integrate the probability-flow ODE in lambda = log(alpha / sigma), where its linear part is
solved exactly and only the network's output m is approximated by a polynomial. From s to t,
h = lambda_t - lambda_s, with u in [0, 1] the fraction of the way:

    DPM-Solver    m = eps:  x_t = alpha_t/alpha_s x - sigma_t h int exp((1 - u) h) m(u) du
    DPM-Solver++  m = x0:   x_t = sigma_t/sigma_s x + alpha_t h int exp(-(1 - u) h) m(u) du

(Lu et al. 2022a, eq. 3.4; 2022b, eq. 9.) `weights` gives the contributions of m = 1, u and u^2.
"""

from itertools import pairwise

import numpy as np

from uvit_jax.diffusion.schedule import Schedule
from uvit_jax.diffusion.solvers.table import SamplerConfig, SolverRow, time_grid


def rows(config: SamplerConfig, schedule: Schedule) -> list[SolverRow]:
    """The table of the sampler `dpm_solver` or `dpm_solver_pp` with the config's method and order.

    Raises:
      UvitError: if `time_grid` does.
    """
    form = "x0" if config.name == "dpm_solver_pp" else "eps"
    if config.method == "multistep":
        return _multistep(config, schedule, form)
    if config.method == "singlestep":
        grid = time_grid(config, schedule)
        orders = [config.order] * config.steps
        inner = [_between(schedule, grid[i : i + 2], k) for i, k in enumerate(orders)]
    else:
        orders = fast_orders(config.steps)
        if config.spacing == "log_snr" or (config.spacing is None and form == "eps"):
            grid = time_grid(config, schedule, len(orders))
            inner = [_between(schedule, grid[i : i + 2], k) for i, k in enumerate(orders)]
        else:
            # One interval an evaluation; the inner evaluations of a step lie on the grid as well.
            fine, ends = time_grid(config, schedule), np.cumsum([0, *orders])
            grid = fine[ends]
            inner = [fine[a + 1 : b] for a, b in pairwise(ends)]
    table = []
    for start, end, middle in zip(grid[:-1], grid[1:], inner, strict=True):
        table += _singlestep(form, schedule, np.array([start, *middle, end]))
    return table


def fast_orders(evaluations: int) -> list[int]:
    """The orders of DPM-Solver-fast's steps; their sum is `evaluations` (Lu et al. 2022a, 3.4)."""
    threes, rest = divmod(evaluations, 3)
    if rest == 0:
        return [3] * (threes - 1) + [2, 1]
    return [3] * threes + [rest]


def _between(schedule: Schedule, ends: np.ndarray, order: int) -> np.ndarray:
    """The published inner times of a step: at fractions 1/order, 2/order, ... in lambda."""
    start, end = schedule.half_log_snr(ends)
    return schedule.inverse_half_log_snr(start + (end - start) * np.arange(1, order) / order)


def weights(form: str, schedule: Schedule, t: float, h: float) -> np.ndarray:
    """The contributions of m = 1, u and u^2 to x_t over a step of length h that ends at t; (3,)."""
    if form == "x0":
        scale, z = schedule.alpha(t), -h
    else:
        scale, z = -schedule.sigma(t), h
    # h int exp((1 - u) z) u^k du, k = 0, 1, 2: by parts each from the one before.
    first = h * np.expm1(z) / z
    second = (first - h) / z
    third = (2 * second - h) / z
    return scale * np.array([first, second, third])


def carry(form: str, schedule: Schedule, s: float, t: float) -> float:
    """The coefficient of x over a step from s to t."""
    size = schedule.sigma if form == "x0" else schedule.alpha
    return size(t) / size(s)


def _singlestep(form: str, schedule: Schedule, times: np.ndarray) -> list[SolverRow]:
    """One step of order 1, 2 or 3 through the given times (start, inner ones, end).

    The final combinations are the published ones: order 2 weighs the slope by half the weight of
    m = 1 (exact to the order), order 3 uses the slope between first and third evaluation only.
    """
    lam = schedule.half_log_snr(times)
    h = lam[-1] - lam[0]
    r = (lam - lam[0]) / h
    table = []
    for i, (t, t_next) in enumerate(pairwise(times)):
        last = i == len(times) - 2
        w = weights(form, schedule, t_next, lam[i + 1] - lam[0])
        slope = 0.0  # the coefficient of (m_i - m_0)
        if i == 1:
            slope = w[0] / (2 * r[1]) if last else w[1] * r[2] / r[1]
        elif i == 2:
            slope = w[1] / r[2]
        first = w[0] - slope if i else 0.0
        table.append(
            SolverRow(
                t=t,
                t_next=t_next,
                x=carry(form, schedule, times[0], t_next),
                past1=first if i == 1 else 0.0,
                past2=first if i == 2 else 0.0,
                ends_step=last,
                **{form: slope if i else w[0]},
            )
        )
    return table


def _multistep(config: SamplerConfig, schedule: Schedule, form: str) -> list[SolverRow]:
    """2M (Lu et al. 2022b, algorithm 2), and 3M: the parabola through three values, integrated.

    The reference implementation's 3M gives the parabola's second-order term half its exact weight,
    and is of order 2; here it has the exact weight, and the order is 3. The first steps lack past
    values and have a lower order.
    """
    grid = time_grid(config, schedule)
    lam = schedule.half_log_snr(grid)
    table = []
    for i, (t, t_next) in enumerate(pairwise(grid)):
        order = min(config.order, i + 1)
        if config.lower_order_final:
            order = min(order, config.steps - i)
        h = lam[i + 1] - lam[i]
        w = weights(form, schedule, t_next, h)
        m0, m1, m2 = np.eye(3)  # now, one and two evaluations ago
        value = w[0] * m0
        if order > 1:
            r0 = (lam[i] - lam[i - 1]) / h
            slope0 = (m0 - m1) / r0
        if order == 2:
            value = value + w[0] / 2 * slope0
        elif order == 3:
            r1 = (lam[i - 1] - lam[i - 2]) / h
            curvature = (slope0 - (m1 - m2) / r1) / (r0 + r1)
            value = value + w[1] * (slope0 + r0 * curvature) + w[2] * curvature
        table.append(
            SolverRow(
                t=t,
                t_next=t_next,
                x=carry(form, schedule, t, t_next),
                past1=value[1],
                past2=value[2],
                **{form: value[0]},
            )
        )
    return table
