"""The training objective, as two pure functions: `corrupt` a whole batch, then take the `loss`.

The split lets a trainer cut the result of `corrupt` into microbatches (every leaf has the leading
axis B) and accumulate gradients over exactly the noise of the full batch.

Each noisy segment has its own time, sampled independently, or shares one with the segments that
have the same time key. The loss is the sum over segments of the mean squared errors (UniDiffuser:
Bao et al. 2023, eq. 5); a segment with learned variances adds the variational bound (bound.py).

Randomness is plain `jax.random` on global shapes, so it does not depend on sharding. The key of a
segment is `fold_in(key, crc32(name))`: adding or reordering segments leaves the noise of the others
unchanged.
"""

import dataclasses
import zlib
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.config import Config
from uvit_jax.diffusion import bound, process
from uvit_jax.diffusion.noise import with_shared_noise
from uvit_jax.diffusion.schedule import ScheduleConfig, make
from uvit_jax.errors import UvitError, nearest

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Config):
    """The network's prediction, how training times are sampled, and the weights of the errors.

    Attributes:
      schedule: the noise schedule, shared by all noisy segments.
      prediction: `eps`, `x0`, `v`, `velocity` or `score` (see process.py).
      time_sampling: the distribution of t. None is `discrete` on schedules with discrete steps and
        `uniform` on the others, as published.
        `uniform`: t = warp(u), u ~ U[0, 1) (U-ViT on continuous schedules).
        `logit_normal`: t = warp(sigmoid(z)), z ~ N(logit_mean, logit_std^2) (Esser et al. 2024,
        eq. 19).
        `discrete`: t = n/T, n ~ U{1, ..., T}; the schedule must have steps (DDPM; U-ViT-H; DiT).
      logit_mean, logit_std: of `logit_normal`.
      weighting: the weight of each example's error. `uniform` is 1 on the error of the prediction
        itself. The others are defined by their weight on the error of x0, and so give the same loss
        for every prediction:
        `snr`: snr, that is 1 on eps.
        `min_snr`: min(snr, gamma) (Hang et al. 2023).
        `truncated_snr`: max(snr, 1) (Salimans & Ho 2022).
        `sigmoid`: snr sigmoid(bias - log snr) (Hoogeboom et al. 2024).
        `velocity`: 1 on the velocity where sigma is at least `floor`, and on the error of x0 the
        weight of sigma = `floor` below it: with a rectified flow, 1 / max(t, floor)^2. A network
        that predicts x0 learns fine detail from it, which an unweighted error of x0 hardly counts.
      floor: of `velocity`.
      gamma: of `min_snr`.
      bias: of `sigmoid`.
      objective: `denoise` is the error of the prediction. `mean_flow`: the mean velocity between
        two times (mean_flow.py), which needs a rectified flow and a segment of kind `setting` for
        the interval. The network's output is that velocity u, or with the prediction `x0`,
        x_t - t u; the error is that of u. With `train.teacher` it is the mean velocity of a frozen
        teacher's flow. `distill`: the guided prediction of a teacher in place of the data's (Meng
        et al. 2023, section 3.1).
      unequal: of `mean_flow`, the share of examples whose two times differ; the others are ordinary
        flow matching.
      guidance: of `mean_flow` and `distill`, the scale s of the guidance that the network learns to
        have without a second evaluation. With a setting segment for guidance it is the largest one:
        s is uniform in [0, guidance] and an input.
      shared_noise: the share of the noise's variance that all frames have in common, of all noisy
        videos, which are parts of one clip (Ge et al. 2023, PYoCo). A network that starts from
        images makes equal frames of equal noise. Samplers must not add noise of their own; losses
        at different shares are not comparable.
      adaptive: p of an additional weight 1 / (error + 0.001)^p on each example's error, without a
        gradient (Geng et al. 2025, section 4.3); 0 is none.

    Raises:
      UvitError: for an unknown name or an impossible value.
    """

    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    prediction: process.Prediction = "eps"
    time_sampling: Literal["uniform", "logit_normal", "discrete"] | None = None
    logit_mean: float = 0.0
    logit_std: float = 1.0
    weighting: Literal["uniform", "snr", "min_snr", "truncated_snr", "sigmoid", "velocity"] = (
        "uniform"
    )
    floor: float = 0.1
    gamma: float = 5.0
    bias: float = 0.0
    objective: Literal["denoise", "mean_flow", "distill"] = "denoise"
    unequal: float = 0.25
    guidance: float = 0.0
    shared_noise: float = 0.0
    adaptive: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = make(self.schedule).discrete_steps
        if self.time_sampling is None:
            object.__setattr__(self, "time_sampling", "discrete" if steps else "uniform")
        if self.time_sampling == "discrete" and steps is None:
            raise UvitError(
                "time_sampling='discrete' needs a schedule with steps, 'sd' or 'ddpm_linear', not "
                f"{self.schedule.name!r}"
            )
        if min(self.logit_std, self.gamma, self.floor) <= 0:
            raise UvitError("logit_std, gamma and floor must be positive")
        if not 0 <= self.unequal <= 1 or min(self.guidance, self.adaptive) < 0:
            raise UvitError("unequal must lie in [0, 1], guidance and adaptive be at least 0")
        if not 0 <= self.shared_noise < 1:
            raise UvitError(f"shared_noise must lie in [0, 1), got {self.shared_noise}")
        if self.guidance and self.objective == "denoise":
            raise UvitError("guidance needs objective='mean_flow' or 'distill'; drop it")
        flow = self.schedule.name == "rectified_flow" and self.prediction in ("velocity", "x0")
        if self.objective == "mean_flow" and not flow:
            raise UvitError(
                "objective='mean_flow' needs schedule.name='rectified_flow' and "
                "prediction='velocity' or 'x0'"
            )

    @property
    def target(self) -> process.Prediction:
        """What the error is taken of."""
        return "velocity" if self.objective == "mean_flow" else self.prediction


def of_data(config: ObjectiveConfig) -> ObjectiveConfig:
    """The objective without a teacher: the error of the data's own targets."""
    if config.objective != "distill":
        return config
    return dataclasses.replace(config, objective="denoise", guidance=0.0)


class Corrupted(NamedTuple):
    """A batch at its noise levels. Dicts by noisy segment; every leaf has the leading axis B.

    Attributes:
      noisy: x_t, shaped like the clean segments, float32.
      times: t in [0, 1], (B,).
      network_times: t as the network takes it (`Schedule.network_time`), (B,).
      targets: the exact predictions, shaped like the clean segments, float32.
      weights: of each example's squared error, (B,).
      steps: for segments with a learned range, the true reverse steps (see bound.py).
      interval, time_rate: of mean_flow, t - r and d(network time)/dt, (B,).
      guidance: the scale that the prediction is to have, (B,), where the config has any.
      adaptive: the exponent p, (B,), where the config has one.
    """

    noisy: Arrays
    times: Arrays
    network_times: Arrays
    targets: Arrays
    weights: Arrays
    steps: dict[str, bound.ReverseStep] = {}  # noqa: RUF012
    interval: jax.Array | None = None
    time_rate: jax.Array | None = None
    guidance: jax.Array | None = None
    adaptive: jax.Array | None = None


def corrupt(
    key: jax.Array,
    clean: Arrays,
    config: ObjectiveConfig,
    *,
    time_keys: Mapping[str, str] | None = None,
    learned_range: Collection[str] = (),
    given: Mapping[str, float] | None = None,
    dropped: Mapping[str, float] | None = None,
    t: jax.Array | float | None = None,
    vary_guidance: bool = False,
) -> Corrupted:
    """Samples times and noise for a whole batch and applies them.

    Args:
      key: one PRNG key for the batch.
      clean: data by noisy segment, leaves (B, ...) of any float type.
      config: the objective.
      time_keys: the time key of each segment; segments with one key share their times, as with
        {"image": "image", "clip_image": "image"}. A segment without one has its own name as key.
      given: the segments that are given in a share of the examples, independently: there they are
        clean data at time 0 without a loss. In the others they have the time of the first segment
        that is not in `given`. Their errors are weighted by their size relative to that segment's,
        as those of the parts of one video.
      dropped: the segments that are pure noise, at time 1 and without a loss, in a share of the
        examples, independently and whether given or not: for guidance by noise.
      learned_range: the segments for which the network returns twice the channels, the second half
        being its variances (DiT).
      t: one time for all, instead of sampled ones; of `mean_flow`, both times.
      vary_guidance: whether the scale of guidance is sampled.

    Raises:
      UvitError: if `time_keys` names a segment that is not in `clean`, or a range is to be learned
        without discrete steps.
    """
    schedule, time_keys = make(config.schedule), time_keys or {}
    if learned_range:
        bound.check(schedule, config.time_sampling)
    for name in time_keys:
        if name not in clean:
            raise UvitError(f"time_keys has the unknown segment {name!r}{nearest(name, clean)}")
    given = given or {}
    main = next((name for name in clean if name not in given), "")
    if given and (not main or not given.keys() <= clean.keys()):
        raise UvitError(f"given must name some of the segments, not all of {', '.join(clean)}")
    batch = next(iter(clean.values())).shape[0]
    times, eps = {}, {}
    for name, x0 in clean.items():
        if t is None:
            timed = main if name in given else name
            times[name] = _sample_times(_key(key, time_keys.get(timed, timed), 0), batch, config)
        else:
            times[name] = jnp.full(batch, t, jnp.float32)
        eps[name] = jax.random.normal(_key(key, name, 1), x0.shape, jnp.float32)
    independent = eps
    eps = with_shared_noise(_key(key, "", 6), eps, config.shared_noise)
    constants = {}
    if config.objective == "mean_flow":
        unequal = config.unequal if t is None else 0.0
        start_B = next(iter(times.values()))  # of all segments
        end_B, constants["interval"] = _later(key, start_B, config, unequal)
        constants["time_rate"] = jnp.full(batch, schedule.time_scale, jnp.float32)
        times = dict.fromkeys(times, end_B)
    if config.guidance:
        share_B = jax.random.uniform(_key(key, "guidance", 5), (batch,)) if vary_guidance else 1.0
        constants["guidance"] = jnp.full(batch, config.guidance, jnp.float32) * share_B
    if config.adaptive:
        constants["adaptive"] = jnp.full(batch, config.adaptive, jnp.float32)
    targets = process.combine(config.target, schedule, clean, eps, times)
    weights = {name: weight(t, config) for name, t in times.items()}
    for name, share in given.items():
        given_B = jax.random.bernoulli(_key(key, name, 2), share, (batch,))
        times[name] = jnp.where(given_B, 0.0, times[name])
        size = clean[name].size / clean[main].size
        weights[name] = jnp.where(given_B, 0.0, size * weights[name])
    for name, share in (dropped or {}).items():
        dropped_B = jax.random.bernoulli(_key(key, name, 3), share, (batch,))
        times[name] = jnp.where(dropped_B, 1.0, times[name])
        weights[name] = jnp.where(dropped_B, 0.0, weights[name])
        if config.shared_noise:  # which would tell of the others' noise
            dropped_B = dropped_B.reshape(-1, *[1] * (eps[name].ndim - 1))
            eps[name] = jnp.where(dropped_B, independent[name], eps[name])
    return Corrupted(
        noisy=process.add_noise(schedule, clean, eps, times),
        times=times,
        network_times={name: schedule.network_time(t) for name, t in times.items()},
        targets=targets,
        weights=weights,
        steps={
            name: bound.reverse_step(schedule, config.target, clean[name], times[name])
            for name in learned_range
        },
        **constants,
    )


def loss(outputs: Arrays, corrupted: Corrupted) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean over the batch of `example_losses`, with the same metrics.

    Returns:
      (loss (), metrics). The mean of the losses of equal slices is the loss of the whole batch.
    """
    losses_B, metrics = example_losses(outputs, corrupted)
    return jnp.mean(losses_B), metrics


def example_losses(outputs: Arrays, corrupted: Corrupted) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Each example's sum over segments of weighted mean squared errors, in float32.

    A segment with a learned range adds T/1000 times the bound's term of its step, in bits per
    dimension: L_hybrid = L_simple + 0.001 L_vlb (Nichol & Dhariwal 2021, eq. 16), as L_vlb is the
    sum of T terms, one of which is sampled.

    Args:
      outputs: the network's, by segment, shaped like `corrupted.targets`, with twice the channels
        where a range is learned.
      corrupted: the result of `corrupt`, or the same slice of each of its leaves.

    Returns:
      (losses (B,), metrics), metrics a flat dict of scalars: `loss/<segment>` is that segment's
      part of the mean loss, `mse/<segment>` its error without weights, and `vb/<segment>` the
      bound's term.

    Raises:
      UvitError: if an output is missing or has another shape than its target requires.
    """
    losses_B, metrics = [], {}
    for name, target in corrupted.targets.items():
        if name not in outputs:
            hint = nearest(name, outputs)
            raise UvitError(f"the network has no output for the segment {name!r}{hint}")
        output = jnp.asarray(outputs[name])
        step = corrupted.steps.get(name)
        expected = (*target.shape[:-1], target.shape[-1] * (1 if step is None else 2))
        if output.shape != expected:
            raise UvitError(
                f"the network's output for the segment {name!r} has shape {output.shape}, not "
                f"{expected}"
            )
        output = output.astype(target.dtype)
        if step is not None:
            output, raw = jnp.split(output, 2, axis=-1)
        error = jnp.square(output - target)
        error_B = error.reshape(error.shape[0], -1).mean(axis=1)
        loss_B = corrupted.weights[name] * error_B
        if corrupted.adaptive is not None:
            scale_B = jnp.power(jax.lax.stop_gradient(error_B) + 1e-3, corrupted.adaptive)
            loss_B = loss_B / scale_B
        metrics[f"mse/{name}"] = jnp.mean(error_B)
        if step is not None:
            bits_B = bound.bits(output, raw, target, step)
            metrics[f"vb/{name}"] = jnp.mean(bits_B)
            loss_B += step.weight * bits_B
        metrics[f"loss/{name}"] = jnp.mean(loss_B)
        losses_B.append(loss_B)
    return sum(losses_B), metrics


def weight(t: jax.Array, config: ObjectiveConfig) -> jax.Array:
    """The weight of the prediction's squared error at times t (B,), float32, finite at both ends.

    An error in x0 is one of d / sigma times that size in a prediction of determinant d (see
    process.py), so that a weight w on x0's squared error becomes w sigma^2 / d^2.
    """
    if config.weighting == "uniform":
        return jnp.ones_like(t)
    schedule = make(config.schedule)
    alpha2, sigma2 = jnp.square(schedule.alpha(t)), jnp.square(schedule.sigma(t))
    on_x0_times_sigma2 = {
        "snr": lambda: alpha2,
        "min_snr": lambda: jnp.minimum(alpha2, config.gamma * sigma2),
        "truncated_snr": lambda: jnp.maximum(alpha2, sigma2),
        "sigmoid": lambda: alpha2 * jax.nn.sigmoid(config.bias - schedule.log_snr(t)),
        "velocity": lambda: (
            jnp.square(process.determinant("velocity", schedule, t))
            * jnp.square(jnp.minimum(jnp.sqrt(sigma2) / config.floor, 1))
        ),
    }[config.weighting]()
    return on_x0_times_sigma2 / jnp.square(process.determinant(config.target, schedule, t))


def _sample_times(key: jax.Array, batch: int, config: ObjectiveConfig) -> jax.Array:
    """Times (B,) in [0, 1], float32."""
    schedule = make(config.schedule)
    if config.time_sampling == "discrete":
        steps = schedule.discrete_steps
        return jax.random.randint(key, (batch,), 1, steps + 1) / jnp.float32(steps)
    if config.time_sampling == "uniform":
        return schedule.warp(jax.random.uniform(key, (batch,), jnp.float32))
    normal = jax.random.normal(key, (batch,), jnp.float32)
    return schedule.warp(jax.nn.sigmoid(config.logit_mean + config.logit_std * normal))


def _later(
    key: jax.Array, t_B: jax.Array, config: ObjectiveConfig, unequal: float
) -> tuple[jax.Array, jax.Array]:
    """(t, t - r) for mean velocities: in a share of the examples the times t_B and another one, in
    order, in the others r = t = t_B."""
    other_B = _sample_times(_key(key, "interval", 3), t_B.shape[0], config)
    unequal_B = jax.random.bernoulli(_key(key, "interval", 4), unequal, t_B.shape)
    late_B = jnp.where(unequal_B, jnp.maximum(t_B, other_B), t_B)
    return late_B, jnp.where(unequal_B, late_B - jnp.minimum(t_B, other_B), 0.0)


def _key(key: jax.Array, segment: str, purpose: int) -> jax.Array:
    """The key of a segment's times (purpose 0), noise (1) or whether it is given (2); of the second
    of two times (3), whether it differs (4), the scale of guidance (5), and the noise that frames
    share (6)."""
    named = jax.random.fold_in(key, np.uint32(zlib.crc32(segment.encode())))
    return jax.random.fold_in(named, purpose)
