"""From a model to samples: network, guidance and sampler as one function to be jitted.

sample = make_sampler(model, diffusion, config, batch_size=16)
images = sample(params, key, inputs)["image"]
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.autoencoders.kl import SCALE
from uvit_jax.config import Config, brief
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.diffusion import process
from uvit_jax.diffusion.guidance import Arrays, Branch, Predict, guided
from uvit_jax.diffusion.noise import fold_in, normal, one_per_example, with_shared_noise
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.schedule import Schedule, make
from uvit_jax.diffusion.solvers import solve
from uvit_jax.diffusion.solvers.solve import SamplerConfig
from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.backbone import Cache
from uvit_jax.models.model import Model, Params
from uvit_jax.parallel.attention.implementations import CONTEXT_PARALLEL
from uvit_jax.parallel.sharding import constrain_batch
from uvit_jax.sampling.modes import Mode, passes
from uvit_jax.tokens.layout import Layout
from uvit_jax.tokens.segment import Segment

Sampler = Callable[[Params, jax.Array, Arrays], dict[str, jax.Array]]
MakeBranches = Callable[[Params, Arrays], list[Branch]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig(Config):
    """What to generate, and how.

    Attributes:
      sampler: see `SamplerConfig`.
      guidance_scale: s in conditional + s (conditional - unconditional); 0 is no guidance. The
        scales of DiT and Stable Diffusion are 1 + s. In a model with references it is the scale of
        text and label, with the references in both.
      reference_guidance_scale: the same of references: with s_r this and s the above,
        nothing + (1 + s_r) (references - nothing) + (1 + s) (all - references).
      guidance_chain: what is left out first on the way from everything to nothing: `text`, as
        above; or `references`, nothing + (1 + s) (text - nothing) + (1 + s_r) (all - text), as
        befits several subjects, which references without text can only blend.
      cache_references: whether keys and values of references are computed once a sample instead of
        once a step: `when_exact`, wherever the model allows it (see `Model.cache`), which changes
        nothing but the time; `always`, an error where it does not; or `never`.
      guidance_interval: the t between which guidance acts.
      guidance_channels: how many channels of an image are guided; the others are those of the
        conditional prediction. 0 is all; DiT's published samples have 3, of 4.
      clip: x0 is clipped to ±clip at every step, 0 for never (1 for pixels, never for latents).
      mode: of a model of images and texts, what is generated from what (see modes.py), in place of
        `generate` and `times`; "" for those.
      generate: the noisy segments to generate; empty for all.
      times: of the other noisy segments, t in [0, 1] by time key: 0 for given data (a first frame),
        1 for pure noise (as if there were no such segment), between them for data with noise. By
        default 0 for those whose data are among the inputs, 1 for the others.
      fresh_noise: whether the noise of segments at fixed times is another one at each evaluation of
        the network (UniDiffuser) instead of the same throughout.
      count: how many samples.
      labels, prompts: their conditions, repeated in turn until there are `count`. A label is a
        class's name or number. Without labels, all classes in turn; without prompts, the empty one.
      autoencoder: for a model of latents, the weights of the KL autoencoder that decodes them: a
        file, or diffusers' folder; "" leaves them undecoded.
      latent_scale: the factor that the latents were multiplied by; they are divided by it before
        decoding.
      decode_tile: rows and columns of latents that are decoded at once, in overlapping tiles, for
        images and clips whose decoding needs too much memory; 0 decodes whole frames.
      text_encoder: for a model of a text encoder's features, the folder of the CLIP that encodes
        prompts.
      image_encoder: for a model of CLIP's image features, the weights of its vision tower, a file
        or a folder.
      caption_decoder: for a model that generates features of texts, the folder of the decoder that
        reduces them and makes them words (UniDiffuser).
    """

    sampler: SamplerConfig = SamplerConfig()
    guidance_scale: float = 0.0
    reference_guidance_scale: float = 0.0
    guidance_chain: Literal["text", "references"] = "text"
    cache_references: Literal["when_exact", "always", "never"] = "when_exact"
    guidance_interval: tuple[float, ...] = (0.0, 1.0)
    guidance_channels: int = 0
    clip: float = 0.0
    mode: Mode = ""
    generate: tuple[str, ...] = ()
    times: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    fresh_noise: bool = False
    count: int = 16
    labels: tuple[Any, ...] = ()
    prompts: tuple[str, ...] = ()
    autoencoder: str = ""
    latent_scale: float = SCALE
    decode_tile: int = 0
    text_encoder: str = ""
    image_encoder: str = ""
    caption_decoder: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_scale <= 0:
            raise UvitError(f"latent_scale must be positive, got {self.latent_scale}")
        if self.decode_tile < 0:
            raise UvitError(f"decode_tile must be at least 0, got {self.decode_tile}")
        if self.clip < 0:
            raise UvitError(f"clip must be positive, or 0 for no clipping, got {self.clip}")
        if self.mode and (self.generate or self.times):
            raise UvitError(f"mode={self.mode!r} sets generate and times; leave them out")
        if self.guidance_channels < 0:
            raise UvitError(f"guidance_channels must be at least 0, got {self.guidance_channels}")
        if self.count < 1:
            raise UvitError(f"count must be at least 1, got {self.count}")
        low, *rest = self.guidance_interval or (-1,)
        if len(rest) != 1 or not 0 <= low <= rest[0] <= 1:
            raise UvitError(
                "guidance_interval must be (low, high) in [0, 1], got "
                f"{brief(self.guidance_interval)}"
            )
        for key, t in self.times.items():
            if not 0 <= t <= 1:
                raise UvitError(f"times.{key} must lie in [0, 1], got {t}")


def make_sampler(
    model: Model,
    diffusion: ObjectiveConfig,
    config: SampleConfig,
    *,
    batch_size: int,
    vocabulary: Vocabulary | None = None,
    branches: MakeBranches | None = None,
) -> Sampler:
    """A pure function `sample(params, key, inputs) → {generated segment: samples}`, to be jitted.

    `key` is one key for the noise of the batch, or keys (batch_size,), one per example (see
    `batches`): then an example's noise does not depend on the batch that it is in.

    `inputs` holds the conditions, leaves (batch_size, …), the data of noisy segments that are given
    (see `SampleConfig.times`), and may hold slots of references (see `Model.apply`).

    Args:
      diffusion: the objective that the model was trained with: its schedule and prediction.
      vocabulary: of the run; it has the null value of a text encoder's features.
      branches: the weighted sum of predictions that is sampled, from (params, inputs); by default
        `joint_branches` for models of several noisy times without conditions but gated references,
        and
        `classifier_free_branches` for the others. Each branch may have its own data and times of
        the noisy segments; those of segments that are not generated are otherwise the sampler's
        inputs' and the config's. The data are noised to the branch's times, so that time 1 drops a
        segment.

    With a mode of several passes, the result has the segments that any of them has generated.

    A model with a learned range passes its variances, unguided, to samplers that use them.

    Raises:
      UvitError: if a segment or time key is unknown, guidance has nothing to drop, a cache is
        required and the references depend on the target, the sampler needs a variance that the
        model does not predict, it does not fit the schedule, or small errors of the network would
        dominate its samples; when called, if an input is unknown or missing, or its batch is not
        batch_size (or 1), or there are not batch_size keys.
    """
    layout = model.layout
    if config.mode:
        options = dict(batch_size=batch_size, vocabulary=vocabulary, branches=branches)
        configs = mode_configs(layout, config)
        return _chained({c.generate: make_sampler(model, diffusion, c, **options) for c in configs})
    schedule = make(diffusion.schedule)
    # What the network's errors enter by: a clipped x0 replaces the prediction.
    erring = "x0" if config.clip else diffusion.prediction
    solve.check(config.sampler, schedule, erring)
    if diffusion.shared_noise:
        _check_shared_noise(diffusion.shared_noise, config, schedule, erring)
    generated, keys = generated_segments(layout, config)
    if branches is None:
        joint = len(layout.time_keys) > 1 and all(s.gated for s in layout.conditions)
        of = joint_branches if joint else classifier_free_branches
        branches = of(model, config, vocabulary)
    learned = config.sampler.variance == "learned"
    for segment in generated:
        if learned and not segment.learned_range:
            raise UvitError(
                f"sampler.variance is 'learned', but segment {segment.name!r} has no "
                "learned_range; use 'small' or 'large'"
            )
    # Without a limit, the variances of a learned range would be guided too.
    guided_channels = {
        s.name: config.guidance_channels or s.shape[-1] for s in generated if s.kind == "patches"
    }
    for segment in generated:
        if guided_channels.get(segment.name, 0) > segment.shape[-1]:
            raise UvitError(
                f"guidance_channels={config.guidance_channels}, but segment {segment.name!r} has "
                f"{segment.shape[-1]} channels"
            )
    time_keys = sorted({s.time_key for s in generated})
    interval = layout.setting("interval")
    if config.sampler.name == "mean_flow" and (interval is None or config.clip):
        raise UvitError(
            "the sampler 'mean_flow' needs clip=0 and a model of mean velocities, with a setting "
            f"segment for the interval; got clip={config.clip} and {layout}"
        )

    def sample(params: Params, key: jax.Array, inputs: Arrays) -> dict[str, jax.Array]:
        _check_inputs(layout, inputs, [s.name for s in generated], batch_size)
        noise_key, run_key = _split(key, batch_size)
        noise = normal_noise(noise_key, layout.noisy, batch_size)
        frames_key = fold_in(noise_key, zlib.crc32(b"frames"))
        shared = with_shared_noise(frames_key, noise, diffusion.shared_noise)
        x_T = {s.name: shared[s.name] for s in generated}
        # Of generated segments that a branch replaces.
        other_key = fold_in(noise_key, len(layout.noisy))
        noise |= normal_noise(other_key, generated, batch_size)
        given = {name: constrain_batch(jnp.asarray(value)) for name, value in inputs.items()}
        made = branches(params, given)

        def predict_with(noise: Arrays, settings: Arrays) -> Predict:
            return guided(
                [
                    _completed(branch, given, noise, keys, generated, config.times, schedule)
                    for branch in (b._replace(inputs=dict(b.inputs) | settings) for b in made)
                ],
                schedule=schedule,
                time_keys=time_keys,
                interval=tuple(config.guidance_interval),
                channels=guided_channels,
            )

        fixed = None if config.fresh_noise else predict_with(noise, {})

        def predict_generated(
            x: Arrays, network_time_B: jax.Array, interval_B: jax.Array | None = None
        ) -> Arrays:
            predict, now = fixed, noise
            settings = {} if interval_B is None else {interval.name: interval_B[:, None]}
            if config.fresh_noise:
                fresh_key = evaluation_key(noise_key, network_time_B[0])
                now = normal_noise(fresh_key, layout.noisy, batch_size)
            if config.fresh_noise or settings:
                predict = predict_with(now, settings)
            outputs = predict(x, network_time_B)
            if learned:
                return outputs
            return {s.name: outputs[s.name][..., : s.input_shape[-1]] for s in generated}

        denoise = process.denoiser(
            predict_generated,
            schedule,
            diffusion.prediction,
            clip=config.clip or None,
            learned_range=learned,
        )
        return solve.sample(config.sampler, denoise, schedule, x_T, run_key, prediction=erring)

    return sample


def _check_shared_noise(
    share: float, config: SampleConfig, schedule: Schedule, prediction: str
) -> None:
    """Raises UvitError if frames would have other noise than in training."""
    where = f"the model was trained with shared_noise={share}, which"
    if any(row.noise for row in solve.table_of(config.sampler, schedule, prediction)):
        raise UvitError(
            f"{where} the sampler {config.sampler.name!r} does not support, as it adds noise at "
            "each step; use a deterministic one, such as dpm_solver_pp"
        )
    for key, t in config.times.items():
        if 0 < t < 1:
            raise UvitError(f"{where} does not support times.{key}={t}; give the data at time 0")


def normal_noise(
    key: jax.Array, segments: Sequence[Segment], batch_size: int
) -> dict[str, jax.Array]:
    """Standard normal noise in the shapes of segments, float32 (batch_size, …)."""
    return {
        s.name: constrain_batch(normal(fold_in(key, i), (batch_size, *s.input_shape)))
        for i, s in enumerate(segments)
    }


def evaluation_key(key: jax.Array, network_time: jax.Array) -> jax.Array:
    """The key of the noise of one evaluation (`SampleConfig.fresh_noise`): it follows from the
    time, which is another one at each, up to a relative error of 2^-13."""
    bits = jax.lax.bitcast_convert_type(jnp.asarray(network_time, jnp.float32), jnp.uint32)
    return fold_in(key, (bits + (1 << 10)) >> 11)


def mode_configs(layout: Layout, config: SampleConfig) -> list[SampleConfig]:
    """The configs of the passes of a config's mode; the config itself if it has none.

    Raises:
      UvitError: if the model cannot do it.
    """
    if not config.mode:
        return [config]
    return [
        dataclasses.replace(
            config,
            mode="",
            generate=run.generate,
            times=run.times,
            guidance_scale=config.guidance_scale if run.guided else 0.0,
        )
        for run in passes(layout, config.mode)
    ]


def _chained(samplers: Mapping[tuple[str, ...], Sampler]) -> Sampler:
    """A sampler that runs others, by the segments that they generate, each given what those before
    have generated."""

    def sample(params: Params, key: jax.Array, inputs: Arrays) -> dict[str, jax.Array]:
        given, results = dict(inputs), {}
        for i, (names, run) in enumerate(samplers.items()):
            if i:  # what is generated next may have been given before
                given = {name: value for name, value in given.items() if name not in names}
            new = run(params, fold_in(key, i), given)
            given, results = given | new, results | new
        return results

    return sample


def joint_branches(
    model: Model, config: SampleConfig, vocabulary: Vocabulary | None = None
) -> MakeBranches:
    """The branches of guidance by noise, for models of several noisy times without conditions.

    The prediction of each generated time's segments is guided away from the one that the other
    times' segments, replaced by pure noise, give (Bao et al. 2023, section 3.2): with o(t, u) the
    prediction of an image at time t beside a text at time u, it is o(t, u) + s (o(t, u) - o(t, 1)).
    References added to such a model are in all of these; the reference guidance scale is that of
    the prediction without them.
    """
    del vocabulary
    layout, scale = model.layout, config.guidance_scale
    of_references = config.reference_guidance_scale
    if of_references and not layout.references:
        raise UvitError(
            f"reference_guidance_scale={of_references}, but the model takes no references"
        )
    generated, _ = generated_segments(layout, config)
    keys = dict.fromkeys(s.time_key for s in generated)

    def branches(params: Params, inputs: Arrays) -> list[Branch]:
        network = predictor(model, params)
        given = {name: inputs[name] for name in layout.conditions_in(inputs)}
        without = [
            Branch(
                {s.name: -scale for s in generated if s.time_key == key},
                network,
                given,
                {other: 1.0 for other in layout.time_keys if other != key},
            )
            for key in keys
        ]
        everything = {s.name: 1 + scale + of_references for s in generated}
        branches = [Branch(everything, network, given), *without]
        if of_references:
            bare = model.without_references()
            kept = {name: given[name] for name in bare.layout.conditions_in(given)}
            weights = {s.name: -of_references for s in generated}
            branches.append(Branch(weights, predictor(bare, params), kept))
        return branches

    return branches


def classifier_free_branches(
    model: Model, config: SampleConfig, vocabulary: Vocabulary | None = None
) -> MakeBranches:
    """The branches of classifier-free guidance: with everything, without text and label, without
    references as well; or first without references, see `SampleConfig.guidance_chain`.

    With o_all, o_ref, o_0 their predictions, it is o_all + s (o_all - o_ref) + s_r (o_ref - o_0),
    for the scales s and s_r of the config (InstructPix2Pix: Brooks et al. 2023, eq. 3). References
    leave the sequence where they are dropped, and are cached where that is exact: once more without
    the text if they have vectors of their subjects' names from it.

    Raises:
      UvitError: as `make_sampler`.
    """
    layout, bare = model.layout, model.without_references()
    droppable = list(bare.layout.condition_shapes)
    s, s_r = config.guidance_scale, config.reference_guidance_scale
    settings: Arrays = {}
    if (setting := layout.setting("guidance")) is not None:  # an input in place of two branches
        settings = {setting.name: jnp.full((1, 1), s, jnp.float32)}
        s = 0.0
    if s and not droppable:
        hint = "; use reference_guidance_scale" if layout.references else ""
        raise UvitError(f"guidance_scale={s}, but the model has no condition to guide by{hint}")
    if s_r and not layout.references:
        raise UvitError(f"reference_guidance_scale={s_r}, but the model takes no references")
    cached = _use_cache(model, config.cache_references)
    features_null = vocabulary.null_features if vocabulary else None
    null = {n: layout.null(n, 1, features_null) for n in droppable} if s or s_r else {}
    if not droppable:
        s = s_r  # the references are the only condition

    def branches(params: Params, inputs: Arrays) -> list[Branch]:
        conditions = {name: inputs[name] for name in layout.conditions_in(inputs)}
        if missing := sorted(layout.condition_shapes.keys() - conditions.keys()):
            raise UvitError(f"the inputs lack {missing[0]!r}, a condition of the model")
        conditions |= settings
        own = {name: conditions[name] for name in droppable} | settings
        nothing = {name: jnp.asarray(value) for name, value in null.items()}
        cache = model.cache(params, conditions) if cached else None
        everything = own if cached else conditions
        network, without = predictor(model, params, cache), predictor(bare, params)
        if not layout.references:
            return [Branch(1 + s, network, own), Branch(-s, network, nothing)]
        if not droppable:
            return [Branch(1 + s, network, everything), Branch(-s, without, {})]
        if config.guidance_chain == "references":
            return [
                Branch(1 + s_r, network, everything),
                Branch(s - s_r, without, own),
                Branch(-s, without, nothing),
            ]
        unnamed = network
        if cached and layout.name_sources and s_r != s:
            nulls = {name: jnp.broadcast_to(nothing[name], own[name].shape) for name in own}
            unnamed = predictor(model, params, model.cache(params, conditions | nulls))
        return [
            Branch(1 + s, network, everything),
            Branch(s_r - s, unnamed, everything | nothing),
            Branch(-s_r, without, nothing),
        ]

    return branches


def predictor(model: Model, params: Params, cache: Cache | None = None) -> Predict:
    """A model with its parameters, and its references' cache, as branches take it."""

    def predict(inputs: Arrays, times: Arrays) -> Arrays:
        if cache is None:
            return model.apply(params, inputs, times)
        batch = inputs[model.layout.noisy[0].name].shape[0]
        return model.apply(params, inputs, times, cache=cache.repeat(batch // cache.size[0]))

    return predict


def _split(key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """`jax.random.split` of one key, or of each of keys (batch_size,)."""
    if not one_per_example(key):
        noise_key, run_key = jax.random.split(key)
        return noise_key, run_key
    if len(key) != batch_size:
        raise UvitError(f"key has shape {key.shape}; pass one key, or batch_size={batch_size} keys")
    pairs = jax.vmap(jax.random.split)(constrain_batch(key))
    return pairs[:, 0], pairs[:, 1]


def _check_inputs(
    layout: Layout, inputs: Arrays, generated: Sequence[str], batch_size: int
) -> None:
    """Raises UvitError if an input is of no segment, of a generated one, or of another batch."""
    known = [n for n in (*layout.input_shapes, *layout.optional_shapes) if n not in generated]
    for name, value in inputs.items():
        if name not in known:
            what = "is generated" if name in generated else "is not an input of the model"
            raise UvitError(f"inputs has {name!r}, which {what}{nearest(name, known)}")
        if jnp.shape(value)[:1] not in ((1,), (batch_size,)):
            raise UvitError(
                f"inputs[{name!r}] has shape {jnp.shape(value)}, and batch_size is {batch_size}"
            )
    layout.check_ids(inputs)


def _completed(
    branch: Branch,
    given: Arrays,
    noise: Arrays,
    keys: Mapping[str, str],
    generated: Sequence[Segment],
    times: Mapping[str, float],
    schedule: Schedule,
) -> Branch:
    """A branch with all noisy segments that are not generated, and generated ones whose time it
    fixes, noised to their times.

    Args:
      given: the sampler's inputs. noise: of those segments. keys: the time keys of those that are
        not generated, by name.
      times: of the config, by time key.
    """
    keys = dict(keys) | {s.name: s.time_key for s in generated if s.time_key in branch.times}
    data = {n: branch.inputs.get(n, given.get(n)) for n in keys}
    known = times | dict(branch.times)
    if unknown := branch.times.keys() - keys.values():
        raise UvitError(
            f"a branch fixes the time {min(unknown)!r}{nearest(min(unknown), set(keys.values()))}"
        )
    fixed, noised = {}, {}
    for key in set(keys.values()):
        names = [n for n in keys if keys[n] == key]
        missing = [n for n in names if data[n] is None]
        t = known.get(key, 0.0 if len(missing) < len(names) else 1.0)
        if missing and t < 1:
            raise UvitError(
                f"segment {missing[0]!r} is at time {key}={t} and has no data; add it to the "
                f"inputs, generate it, or set times={{{key!r}: 1.0}}"
            )
        fixed[key] = t
        for n in names:
            if t == 1:
                noised[n] = noise[n]
            elif t == 0:
                noised[n] = data[n]
            else:
                t_B = jnp.full(noise[n].shape[:1], t, jnp.float32)
                x_0 = jnp.broadcast_to(data[n], noise[n].shape)
                noised[n] = process.add_noise(schedule, x_0, noise[n], t_B)
    return branch._replace(inputs=dict(branch.inputs) | noised, times=fixed)


def generated_segments(layout: Layout, config: SampleConfig) -> tuple[list[Any], dict[str, str]]:
    """The segments to generate, and the time keys of the other noisy ones by name.

    Raises:
      UvitError: if the config names an unknown segment or time key, or fixes the time of a
        generated segment.
    """
    names = [s.name for s in layout.noisy]
    for name in config.generate:
        if name not in names:
            raise UvitError(f"generate: {name!r} is not a noisy segment{nearest(name, names)}")
    generated = [s for s in layout.noisy if not config.generate or s.name in config.generate]
    others = {s.name: s.time_key for s in layout.noisy if s not in generated}
    for key in config.times:
        if key not in layout.time_keys:
            raise UvitError(f"times: {key!r} is not a time key{nearest(key, layout.time_keys)}")
    for segment in generated:
        if segment.time_key in [*others.values(), *config.times]:
            raise UvitError(
                f"segment {segment.name!r} is generated, so the time {segment.time_key!r} cannot "
                "be fixed; generate all segments that share it, and leave it out of `times`"
            )
    return generated, others


def _use_cache(model: Model, option: str) -> bool:
    """Whether references are cached; raises UvitError if they must be and cannot."""
    implementation = model.config.backbone.attention
    supported = implementation not in CONTEXT_PARALLEL
    if option == "always" and model.layout.only_references:  # which raises if they cannot be
        if not supported:
            raise UvitError(
                f"references cannot be cached: attention={implementation!r} does not support "
                "cached keys; choose another, or set cache_references='when_exact'"
            )
        return True
    exact = bool(model.layout.references) and not model.layout.changing_references()
    return option == "when_exact" and exact and supported


def padded_rows(count: int, size: int) -> Iterator[np.ndarray]:
    """The rows 0 … count - 1 in batches of one size, which one program serves; the last batch is
    padded with the first rows."""
    for start in range(0, count, size):
        yield np.arange(start, start + size) % count


def batches(
    conditions: Mapping[str, Any], count: int, batch_size: int, seed: int
) -> Iterator[tuple[jax.Array, dict[str, Any]]]:
    """Conditions in batches of one shape, with a PRNG key per example.

    An example's key follows from the seed and its row alone, so that its sample does not depend on
    the batch size but for rounding.

    Args:
      conditions: by segment, leaves (count, …), which are indexed by arrays of rows.
      count: of the samples; the last batch is padded with the first rows, and what is sampled of
        them after the first `count` is to be dropped.

    Yields:
      (keys (batch_size,), {segment: (batch_size, …)}), ⌈count / batch_size⌉ times.
    """
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))
    for rows in padded_rows(count, batch_size):
        yield keys(rows), {name: value[rows] for name, value in conditions.items()}


def sample_all(
    draw: Callable[[jax.Array, dict[str, Any]], Mapping[str, jax.Array]],
    conditions: Mapping[str, Any],
    count: int,
    batch_size: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """`count` samples by segment, generated in batches by `draw(keys, inputs)`."""
    parts = [jax.device_get(draw(*b)) for b in batches(conditions, count, batch_size, seed)]
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}
