"""A sampler as a table: `SamplerConfig`, the time grids, and the rows that every solver fills in.

All samplers here are linear between network evaluations. So a sampler is nothing but a table with
one row an evaluation, computed once on the host in float64 from the schedule; samplers.py runs any
such table with a single `lax.scan` that traces the network once. With x the state at the beginning
of the current step, y the point at which the network is evaluated (x itself in a step's first row),
x0 and eps what it says there, and past1, past2 what it said one and two rows before, a row computes

    y <- a_x x + a_y y + a_x0 x0 + a_eps eps + a_past1 past1 + a_past2 past2 + noise z

with z ~ N(0, I), and, if it is the last row of its step, x <- y.
"""

import dataclasses

import numpy as np

from uvit_jax.diffusion.schedule import Schedule
from uvit_jax.errors import UvitError, nearest

SAMPLERS = (
    "ddpm",
    "ddim",
    "euler_maruyama",
    "euler",
    "heun",
    "dpm_solver",
    "dpm_solver_pp",
)
_SPACINGS = ("time", "time_quadratic", "log_snr", "respaced")
_METHODS = {
    "dpm_solver": ("fast", "singlestep"),
    "dpm_solver_pp": ("fast", "singlestep", "multistep"),
}
_VARIANCES = ("small", "large", "learned")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Which sampler, and its few numbers; None stands for the sampler's published choice.

    Attributes:
      name: one of
        `ddpm`: ancestral sampling (Ho et al. 2020, eqs. 6, 7 and 11), respaced as ADM and DiT do.
        `ddim`: Song et al. 2021 (DDIM), eqs. 12 and 16, with `eta`.
        `euler_maruyama`: of the reverse SDE, last step without noise (Song et al. 2021, eq. 6).
        `euler`, `heun`: of the probability-flow ODE dx/dt = alpha' x0 + sigma' eps.
        `dpm_solver`: DPM-Solver, in terms of eps (Lu et al. 2022a).
        `dpm_solver_pp`: DPM-Solver++, in terms of x0 (Lu et al. 2022b).
      steps: the number of steps; with method `fast`, the number of network evaluations.
      spacing: of the step ends. `time`: uniform in t (after the schedule's `warp`);
        `time_quadratic`: uniform in sqrt(t); `log_snr`: uniform in log-SNR; `respaced`: `steps` of
        the T discrete steps, first and last included, evenly spread and rounded (ADM's rule), then
        t = 0 (ddpm, ddim and euler only). Default: `respaced` for ddpm and ddim on discrete
        schedules (unless t_start or t_end is given), `log_snr` for dpm_solver, else `time`.
      t_start, t_end: from where to where. Default: the schedule's t_max and t_min, except that ddpm
        and ddim end at 0 (but not with `log_snr`), and euler_maruyama not below 1e-3.
      eta: of ddim; 0 is deterministic, 1 is ddpm with the small variance.
      variance: of ddpm. `small`: the posterior variance given x0 (beta tilde); `large`: beta;
        `learned`: between the two as the network says (`denoiser(..., learned_range=True)`).
      method: of the dpm solvers. `fast`: singlestep of order 3, closing with lower ones so that
        `steps` evaluations are spent (Lu et al. 2022a, section 3.4); `singlestep`; `multistep`, for
        dpm_solver_pp only.
      order: 1, 2 or 3, of singlestep and multistep.
      lower_order_final: lets the order of `multistep` fall to 1 towards the last step: steadier in
        few steps, at the price of the asymptotic order of 3M.

    Raises:
      UvitError: for an unknown name, an impossible value, or a setting of another sampler.
    """

    name: str = "dpm_solver"
    steps: int = 50
    spacing: str | None = None
    t_start: float | None = None
    t_end: float | None = None
    eta: float = 0.0
    variance: str = "small"
    method: str = "fast"
    order: int = 3
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        known = {"name": SAMPLERS, "spacing": (None, *_SPACINGS), "variance": _VARIANCES}
        known["method"] = _METHODS.get(self.name, ("fast",))
        for key, values in known.items():
            value = getattr(self, key)
            if value not in values:
                hint = nearest(str(value), (v for v in values if v))
                of = f" of the sampler {self.name!r}" if key == "method" else ""
                raise UvitError(f"{key} {value!r} is not known{of}{hint}")
        if self.steps < 1:
            raise UvitError(f"steps must be at least 1, got {self.steps}")
        if self.order not in (1, 2, 3):
            raise UvitError(f"order must be 1, 2 or 3, got {self.order}")
        if self.eta < 0 or (self.eta and self.name != "ddim"):
            raise UvitError(f"eta must be at least 0 and belongs to 'ddim', not to {self.name!r}")
        if self.variance != "small" and self.name != "ddpm":
            raise UvitError(f"variance belongs to 'ddpm', not to {self.name!r}")
        if self.spacing == "respaced" and self.name not in ("ddpm", "ddim", "euler"):
            raise UvitError(f"spacing 'respaced' ends at t = 0, which {self.name!r} cannot reach")
        if self.spacing == "respaced" and (self.t_start, self.t_end) != (None, None):
            raise UvitError("spacing 'respaced' has its own t_start and t_end; drop them")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One network evaluation (see the top of this file). Times and coefficients are float64.

    Attributes:
      t: where the network is evaluated.
      t_next: the time of the y that this row computes.
      x, y, x0, eps, past1, past2, noise: the coefficients.
      log_small, log_large: log variances, for the variance `learned`, which replaces `noise`.
      ends_step: whether x becomes y.
    """

    t: float
    t_next: float
    x: float = 0.0
    y: float = 0.0
    x0: float = 0.0
    eps: float = 0.0
    past1: float = 0.0
    past2: float = 0.0
    noise: float = 0.0
    log_small: float = 0.0
    log_large: float = 0.0
    ends_step: bool = True


def time_grid(
    config: SamplerConfig, schedule: Schedule, intervals: int | None = None
) -> np.ndarray:
    """The descending step ends, float64 (intervals + 1,); `intervals` is `config.steps` by default.

    Raises:
      UvitError: if the schedule cannot be spaced so, or the range of t makes no sense.
    """
    intervals = config.steps if intervals is None else intervals
    direct = config.name in ("ddpm", "ddim")
    spacing = config.spacing
    if spacing is None and config.name == "dpm_solver":
        spacing = "log_snr"
    elif spacing is None:
        free = config.t_start is None and config.t_end is None
        spacing = "respaced" if direct and schedule.discrete_steps and free else "time"
    if spacing == "respaced":
        return _respaced(intervals, schedule)
    finite = spacing == "log_snr" or config.name.startswith(("dpm_solver", "euler_maruyama"))
    t_end, t_start = schedule.log_snr_range if finite else (schedule.t_min, schedule.t_max)
    if direct and spacing != "log_snr":
        t_end = 0.0
    if config.name == "euler_maruyama":
        t_end = max(t_end, 1e-3)
    t_start = t_start if config.t_start is None else config.t_start
    t_end = t_end if config.t_end is None else config.t_end
    if not 0 <= t_end < t_start <= 1:
        raise UvitError(f"t_start {t_start} and t_end {t_end} must satisfy 0 <= end < start <= 1")
    ends = np.asarray([t_start, t_end])
    if finite and not np.isfinite(schedule.half_log_snr(ends)).all():
        raise UvitError(
            f"the sampler {config.name!r} needs a finite log-SNR, which {schedule.config.name!r} "
            f"does not have at both t_start {t_start} and t_end {t_end}"
        )
    if config.name == "heun" and t_end == 0 < schedule.t_min:
        raise UvitError("the sampler 'heun' needs sigma' at t_end, where it is infinite: t_end > 0")
    if spacing == "log_snr":
        grid = schedule.inverse_half_log_snr(
            np.linspace(*schedule.half_log_snr(ends), intervals + 1)
        )
    elif spacing == "time_quadratic":
        grid = np.linspace(t_start**0.5, t_end**0.5, intervals + 1) ** 2
    else:
        grid = schedule.warp(np.linspace(*schedule.unwarp(ends), intervals + 1))
    grid[[0, -1]] = ends
    return grid


def _respaced(steps: int, schedule: Schedule) -> np.ndarray:
    """ADM's respacing: the steps 1 + round(i (T - 1) / (steps - 1)), descending, then 0."""
    total = schedule.discrete_steps
    if total is None:
        raise UvitError(
            f"spacing 'respaced' needs a schedule with discrete steps, not {schedule.config.name!r}"
        )
    if steps > total:
        raise UvitError(f"steps must be at most {total} with spacing 'respaced', got {steps}")
    n = np.round(np.linspace(0, total - 1, steps)) + 1 if steps > 1 else np.array([total])
    return np.concatenate([n[::-1] / total, [0.0]])
