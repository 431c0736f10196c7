"""A sampler as a table: `SamplerConfig`, the time grids, and `SolverRow`, a row of the table.

All samplers here are linear between network evaluations. So a sampler is a table with one row per
evaluation, computed once on the host in float64 from the schedule; `solve.sample` runs any such
table with one `lax.scan` that traces the network once. With x the state at the beginning of the
current step, y the point at which the network is evaluated (x itself in a step's first row), x0 and
eps its result there, and past1 and past2 the results one and two rows before, a row computes

    y <- a_x x + a_y y + a_x0 x0 + a_eps eps + a_past1 past1 + a_past2 past2 + noise z

with z ~ N(0, I), and, if it is the last row of its step, x <- y.
"""

import dataclasses
from typing import Literal

import numpy as np

from uvit_jax.config import Config
from uvit_jax.diffusion.schedule import Schedule
from uvit_jax.errors import UvitError

Sampler = Literal[
    *("ddpm", "ddim", "euler_maruyama", "euler", "heun", "dpm_solver", "dpm_solver_pp"),
    *("sde_dpm_solver_pp", "unipc", "mean_flow"),
]
EVALUATIONS = {"heun": 2}
"""Network evaluations per step where it is not 1; those of DPM-Solver follow from its order."""

FINITE = ("dpm_solver", "euler_maruyama", "sde_dpm_solver_pp", "unipc")
"""How the names of samplers begin that need a finite log-SNR at both ends."""
MAX_STEPS = 100_000
"""Tables are built on the host, row by row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig(Config):
    """A sampler and its parameters; None is the sampler's published choice.

    Attributes:
      name: the sampler.
        `ddpm`: ancestral sampling (Ho et al. 2020, eqs. 6, 7 and 11), respaced as ADM and DiT do.
        `ddim`: Song et al. 2021 (DDIM), eqs. 12 and 16, with `eta`.
        `euler_maruyama`: of the reverse SDE, last step without noise (Song et al. 2021, eq. 6).
        `euler`, `heun`: of the probability-flow ODE dx/dt = alpha' x0 + sigma' eps.
        `dpm_solver`: DPM-Solver, in terms of eps (Lu et al. 2022a).
        `dpm_solver_pp`: DPM-Solver++, in terms of x0 (Lu et al. 2022b).
        `sde_dpm_solver_pp`: SDE-DPM-Solver++(2M), which adds noise (Lu et al. 2022b).
        `mean_flow`: x_s = x_t - (t - s) u for a network of mean velocities (objective `mean_flow`),
        exact for any number of steps (Geng et al. 2025).
        `unipc`: UniPC of order 2, in terms of x0 (Zhao et al. 2023).
      steps: the number of steps; with method `fast`, the number of network evaluations.
      spacing: of the step ends. `time`: uniform in t (after the schedule's `warp`);
        `time_quadratic`: uniform in sqrt(t); `log_snr`: uniform in log-SNR; `respaced`: `steps` of
        the T discrete steps, first and last included, evenly spaced and rounded (ADM's rule), then
        t = 0 (ddpm, ddim and euler only). Default: `respaced` for ddpm and ddim on discrete
        schedules (unless t_start or t_end is given), `log_snr` for dpm_solver, else `time`.
      t_start, t_end: the first and the last time. Default: the schedule's t_max and t_min, except
        that ddpm and ddim end at 0 (but not with `log_snr`), and euler_maruyama not below 1e-3; for
        networks of eps or score on a schedule with alpha(t_max) = 0, where sigma = 100 alpha.
      eta: of ddim; 0 is deterministic, 1 is ddpm with the small variance.
      variance: of ddpm. `small`: the posterior variance given x0 (beta tilde); `large`: beta;
        `learned`: interpolated by the network's output (`denoiser(..., learned_range=True)`).
      method: of the DPM solvers. `fast`: singlestep of order 3, with lower orders at the end so
        that `steps` is the number of evaluations (Lu et al. 2022a, section 3.4), and with order 1
        throughout where these are too few (see stability.py); `singlestep`; `multistep`, for
        dpm_solver_pp only.
      order: of singlestep and multistep.
      lower_order_final: lowers the order of `multistep`, unipc and sde_dpm_solver_pp to 1 towards
        the last step: more stable with few steps, at the price of the asymptotic order.

    Raises:
      UvitError: for an unknown name, an impossible value, or a setting of another sampler.
    """

    name: "Sampler" = "dpm_solver"  # quoted, so that a `Sampler` extended below is the one checked
    steps: int = 50
    spacing: Literal["time", "time_quadratic", "log_snr", "respaced"] | None = None
    t_start: float | None = None
    t_end: float | None = None
    eta: float = 0.0
    variance: Literal["small", "large", "learned"] = "small"
    method: Literal["fast", "singlestep", "multistep"] = "fast"
    order: Literal[1, 2, 3] = 3
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.steps <= MAX_STEPS:
            raise UvitError(f"steps must lie in [1, {MAX_STEPS}], got {self.steps}")
        for key in ("t_start", "t_end"):
            t = getattr(self, key)
            if t is not None and not 0 <= t <= 1:
                raise UvitError(f"{key} must lie in [0, 1], got {t}")
        if None not in (self.t_start, self.t_end) and self.t_start <= self.t_end:
            raise UvitError(
                f"t_start={self.t_start} must be larger than t_end={self.t_end}: samplers run from "
                "noise, t = 1, to data, t = 0"
            )
        if self.method != "fast" and not self.name.startswith("dpm_solver"):
            raise UvitError(f"method={self.method!r} needs a DPM solver, not {self.name!r}")
        if self.method == "multistep" and self.name != "dpm_solver_pp":
            raise UvitError(f"method='multistep' needs 'dpm_solver_pp', not {self.name!r}")
        if self.eta < 0 or (self.eta and self.name != "ddim"):
            raise UvitError(f"eta must be at least 0, and 0 for {self.name!r}: only 'ddim' has it")
        if self.variance != "small" and self.name != "ddpm":
            raise UvitError(f"variance={self.variance!r} needs 'ddpm', not {self.name!r}")
        if self.spacing == "respaced" and self.name not in ("ddpm", "ddim", "euler"):
            raise UvitError(f"spacing='respaced' ends at t = 0, which {self.name!r} cannot reach")
        if self.spacing == "respaced" and (self.t_start, self.t_end) != (None, None):
            raise UvitError("spacing='respaced' has its own t_start and t_end; drop them")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverRow:
    """One network evaluation (see the top of this file). Times and coefficients are float64.

    Attributes:
      t: where the network is evaluated.
      t_next: the time of the y that this row computes.
      x, y, x0, eps, past1, past2, noise: the coefficients.
      log_small, log_large: log variances; with variance `learned` they replace `noise`.
      ends_step: whether this is the last row of its step.
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
      UvitError: if the schedule does not support the spacing, or the range of t is impossible.
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
    finite = spacing == "log_snr" or config.name.startswith(FINITE)
    t_end, t_start = schedule.log_snr_range if finite else (schedule.t_min, schedule.t_max)
    if direct and spacing != "log_snr":
        t_end = 0.0
    if config.name == "euler_maruyama":
        t_end = max(t_end, 1e-3)
    t_start = t_start if config.t_start is None else config.t_start
    t_end = t_end if config.t_end is None else config.t_end
    if not 0 <= t_end < t_start <= 1:
        raise UvitError(f"t_start={t_start} and t_end={t_end} must satisfy 0 <= end < start <= 1")
    ends = np.asarray([t_start, t_end])
    if finite and not np.isfinite(schedule.half_log_snr(ends)).all():
        raise UvitError(
            f"the sampler {config.name!r} needs a finite log-SNR, which {schedule.config.name!r} "
            f"lacks at t_start={t_start} or t_end={t_end}"
        )
    if config.name == "heun" and t_end == 0 < schedule.t_min:
        raise UvitError("the sampler 'heun' needs t_end > 0: sigma' is infinite at t = 0")
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
            f"spacing='respaced' needs a schedule with discrete steps, not {schedule.config.name!r}"
        )
    if steps > total:
        raise UvitError(f"steps must be at most {total} with spacing='respaced', got {steps}")
    n = np.round(np.linspace(0, total - 1, steps)) + 1 if steps > 1 else np.array([total])
    return np.concatenate([n[::-1] / total, [0.0]])
