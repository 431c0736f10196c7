"""From a model to pictures: network, guidance and sampler joined into one function to be jitted.

draw = make_sampler(model, diffusion, sample)
images = draw(params, key, conditions)["image"]
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.conditions import null
from uvit_jax.diffusion import process, samplers
from uvit_jax.diffusion.guidance import guided
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.samplers import SamplerConfig
from uvit_jax.diffusion.schedule import make
from uvit_jax.errors import UvitError
from uvit_jax.models.autoencoder import SCALE
from uvit_jax.models.model import Model
from uvit_jax.parallel.sharding import constrain_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What to draw, and how.

    Attributes:
      sampler: see `SamplerConfig`.
      guidance_scale: s in conditional + s (conditional - unconditional); 0 is no guidance. DiT's
        and Stable Diffusion's scales are 1 + s.
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

    `conditions` holds every input of the model that is not noisy, leaves (B, ...); a model without
    any takes `{"count": zeros (B,)}`. All noisy segments share one time (joint sampling). `nulls`
    are those that the layout cannot know (see `conditions.nulls_of`). What a model with a learned
    range says of its variances goes to the sampler that asks for it, unguided, and to no other.

    Raises:
      UvitError: if guidance is asked of a model with nothing to drop, a learned variance of one
        that has none, or the sampler does not fit the schedule.
    """
    layout = model.layout
    schedule = make(diffusion.schedule)
    conditional = [s.name for s in layout.inputs if s.role != "noisy"]
    scale = config.guidance_scale
    if scale and not conditional:
        raise UvitError(f"guidance_scale={scale}, but the model has no condition to guide by")
    nulls = {name: null(layout, name, 1, nulls) for name in conditional} if scale else {}

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
        def predict(x, network_time_B, conditions):
            times = dict.fromkeys(layout.time_keys, network_time_B)
            outputs = model.apply(params, {**conditions, **x}, times)
            if learned:
                return outputs
            return {s.name: outputs[s.name][..., : s.shape[-1]] for s in layout.noisy}

        count = jax.tree.leaves(conditions)[0].shape[0]
        conditions = {name: constrain_batch(jnp.asarray(conditions[name])) for name in conditional}
        network = guided(
            predict,
            conditions,
            nulls,
            scale,
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
        return samplers.sample(config.sampler, denoise, schedule, noise, run_key)

    return draw
