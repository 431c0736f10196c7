"""Sampling from noise at t = 1 to data at t = 0, by any rule that a table (table.py) can express.

`sample` runs a table of coefficients with one `lax.scan` over network evaluations, in which the
network is traced once whatever the sampler. Wrap it in `jax.jit` together with the network; nothing
here is jitted by itself.

    denoise = process.denoiser(predict, schedule, "eps")
    x_0 = sample(SamplerConfig(name="dpm_solver", steps=50), denoise, schedule, x_T)
"""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.diffusion.noise import fold_in, normal
from uvit_jax.diffusion.process import Denoised
from uvit_jax.diffusion.schedule import Schedule
from uvit_jax.diffusion.solvers import dpm_solver, multistep, simple
from uvit_jax.diffusion.solvers.stability import stable_rows
from uvit_jax.diffusion.solvers.table import EVALUATIONS, SamplerConfig, SolverRow, time_grid
from uvit_jax.errors import UvitError

__all__ = ["SamplerConfig", "Trajectory", "num_evaluations", "sample"]

Tree = Any


class Trajectory(NamedTuple):
    """The states at the ends of all steps.

    Attributes:
      times: float64 numpy (steps + 1,), descending.
      states: like the state, with a leading axis of steps + 1; the first is x_T.
    """

    times: np.ndarray
    states: Tree


def num_evaluations(config: SamplerConfig) -> int:
    """The number of network evaluations of `sample`; of heun, one less if it ends at sigma = 0."""
    if config.name.startswith("dpm_solver") and config.method == "singlestep":
        return config.order * config.steps
    return EVALUATIONS.get(config.name, 1) * config.steps


def sample(
    config: SamplerConfig,
    denoise: Callable[..., Denoised],
    schedule: Schedule,
    x_T: Tree,
    key: jax.Array | None = None,
    *,
    prediction: str | None = None,
    keep_trajectory: bool = False,
) -> Tree | tuple[Tree, Trajectory]:
    """Generates samples with one `lax.scan`.

    Args:
      config: the sampler (static).
      denoise: `denoise(x, t)` with x like x_T and t a float32 scalar in [0, 1]; see
        `process.denoiser`. With the sampler `mean_flow`, `denoise(x, t, s)`.
      schedule: the noise schedule of the state.
      x_T: a pytree of standard normal noise, leaves (B, ...).
      key: for the samplers that add noise. The key for evaluation i and the leaf at path p is
        `fold_in(fold_in(key, i), crc32(p))`, so a segment's noise is independent of other segments.
        With keys (B,), one per example, an example's noise is independent of the batch as well.
      prediction: of the network, whose errors the table is fitted to (see `table_of`).
      keep_trajectory: whether to also return the intermediate states.

    Returns:
      x_0, like x_T, float32 (float64 if x_T is); with keep_trajectory, (x_0, Trajectory).

    Raises:
      UvitError: if a key is missing, or `table_of` raises.
    """
    table = table_of(config, schedule, prediction)
    dtype = jnp.result_type(jnp.float32, *(x.dtype for x in jax.tree.leaves(x_T)))
    columns = {
        f.name: np.array([getattr(r, f.name) for r in table]) for f in dataclasses.fields(SolverRow)
    }
    learned = config.variance == "learned"
    noisy = bool(columns["noise"].any())
    if noisy and key is None:
        raise UvitError(f"the sampler {config.name!r} adds noise and needs a key")
    # Columns of zeros are left out of the compiled program.
    terms = ("x", "y", "x0", "eps", "past1", "past2")
    used = [name for name in terms if columns[name].any()]
    form = "eps" if columns["eps"].any() else "x0"  # the form of past1 and past2
    depth = 2 if "past2" in used else 1 if "past1" in used else 0
    single = bool(columns["ends_step"].all())

    def body(carry, row):
        x, y, past = carry
        at = {"x": x, "y": y, **{f"past{i + 1}": p for i, p in enumerate(past)}}
        ends = (row["t_next"],) if config.name == "mean_flow" else ()
        denoised = denoise(y, row["t"], *ends)
        at |= {"x0": denoised.x0, "eps": denoised.eps}
        new = _sum([(row[name], at[name]) for name in used])
        if noisy:
            z = _noise(fold_in(key, row["index"]), new)
            if learned:
                new = jax.tree.map(
                    lambda n, v, e: n + _learned_std(row, v) * e, new, _mix(denoised), z
                )
            else:
                new = _sum([(1.0, new), (row["noise"], z)])
        now = jax.tree.map(lambda p: p.astype(dtype), at[form])
        past = (now, *past)[:depth]
        base = (
            new if single else jax.tree.map(lambda n, o: jnp.where(row["ends_step"], n, o), new, x)
        )
        return (base, new, past), (new if keep_trajectory else None)

    rows = {name: jnp.asarray(columns[name], dtype) for name in columns if name != "ends_step"}
    rows["ends_step"] = jnp.asarray(columns["ends_step"])
    rows["index"] = jnp.arange(len(table))
    x_T = jax.tree.map(lambda x: jnp.asarray(x, dtype), x_T)
    zeros = jax.tree.map(jnp.zeros_like, x_T)
    (x_0, _, _), states = jax.lax.scan(body, (x_T, x_T, (zeros,) * depth), rows)
    if not keep_trajectory:
        return x_0
    ends = np.flatnonzero(columns["ends_step"])
    states = jax.tree.map(lambda x, s: jnp.concatenate([x[None], s[ends]]), x_T, states)
    return x_0, Trajectory(np.concatenate([columns["t"][:1], columns["t_next"][ends]]), states)


def check(config: SamplerConfig, schedule: Schedule, prediction: str | None = None) -> None:
    """Builds the sampler's table and drops it.

    Raises:
      UvitError: if `table_of` raises, or a coefficient is not finite.
    """
    with np.errstate(all="ignore"):
        table = _table(config, schedule)
    for row in table:
        for name, value in vars(row).items():
            if not np.isfinite(value) and not name.startswith("log_"):
                raise UvitError(
                    f"the sampler {config.name!r} has no finite step from t={row.t:.6g} to "
                    f"{row.t_next:.6g} on the schedule {schedule.config.name!r}; change steps, "
                    "spacing, t_start or t_end"
                )
    table_of(config, schedule, prediction)


def table_of(
    config: SamplerConfig, schedule: Schedule, prediction: str | None = None
) -> list[SolverRow]:
    """The table of a sampler.

    Args:
      prediction: what the network predicts, with errors (see `stability.stable_rows`): with a
        denoiser that clips x0, from which it computes eps, `x0`. None is for an exact denoiser.

    Raises:
      UvitError: if the schedule does not support the config, or small errors of the prediction
        would dominate the samples.
    """
    if prediction is None:
        return _table(config, schedule)
    return stable_rows(config, schedule, prediction, _table)


def _table(config: SamplerConfig, schedule: Schedule) -> list[SolverRow]:
    if config.name.startswith("dpm_solver"):
        return dpm_solver.rows(config, schedule)
    rows = getattr(simple, config.name, None) or getattr(multistep, config.name)
    return rows(config, schedule, time_grid(config, schedule))


def _sum(terms: list[tuple[jax.Array, Tree]]) -> Tree:
    weights = [w for w, _ in terms]
    return jax.tree.map(
        lambda *xs: sum(w * x for w, x in zip(weights, xs, strict=True)), *(x for _, x in terms)
    )


def _noise(key: jax.Array, like: Tree) -> Tree:
    def noise(path, x):
        name = zlib.crc32(jax.tree_util.keystr(path, simple=True, separator="/").encode())
        return normal(fold_in(key, np.uint32(name)), x.shape, x.dtype)

    return jax.tree_util.tree_map_with_path(noise, like)


def _learned_std(row: dict[str, jax.Array], mix: jax.Array) -> jax.Array:
    """The standard deviation (Nichol & Dhariwal 2021, eq. 15); 0 in the last step, as `noise`."""
    log_variance = mix * row["log_large"] + (1 - mix) * row["log_small"]
    return jnp.where(row["noise"] > 0, jnp.exp(log_variance / 2), 0.0)


def _mix(denoised: Denoised) -> Tree:
    if denoised.log_variance_mix is None:
        raise UvitError("variance='learned' needs a denoiser with learned_range=True")
    return denoised.log_variance_mix
