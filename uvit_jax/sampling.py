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

from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.diffusion import process, samplers
from uvit_jax.diffusion.guidance import guided
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.samplers import SamplerConfig
from uvit_jax.diffusion.schedule import make
from uvit_jax.errors import UvitError
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
      clip: x0 is clipped to ±clip at every step, 0 for never (1 for pixels, never for latents).
      count: how many pictures.
      labels, prompts: their conditions, repeated in turn until there are `count`. A label is a
        class's name or number. With no labels, the classes in turn;
        with no prompts, the empty one.
    """

    sampler: SamplerConfig = SamplerConfig()
    guidance_scale: float = 0.0
    guidance_interval: tuple[float, ...] = (0.0, 1.0)
    clip: float = 0.0
    count: int = 16
    labels: tuple[Any, ...] = ()
    prompts: tuple[str, ...] = ()

    def __post_init__(self):
        if self.count < 1:
            raise UvitError(f"count must be at least 1, got {self.count}")
        if len(self.guidance_interval) != 2:
            raise UvitError(f"guidance_interval must be two times, got {self.guidance_interval}")


def make_sampler(
    model: Model, diffusion: ObjectiveConfig, config: SampleConfig
) -> Callable[[Any, jax.Array, Mapping[str, jax.Array]], dict[str, jax.Array]]:
    """A pure function `draw(params, key, conditions) → {noisy segment: samples}`, to be jitted.

    `conditions` holds every input of the model that is not noisy, leaves (B, ...); a model without
    any takes `{"count": zeros (B,)}`. All noisy segments share one time (joint sampling).

    Raises:
      UvitError: if guidance is asked of a model with nothing to drop, or the sampler does not fit
        the schedule.
    """
    layout = model.layout
    schedule = make(diffusion.schedule)
    conditional = [s.name for s in layout.inputs if s.role != "noisy"]
    scale = config.guidance_scale
    if scale and not conditional:
        raise UvitError(f"guidance_scale={scale}, but the model has no condition to guide by")
    nulls = {name: layout.null(name, 1) for name in conditional} if scale else {}

    def draw(params, key, conditions):
        def predict(x, network_time_B, conditions):
            times = dict.fromkeys(layout.time_keys, network_time_B)
            return model.apply(params, {**conditions, **x}, times)

        count = jax.tree.leaves(conditions)[0].shape[0]
        conditions = {name: constrain_batch(jnp.asarray(conditions[name])) for name in conditional}
        network = guided(
            predict,
            conditions,
            nulls,
            scale,
            schedule=schedule,
            interval=tuple(config.guidance_interval),
        )
        denoise = process.denoiser(
            network, schedule, diffusion.prediction, clip=config.clip or None
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


def conditions_for(
    model: Model,
    vocabulary: Vocabulary,
    config: SampleConfig,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The conditions that `config.labels` and `config.prompts` name, and a caption for each.

    Raises:
      UvitError: for a label or prompt that the model cannot take.
    """
    count = config.count
    conditions: dict[str, np.ndarray] = {"count": np.zeros((count,), np.int32)}
    captions = [""] * count
    by_modality = {s.modality: s for s in model.layout.inputs if s.role != "noisy"}
    if config.labels and "label" not in by_modality:
        raise UvitError("labels were given, but the model has no label segment")
    if config.prompts and "text" not in by_modality:
        raise UvitError("prompts were given, but the model has no text segment")
    for segment in model.layout.inputs:
        if segment.role == "noisy":
            continue
        if segment.modality == "label":
            known = len(vocabulary.classes) or segment.num_classes
            wanted = config.labels or range(known)
            ids = [vocabulary.class_id(w, segment.num_classes) for w in wanted]
            conditions[segment.name] = np.resize(np.asarray(ids, np.int32), count)
            names = [vocabulary.class_name(i) for i in conditions[segment.name]]
            captions = [" ".join(filter(None, pair)) for pair in zip(captions, names, strict=True)]
        elif segment.modality == "text":
            given = config.prompts or ("",)
            prompts = [given[i % len(given)] for i in range(count)]
            ids = [vocabulary.encode(p, segment.shape[0]) for p in prompts]
            conditions[segment.name] = np.stack(ids)
            captions = [
                " ".join(filter(None, pair)) for pair in zip(captions, prompts, strict=True)
            ]
        else:
            raise UvitError(
                f"segment {segment.name!r} ({segment.modality}) cannot be given by a flag; "
                "call uvit_jax.sampling.make_sampler from Python"
            )
    return conditions, captions
