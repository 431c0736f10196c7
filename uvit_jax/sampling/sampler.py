"""From a model to pictures: network, guidance and sampler joined into one function to be jitted.

draw = make_sampler(model, diffusion, sample)
images = draw(params, key, conditions)["image"]
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.autoencoders.kl import SCALE
from uvit_jax.diffusion import process
from uvit_jax.diffusion.guidance import guided_by_levels, used
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.schedule import make
from uvit_jax.diffusion.solvers import solve
from uvit_jax.diffusion.solvers.solve import SamplerConfig
from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.model import Model
from uvit_jax.parallel.attention.implementations import CONTEXT_PARALLEL
from uvit_jax.parallel.sharding import constrain_batch
from uvit_jax.sampling.conditions import null

CACHES = ("when_exact", "always", "never")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What to draw, and how.

    Attributes:
      sampler: see `SamplerConfig`.
      guidance_scale: s in conditional + s (conditional - unconditional); 0 is no guidance. DiT's
        and Stable Diffusion's scales are 1 + s. In a model with references it is of text and
        label, with the references kept.
      reference_guidance_scale: the same of references, by what they add to nothing at all:
        nothing + (1 + s_r) (references - nothing) + (1 + s) (all - references), with s the above.
      cache_references: whether keys and values of references are computed once a sample and not
        once a step: `when_exact`, wherever the model allows it (see `Model.cache`), which changes
        nothing but the time it takes; `always`, an error where it does not; or `never`.
      guidance_interval: the t between which guidance acts.
      guidance_channels: how many of a picture's channels are guided, the others being those of the
        conditional prediction; 0 is all. DiT's published samples have 3, of 4.
      clip: x0 is clipped to ±clip at every step, 0 for never (1 for pixels, never for latents).
      count: how many pictures.
      labels, prompts: their conditions, repeated in turn until there are `count`. A label is a
        class's name or number. With no labels, the classes in turn;
        with no prompts, the empty one.
      autoencoder: for a model of latents, the weights of the KL autoencoder that decodes them: a
        file, or diffusers' folder; "" leaves them undecoded.
      latent_scale: what the latents were multiplied by, and are divided by before decoding.
      text_encoder: for a model of a text encoder's features, the folder of the CLIP that encodes
        prompts.
    """

    sampler: SamplerConfig = SamplerConfig()
    guidance_scale: float = 0.0
    reference_guidance_scale: float = 0.0
    cache_references: str = "when_exact"
    guidance_interval: tuple[float, ...] = (0.0, 1.0)
    guidance_channels: int = 0
    clip: float = 0.0
    count: int = 16
    labels: tuple[Any, ...] = ()
    prompts: tuple[str, ...] = ()
    autoencoder: str = ""
    latent_scale: float = SCALE
    text_encoder: str = ""

    def __post_init__(self):
        if self.latent_scale <= 0:
            raise UvitError(f"latent_scale must be positive, got {self.latent_scale}")
        if self.cache_references not in CACHES:
            hint = nearest(self.cache_references, CACHES)
            raise UvitError(f"unknown cache_references {self.cache_references!r}{hint}")
        if self.guidance_channels < 0:
            raise UvitError(f"guidance_channels must be at least 0, got {self.guidance_channels}")
        if self.count < 1:
            raise UvitError(f"count must be at least 1, got {self.count}")
        if len(self.guidance_interval) != 2:
            raise UvitError(f"guidance_interval must be two times, got {self.guidance_interval}")


def make_sampler(
    model: Model,
    diffusion: ObjectiveConfig,
    config: SampleConfig,
    nulls: Mapping[str, np.ndarray] | None = None,
) -> Callable[[Any, jax.Array, Mapping[str, jax.Array]], dict[str, jax.Array]]:
    """A pure function `draw(params, key, conditions) → {noisy segment: samples}`, to be jitted.

    `conditions` holds every input of the model that is not noisy, leaves (B, ...), and may hold
    slots of references (see `Model.apply`); a model without any takes `{"count": zeros (B,)}`. All
    noisy segments share one time (joint sampling). `diffusion` is what the model was trained with,
    of which schedule and prediction count; `config` says how to sample. `nulls` are those that the
    layout cannot know (see `conditions.nulls_of`). What a model with a learned range says of its
    variances goes to the sampler that asks for it, unguided, and to no other.

    Raises:
      UvitError: if guidance is asked of a model with nothing to drop, a cache of one whose
        references depend on the target, a learned variance of one that has none, or the sampler
        does not fit the schedule.
    """
    layout = model.layout
    schedule = make(diffusion.schedule)
    noisy = [s.name for s in layout.noisy]
    conditional = [name for name in layout.input_shapes if name not in noisy]
    bare = model.without_references()
    dropped = [name for name in bare.layout.input_shapes if name not in noisy]
    scale, reference_scale = config.guidance_scale, config.reference_guidance_scale
    if scale and not dropped:
        hint = "; use reference_guidance_scale" if layout.references else ""
        raise UvitError(f"guidance_scale={scale}, but the model has no condition to guide by{hint}")
    if reference_scale and not layout.references:
        raise UvitError(
            f"reference_guidance_scale={reference_scale}, but the model takes no references"
        )
    cached = _caches(model, config.cache_references)
    guiding = scale or reference_scale
    nulls = {name: null(layout, name, 1, nulls) for name in dropped} if guiding else {}

    learned = config.sampler.variance == "learned"
    for segment in layout.noisy:
        if learned and not segment.learned_range:
            raise UvitError(
                f"sampler.variance is 'learned', but the segment {segment.name!r} has no "
                "learned_range; use 'small' or 'large'"
            )
    guided_channels = {
        s.name: config.guidance_channels or s.shape[-1]
        for s in layout.noisy
        if s.modality == "image"
    }

    def draw(params, key, conditions):
        def predict_with(network, x, network_time_B, conditions, **cache):
            times = dict.fromkeys(layout.time_keys, network_time_B)
            outputs = network.apply(params, {**conditions, **x}, times, **cache)
            if learned:
                return outputs
            return {s.name: outputs[s.name][..., : s.shape[-1]] for s in layout.noisy}

        count = jax.tree.leaves(conditions)[0].shape[0]
        names = conditional + [name for name in layout.slot_shapes if name in conditions]
        given = {name: constrain_batch(jnp.asarray(conditions[name])) for name in names}
        # What is left with the references out of the sequence, and with all else null.
        others = {name: given[name] for name in dropped}
        nothing = {name: jnp.asarray(value) for name, value in nulls.items()}
        predict, with_text, without_text = partial(predict_with, model), given, given | nothing
        if not layout.references:
            levels, scales = [(predict, given), (predict, nothing)], [scale]
        else:
            if cached:
                cache = model.cache(params, given)
                # The same references stand in every level that has any.
                repeats = sum(used([scale, reference_scale])[:2]) if dropped else 1
                predict = partial(predict_with, model, cache=cache.repeat(repeats))
                with_text, without_text = others, nothing
            predict_bare = partial(predict_with, bare)
            levels = [(predict, with_text), (predict, without_text), (predict_bare, nothing)]
            scales = [scale, reference_scale]
            if not dropped:  # the references are the only condition
                del levels[1], scales[0]
        network = guided_by_levels(
            levels,
            scales,
            schedule=schedule,
            interval=tuple(config.guidance_interval),
            channels=guided_channels,
        )
        denoise = process.denoiser(
            network,
            schedule,
            diffusion.prediction,
            clip=config.clip or None,
            learned_range=learned,
        )
        noise_key, run_key = jax.random.split(key)
        noise = {
            s.name: constrain_batch(
                jax.random.normal(jax.random.fold_in(noise_key, i), (count, *s.shape))
            )
            for i, s in enumerate(layout.noisy)
        }
        return solve.sample(config.sampler, denoise, schedule, noise, run_key)

    return draw


def filled(count: int, size: int) -> Iterator[np.ndarray]:
    """The rows 0 … count - 1 in batches of one size, for which a program is compiled once; the last
    one is filled up with the first rows."""
    for start in range(0, count, size):
        yield np.arange(start, start + size) % count


def batches(
    conditions: Mapping[str, Any], batch_size: int, seed: int
) -> Iterator[tuple[jax.Array, dict[str, Any]]]:
    """The conditions in batches of one shape, for which `draw` is compiled once, each with its key.

    Args:
      conditions: by segment, leaves (N, …), which are indexed by arrays of rows.
      batch_size: B. The last batch is filled up with the first rows; of what is drawn of them all,
        the first N are the samples.

    Yields:
      (a key of its own, by segment leaves (B, …)), N / B times, rounded up.
    """
    count = len(next(iter(conditions.values())))
    for rows in filled(count, batch_size):
        key = jax.random.fold_in(jax.random.key(seed), int(rows[0]))
        yield key, {name: value[rows] for name, value in conditions.items()}


def _caches(model: Model, option: str) -> bool:
    """Whether references are cached under an option of `CACHES`; UvitError if they cannot be."""
    implementation = model.config.backbone.attention
    spread = implementation in CONTEXT_PARALLEL  # where there are as many keys as queries
    if option == "always" and model.layout.only_references:  # which raises if they cannot be
        if spread:
            raise UvitError(
                f"references cannot be cached: attention {implementation!r} knows no cached keys; "
                "take another, or set cache_references='when_exact'"
            )
        return True
    exact = bool(model.layout.references) and not model.layout.changing_references()
    return option == "when_exact" and exact and not spread
