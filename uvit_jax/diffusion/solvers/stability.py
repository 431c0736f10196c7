"""Tables that keep a network's errors small (see table.py).

Near t = 1 an error of eps or score is sigma/alpha times as large in x0; near t = 0 one of x0 is
alpha/sigma times as large in eps; and steps that are too long multiply both, and noise. The order
of a solver, which holds for exact predictions, says nothing of these. `stable_rows` keeps away from
such times where it can, and refuses a table that would multiply errors beyond the size of the data.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from uvit_jax.diffusion import process
from uvit_jax.diffusion.schedule import TINY, Schedule
from uvit_jax.diffusion.solvers.table import SamplerConfig, SolverRow
from uvit_jax.errors import UvitError

ERROR = 0.01  # of a network, relative to the root mean square of what it predicts
SPREADS = (0.3, 1.0)  # of the data
LIMIT = 5.0  # of samples, whatever the spread
_NOISE_TO_SIGNAL = 100.0  # sigma / alpha at the default start where alpha(1) = 0
_CORRECTOR_LIMIT = 10.0  # of the gain of Heun's last corrector

MakeRows = Callable[[SamplerConfig, Schedule], list[SolverRow]]


def stable_rows(
    config: SamplerConfig, schedule: Schedule, prediction: str, make_rows: MakeRows
) -> list[SolverRow]:
    """The table `make_rows(config, schedule)`, fitted to the errors of a network's prediction.

    By default `eps` and `score` start where sigma = 100 alpha if alpha vanishes at the schedule's
    start. `heun` ends with Euler's rule, as where sigma is 0 in Karras et al. 2022 (algorithm 1),
    if its last corrector would multiply errors by more than 10. The method `fast` of the DPM
    solvers takes steps of order 1, as many evaluations, if those of higher order would multiply
    errors beyond the data. Other tables are not changed.

    Raises:
      UvitError: if `make_rows` does, for an unknown prediction, or if `amplification` exceeds 5.
    """
    singular = prediction in ("eps", "score") and schedule.alpha(schedule.t_max) < TINY
    if singular and config.t_start is None:
        start = float(schedule.inverse_half_log_snr(-np.log(_NOISE_TO_SIGNAL)))
        if config.t_end is None or config.t_end < start:
            config = dataclasses.replace(config, t_start=start)
    rows = make_rows(config, schedule)
    if config.name == "heun" and not rows[-2:][0].ends_step:
        x0, eps = _gains(rows[-1:], schedule, prediction)[0]
        if abs(rows[-1].x0 * x0 + rows[-1].eps * eps) > _CORRECTOR_LIMIT:
            rows = [*rows[:-2], dataclasses.replace(rows[-2], ends_step=True)]
    size = amplification(rows, schedule, prediction)
    if size > LIMIT and config.name.startswith("dpm_solver") and config.method == "fast":
        rows = make_rows(dataclasses.replace(config, method="singlestep", order=1), schedule)
        size = amplification(rows, schedule, prediction)
    if not size <= LIMIT:
        ends = [key for key in ("t_start", "t_end") if getattr(config, key) is not None]
        remedy = "increase sampler.steps, or set sampler.name='dpm_solver_pp'"
        if ends:
            remedy = f"leave out sampler.{' and sampler.'.join(ends)}, {remedy}"
        raise UvitError(
            f"sampler.name={config.name!r} with sampler.steps={config.steps} on the schedule "
            f"{schedule.config.name!r} would give samples {size:.3g} times as large as the data if "
            f"the network's {prediction!r} errs by 1%; {remedy}"
        )
    return rows


def amplification(rows: list[SolverRow], schedule: Schedule, prediction: str) -> float:
    """The size of samples of data N(0, 1), or N(0, 0.3^2) if it is larger, of a network that errs.

    The exact denoiser of such data is linear. The size is the root mean square over the noise, plus
    the largest sum of the network's errors, each 1% of the root mean square of the prediction. The
    narrow data stand for the details of real ones: a step may fit one spread by chance.
    """
    return max(_size(rows, schedule, prediction, spread) for spread in SPREADS)


def _size(rows: list[SolverRow], schedule: Schedule, prediction: str, spread: float) -> float:
    count = len(rows)
    t = np.array([row.t for row in rows])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    exact = np.stack([alpha * spread**2, sigma], 1) / (alpha**2 * spread**2 + sigma**2)[:, None]
    gains = ERROR * _gains(rows, schedule, prediction)
    form = 1 if any(row.eps for row in rows) else 0
    # States as linear functions of x_T, the errors and the noise.
    x = y = np.eye(1, 1 + 2 * count)[0]
    past = (np.zeros_like(x), np.zeros_like(x))
    for i, row in enumerate(rows):
        x0, eps = exact[i, :, None] * y
        x0[1 + i] += gains[i, 0]
        eps[1 + i] += gains[i, 1]
        y = row.x * x + row.y * y + row.x0 * x0 + row.eps * eps
        y = y + row.past1 * past[0] + row.past2 * past[1]
        y[1 + count + i] += row.noise
        past = ((x0, eps)[form], past[0])
        x = y if row.ends_step else x
    noise = np.concatenate([x[:1], x[1 + count :]])
    return float(np.sqrt(np.sum(noise**2)) + np.sum(np.abs(x[1 : 1 + count])))


def _gains(rows: list[SolverRow], schedule: Schedule, prediction: str) -> np.ndarray:
    """The errors of x0 and eps per relative error of the prediction at each row; (rows, 2)."""
    with jax.ensure_compile_time_eval():
        t = jax.numpy.asarray(np.array([row.t for row in rows]), jax.numpy.float32)
        size = np.hypot(*process.coefficients(prediction, schedule, t))
        size = size / np.asarray(process.determinant(prediction, schedule, t))
        both = np.stack([-np.asarray(schedule.sigma(t)), np.asarray(schedule.alpha(t))], 1)
    return both * size.astype(np.float64)[:, None]
