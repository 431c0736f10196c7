"""A run's configuration: every group of keys that `--config` files set, as frozen dataclasses."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from uvit_jax.config import Config, brief, parse, plain, to_dict
from uvit_jax.data.data_config import DataConfig
from uvit_jax.diffusion import bound
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.schedule import make
from uvit_jax.diffusion.solvers import solve
from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.model import Model
from uvit_jax.models.model_config import ModelConfig, parse_model
from uvit_jax.parallel.attention.context import check_ulysses
from uvit_jax.parallel.mesh import MeshConfig, batch_shards, check_batch, check_tensor
from uvit_jax.parallel.sharding import path_string
from uvit_jax.sampling.sampler import SampleConfig, generated_segments, mode_configs
from uvit_jax.tokens.layout import Layout


def check_adam(b1: float, b2: float, eps: float) -> None:
    """Raises UvitError if Adam with these coefficients divides by 0 in float32, naming the key."""
    for key, value in (("b1", b1), ("b2", b2)):
        if not 0 <= np.float32(value) < 1:
            raise UvitError(f"{key} must lie in [0, 1), and not round to 1 in float32, got {value}")
    if not np.float32(eps) >= np.finfo(np.float32).tiny:
        raise UvitError(f"eps must be positive, and not round to 0 in float32, got {eps}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """AdamW or Muon after a linear warm-up.

    Attributes:
      name: `adamw`, as in all published recipes here, or `muon`: the matrices of the backbone's
        attention, MLPs and skips are updated with orthogonalised Nesterov momentum of 0.95 (Jordan
        2024, `optax.contrib.muon`), scaled so that AdamW's learning rates fit (Liu et al. 2025),
        all other parameters by AdamW with Nesterov momentum. It stores one moment of the matrices
        instead of two; sharded matrices are all-gathered at every step.
      learning_rate: the peak. schedule: after the warm-up `constant`, or `cosine` down to 0 at
        `config.train.steps`.
      warmup_steps: of linear growth from 0. b1, b2, eps: Adam's. weight_decay: decoupled, on every
        parameter, as in effect in the published U-ViTs.
      clip_norm: the gradient's global norm is clipped to it; 0 is no clipping.
      mu_dtype: of the stored first moment (Muon's only one), `float32` or `bfloat16`, which saves 2
        bytes a parameter in memory and checkpoints. It is updated in float32 and rounded. The
        second
        moment and the averaged parameters are always float32: a step changes them by about 1 - b2
          or
        1 - ema_decay of themselves, less than bfloat16's 2^-8, so that they would not change. It is
        fixed for a run.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 2e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 2500
    b1: float = 0.99
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.03
    clip_norm: float = 0.0
    mu_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not np.float32(self.learning_rate) > 0:
            raise UvitError(f"learning_rate must be positive, got {self.learning_rate}")
        check_adam(self.b1, self.b2, self.eps)
        if min(self.warmup_steps, self.weight_decay, self.clip_norm) < 0:
            raise UvitError("warmup_steps, weight_decay and clip_norm must be at least 0")
        if self.warmup_steps >= 2**31:
            raise UvitError(f"warmup_steps must be less than 2**31, got {self.warmup_steps}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPretrainingConfig(Config):
    """How a text segment's encoder is trained on captions: the output at each word predicts the
    words before it and the words after it, two softmaxes whose targets are uniform over those words
    (skip-gram, Mikolov et al. 2013, of contextual vectors and with a direction).

    Attributes:
      steps: of AdamW, with a cosine schedule; 0 is no pretraining.
      segment: the text segment, with `encoder_depth`.
      facts: whether the output at a subject's name predicts what the caption states of it as well
        (its place and facing in rendered scenes), for data that say so in records' `facts`.
      data: keys of config.data that differ for these captions: {"max_subjects": 3} teaches how
        captions of three subjects read, of which the run need not have images.
      freeze: whether the run leaves the encoder as it is, and trains only the projection of its
        output into the sequence.
      batch_size: captions a step. learning_rate: the peak.
    """

    steps: int = 0
    segment: str = "text"
    facts: bool = True
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    freeze: bool = True
    batch_size: int = 128
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 0 or self.batch_size < 1 or self.learning_rate <= 0:
            raise UvitError(
                "steps must be at least 0, batch_size at least 1 and learning_rate positive"
            )

    def is_encoder(self, path: tuple[Any, ...]) -> bool:
        """Whether a path in a model's parameters is one of the pretrained encoder."""
        prefix = f"embed/segments/{self.segment}/"
        name = path_string(path)
        return name.startswith((f"{prefix}table/", f"{prefix}encoder/")) and "/proj/" not in name


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop.

    Attributes:
      steps: optimizer steps. batch_size: examples a step, over all devices and hosts.
      accumulate: microbatches a step; the gradient is that of the whole batch.
      draws: noise levels and noises for each of these examples in a step. References are encoded
        once for all of them, where they never see the target (as `Model.cache` needs).
      ema_decay: of the averaged parameters, per step.
      ema_warmup: early on the decay is (1 + step) / (10 + step) if that is less, so that a short
        run's average forgets its initial values. The published recipes have none.
      drop: for each condition, the share of examples whose value is replaced by the null value (for
        classifier-free guidance), independently. A noisy segment in `given` is replaced by pure
        noise, as guidance by noise has it.
      given: for each noisy segment that can be given, such as a video's first frame, the share of
        examples in which it is, independently (see `objective.corrupt`).
      drop_references: the share of examples that lose all their references.
      drop_jointly: the share that lose all their references and all that is not a reference, which
        guidance's unconditional branch is trained on.
      drop_each_reference: the share of references that are dropped independently.
      permute_slots: whether each example's subjects, and with them the words `@1`, `@2`, … of its
        caption, get random slots of the model, and its views likewise, so that all slots are
        trained and none has a meaning.
      checkpoint_every: in steps. keep_checkpoints: how many of the newest are kept.
      log_every, sample_every: in steps; the first and the last step are also logged, and the last
        is sampled. sample_every=0 samples only then.
      probe_every: in steps, a multiple of log_every: how often it is measured whether the model
        knows which reference is which subject, logged as `binding/…` (see binding_probe.py); 0 for
        never.
      profile_steps: (first, last), the steps of which a trace for xprof is written to the workdir's
        `profile/`, both included; () for none. A few are enough; leave out the first two.
      wandb: a project of Weights & Biases, for metrics and samples; "" is none.
      init_from: the stored run (a workdir, file or `shipped:NAME`, see `open_run`) from whose
        averaged parameters and words the run starts; "" is none. The step, the optimizer and the
        average start anew.
      init_segments: names of this run's segments → those of `init_from`, such as
        {"video": "image"} for a video model that starts from a model of images.
      teacher: the stored run from whose parameters the run starts, and whose guided predictions it
        learns (the objective `distill`) or their mean velocities (`mean_flow`); "" is none.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    draws: int = 1
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    drop: Mapping[str, float] = dataclasses.field(default_factory=dict)
    given: Mapping[str, float] = dataclasses.field(default_factory=dict)
    drop_references: float = 0.0
    drop_jointly: float = 0.0
    drop_each_reference: float = 0.0
    permute_slots: bool = True
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    log_every: int = 10
    sample_every: int = 0
    probe_every: int = 0
    profile_steps: tuple[int, ...] = ()
    wandb: str = ""
    init_from: str = ""
    init_segments: Mapping[str, str] = dataclasses.field(default_factory=dict)
    teacher: str = ""

    def __post_init__(self):
        counts = ("steps", "batch_size", "accumulate", "draws")
        for key in (*counts, "checkpoint_every", "keep_checkpoints"):
            if getattr(self, key) < 1:
                raise UvitError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.steps >= 2**31:
            raise UvitError(f"steps must be less than 2**31, got {self.steps}")
        if min(self.draws, self.accumulate) > 1:
            raise UvitError(
                f"draws={self.draws} and accumulate={self.accumulate} cannot both be above 1; "
                "set accumulate=1 and lower batch_size"
            )
        for key in ("drop_references", "drop_jointly", "drop_each_reference"):
            if not 0 <= getattr(self, key) <= 1:
                raise UvitError(f"{key} must lie in [0, 1], got {getattr(self, key)}")
        if self.log_every < 1 or self.sample_every < 0:
            raise UvitError("log_every must be at least 1, sample_every at least 0")
        if not 0 <= np.float32(self.ema_decay) < 1:
            raise UvitError(f"ema_decay must lie in [0, 1) in float32, got {self.ema_decay}")
        if self.probe_every < 0 or self.probe_every % self.log_every:
            raise UvitError(
                f"probe_every={self.probe_every} must be 0 or a multiple of "
                f"log_every={self.log_every}"
            )
        if self.init_segments and not self.init_from:
            raise UvitError(
                "init_segments names segments of init_from, which is empty; set init_from, or "
                "init_segments={}"
            )
        if self.init_from and self.teacher:
            raise UvitError(
                f"init_from={self.init_from!r} and teacher={self.teacher!r} cannot both be set: a "
                "student starts from its teacher"
            )
        if self.profile_steps:
            given = self.profile_steps
            if len(given) != 2 or not 1 <= given[0] <= given[1] <= self.steps:
                raise UvitError(
                    f"profile_steps must be (first, last) with 1 <= first <= last <= steps="
                    f"{self.steps}, got {brief(given)}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig(Config):
    """The training objective on held-out data, with fixed noise, during training.

    Attributes:
      every: interval in steps, a multiple of `train.log_every`; 0 is never.
      splits: of the data, such as ("train", "test") to see the difference; for rendered scenes,
        "train" has the identities of training and "test" others. Metrics are
        `validation/SPLIT/loss`, and `validation/SPLIT/loss_T` at the times T.
      path: held-out images, for data read from a folder or a manifest, which have one split.
      count: of examples, rounded up to a multiple of the batch size.
      times: fixed times in [0, 1] besides random ones.
    """

    every: int = 0
    splits: tuple[str, ...] = ("test",)
    path: str = ""
    count: int = 256
    times: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 0 or self.count < 1:
            raise UvitError("every must be at least 0, and count at least 1")
        if not all(0 <= t <= 1 for t in self.times):
            raise UvitError(f"times must lie in [0, 1], got {self.times}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run. Each group's keys are the fields of its class.

    Attributes:
      model: layout and backbone. data: the data set. train: the loop. diffusion: the objective.
      text_pretraining: of a text segment's encoder, before the first step.
      validation: the objective on held-out data.
      optimizer: AdamW or Muon. sample: the grids of samples in training, and the defaults of
        `experiments.sample`. mesh: how devices are used.
      seed: of parameters, data order and noise, in [0, 2^32).
    """

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    diffusion: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    sample: SampleConfig = SampleConfig()
    text_pretraining: TextPretrainingConfig = TextPretrainingConfig()
    validation: ValidationConfig = ValidationConfig()
    mesh: MeshConfig = MeshConfig()
    seed: int = 0

    def __post_init__(self):
        if self.train.init_from and self.text_pretraining.steps:
            raise UvitError(
                "text_pretraining would replace the text encoder of train.init_from; set "
                "config.text_pretraining.steps=0"
            )
        if not 0 <= self.seed < 2**32:
            raise UvitError(f"seed must lie in [0, 2**32), got {self.seed}")
        if self.validation.every % self.train.log_every:
            raise UvitError(
                f"validation.every={self.validation.every} must be a multiple of "
                f"train.log_every={self.train.log_every}"
            )

    @property
    def of_latents(self) -> bool:
        """Whether the model's images are latents, which may have 3 channels as well."""
        return self.data.name == "latents" or bool(self.data.autoencoder)


# The keys that may change when a run is resumed: losses depend on them only by rounding.
FREE_KEYS = (
    "model.backbone.attention",
    "model.backbone.products",
    "model.backbone.remat",
    "model.backbone.scan",
    "model.backbone.unroll",
    "train.steps",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.sample_every",
    "train.probe_every",
    "train.profile_steps",
    "train.accumulate",
    "sample",
    "validation",
    "train.wandb",
    "mesh",
    "data.data_dir",
    "data.workers",
    "data.processes",
)


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config, perhaps stored by an earlier version, with today's keys.

    `diffusion.times_of` is dropped: which noisy segments share a time is their key `time`.

    Raises:
      UvitError: if it differs from the segments' `time`.
    """
    config = plain(config)
    diffusion = config.get("diffusion")
    times_of = diffusion.pop("times_of", {}) if isinstance(diffusion, dict) else {}
    if times_of:
        noisy = parse_model(config.get("model", {})).layout().noisy
        if times_of != {s.name: s.time_key for s in noisy if s.time_key != s.name}:
            raise UvitError("config.diffusion.times_of is no key; set the segments' `time` instead")
    return config


def parse_run(config: Mapping[str, Any]) -> RunConfig:
    """Builds a `RunConfig` from nested mappings.

    Args:
      config: an `ml_collections.ConfigDict`, dicts, or the JSON of a workdir's config.json.

    Raises:
      UvitError: on an unknown or missing key or an impossible value, naming the key; also when the
        parts do not fit each other.
    """
    config = upgraded(config)
    if "model" in config:
        config["model"] = parse_model(config["model"])
    run = parse(RunConfig, config)
    layout = run.model.layout()
    for name, share in run.train.drop.items():
        if name not in layout.by_name:
            hint = nearest(name, [s.name for s in layout.segments])
            raise UvitError(f"config.train.drop.{name} is not a segment of the model{hint}")
        if not 0 <= share <= 1:
            raise UvitError(f"config.train.drop.{name} must lie in [0, 1], got {share}")
        if layout.by_name[name].role == "noisy":
            if name not in run.train.given:
                raise UvitError(
                    f"config.train.drop.{name}: a noisy segment can be dropped if it is given; set "
                    f"config.train.given.{name} as well"
                )
            continue
        if layout.by_name[name].is_reference:
            raise UvitError(
                f"config.train.drop.{name}: references are dropped by config.train.drop_references "
                "and config.train.drop_each_reference"
            )
        if layout.by_name[name].kind != "features":  # its null value comes with the data
            layout.null(name, 1)
    if run.train.draws > 1 and layout.references:
        _ = layout.only_references  # raises if they cannot be encoded once
    if run.train.drop_jointly:
        for segment in layout.conditions:
            if segment.role == "condition" and segment.kind != "features":
                layout.null(segment.name, 1)
    _check_given(run, layout)
    _check_objective(run, layout)
    for part in mode_configs(layout, run.sample):
        generated_segments(layout, part)
    try:
        # What only errors of the network rule out is refused by `make_sampler`: the sampling
        # settings of an older run must not keep its weights from being loaded.
        solve.check(run.sample.sampler, make(run.diffusion.schedule))
    except UvitError as error:
        raise UvitError(f"config.sample.sampler: {error}") from None
    _check_text_pretraining(run)
    dropping = run.train.drop_references or run.train.drop_each_reference
    dropping = dropping or (run.train.drop_jointly and layout.references)
    if dropping and not any(s.optional for s in layout.references):
        raise UvitError(
            "config.train.drop_references, drop_jointly and drop_each_reference need a model with "
            "optional references"
        )
    if any(s.learned_range for s in layout.noisy):
        bound.check(make(run.diffusion.schedule), run.diffusion.time_sampling)
    return run


def pretraining_data(run: RunConfig) -> DataConfig:
    """The data whose captions a text encoder is pretrained on.

    Raises:
      UvitError: for a key that the data do not have.
    """
    changed = {**to_dict(run.data), **run.text_pretraining.data}
    return parse(DataConfig, changed, "config.text_pretraining.data")


def _check_text_pretraining(run: RunConfig) -> None:
    """Raises UvitError if there is no encoder to pretrain."""
    if not run.text_pretraining.steps:
        return
    texts = {s.name: s for s in run.model.layout().inputs if s.kind == "text"}
    segment = texts.get(run.text_pretraining.segment)
    if segment is None:
        hint = nearest(run.text_pretraining.segment, texts)
        raise UvitError(
            f"config.text_pretraining.segment={run.text_pretraining.segment!r} is not a text of "
            f"the model{hint}"
        )
    pretraining_data(run)
    if not segment.encoder_width:
        raise UvitError(
            "config.text_pretraining needs an encoder; set encoder_depth and encoder_width of "
            f"config.model.segments.{segment.name}"
        )


def _check_objective(run: RunConfig, layout: Layout) -> None:
    """Raises UvitError if the model, or the way it is trained, does not suit the objective."""
    diffusion, backbone = run.diffusion, run.model.backbone
    if diffusion.shared_noise:
        videos = [s for s in layout.noisy if len(s.shape) == 4]
        if sum(s.shape[0] for s in videos) < 2 or any(s.learned_range for s in layout.noisy):
            raise UvitError(
                f"config.diffusion.shared_noise={diffusion.shared_noise} needs a noisy video of "
                "several frames, without learned_range; set it to 0"
            )
    where = f"config.diffusion.objective={diffusion.objective!r}"
    if diffusion.objective == "distill" and not run.train.teacher:
        raise UvitError(f"{where} needs config.train.teacher, the run to distill")
    if diffusion.objective == "denoise" and run.train.teacher:
        raise UvitError(
            f"config.train.teacher={run.train.teacher!r} is for config.diffusion.objective="
            f"'distill' and 'mean_flow', not {diffusion.objective!r}; drop it"
        )
    if diffusion.objective == "denoise":
        return
    sets = {"mean_flow": "interval", "distill": "guidance"}[diffusion.objective]
    if layout.setting(sets) is None:
        raise UvitError(
            f"{where} needs a segment of the model with kind='setting' and sets={sets!r}"
        )
    if run.train.draws > 1 or run.train.given or any(s.learned_range for s in layout.noisy):
        raise UvitError(f"{where} does not support train.draws, train.given and learned_range")
    if diffusion.objective == "distill":
        return
    if len(layout.time_keys) > 1:
        raise UvitError(f"{where} needs one time for all noisy segments; set their `time`")
    if (backbone.attention, backbone.products) != ("xla", "plain"):
        raise UvitError(
            f"{where} takes a forward-mode derivative, which others than "
            "config.model.backbone.attention='xla' and products='plain' do not support"
        )


def _check_given(run: RunConfig, layout: Layout) -> None:
    keys = {s.name: s.time_key for s in layout.noisy}
    others = {key for name, key in keys.items() if name not in run.train.given}
    for name, share in run.train.given.items():
        where = f"config.train.given.{name}"
        if name not in keys:
            raise UvitError(f"{where} is not a noisy segment of the model{nearest(name, keys)}")
        if not 0 <= share <= 1:
            raise UvitError(f"{where} must lie in [0, 1], got {share}")
        if not others or list(keys.values()).count(keys[name]) > 1:
            raise UvitError(
                f"{where} needs a time of its own, and another noisy segment that is never given"
            )
        if layout.by_name[name].learned_range:
            raise UvitError(f"{where}: a segment with learned_range cannot be given in training")


def check_mesh(run: RunConfig, mesh: Mesh | AbstractMesh) -> None:
    """Raises UvitError if a mesh does not divide the batch, the heads or the MLPs of a run."""
    backbone = run.model.backbone
    check_batch(mesh, run.train.batch_size, run.train.accumulate)
    hidden = int(backbone.width * backbone.mlp_ratio)
    check_tensor(mesh, num_heads=backbone.num_heads, mlp_width=hidden)
    for key, local, general, axes in (
        ("attention", "blocked", "xla", mesh.axis_names),
        ("products", "flat", "plain", ("context", "tensor")),
    ):
        if getattr(backbone, key) == local and any(mesh.shape[axis] > 1 for axis in axes):
            raise UvitError(
                f"{key}={local!r} would all-gather what config.mesh shards over {', '.join(axes)}; "
                f"set config.model.backbone.{key}={general!r}"
            )
    if backbone.attention.startswith("ulysses"):
        check_ulysses(mesh, backbone.num_heads)


def check_memory(run: RunConfig, model: Model, mesh: Mesh) -> None:
    """Raises UvitError if parameters or batches alone exceed the memory of a device.

    It is a lower bound: activations are not counted (`experiments.compile` measures them).
    """
    # Of another process's device nothing is known.
    limit = (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:  # the CPU backend
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    example = 4 * sum(math.prod(x.shape) for x in model.abstract_inputs(1).values())
    shards = mesh.shape["fsdp"] * mesh.shape["tensor"]
    for key, size, remedy in (
        # Parameters, their average and the optimizer's moments, in float32.
        (
            "config.model",
            16 * model.num_params // shards,
            "make it smaller, or raise config.mesh.fsdp",
        ),
        (
            f"config.train.batch_size={run.train.batch_size}",
            run.train.batch_size * example // batch_shards(mesh),
            "lower it",
        ),
        (f"config.sample.count={run.sample.count}", run.sample.count * example, "lower it"),
    ):
        if size > limit:
            raise UvitError(
                f"{key} needs at least {size / 2**30:.4g} GiB of memory per device, which has "
                f"{limit / 2**30:.4g} GiB; {remedy}"
            )


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys in which two configs (as JSON) differ, without `FREE_KEYS`."""
    changed = []
    for key in sorted({*old, *new}):
        path = f"{prefix}{key}"
        if path in FREE_KEYS:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changed += changed_keys(a, b, f"{path}.")
        elif a != b:
            changed.append(path)
    return changed
