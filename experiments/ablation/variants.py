"""The runs of an ablation: groups of variants of one base config, each with several seeds.

    config = {…a run's keys…, "groups": {group: {variant: {dotted key: value}}},
              "baseline": {group: variant}, "seeds": 3, "metrics": {…}}
    plan = make_plan(config, groups=("long_skip",))

Everything is parsed, and every model built, before anything is trained or written.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from uvit_jax.config import Config, parse, plain, replaced, to_dict
from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.model import build
from uvit_jax.training.run_config import RunConfig, parse_run

BASE = "base"
"""The name of the run of the base config, shared by all groups that include it."""
OF_TRAINING = ("portraits", "distractors", "described")
"""The keys of config.data that change training examples alone, never those of measurements."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsConfig(Config):
    """The metrics of all runs, with the same settings for all variants and seeds.

    Attributes:
      split: held out from training, for `validation_loss`.
      validation: number of noised images for that loss: those of the split in turn, each time with
        other noise and timesteps.
      samples: number of samples for the Fréchet distance; 0 skips it.
      batch_size: of both, over all devices.
      encoder, weights: of the Fréchet distance, as in `experiments.evaluate`.
      reference: an npz of reference statistics; "" computes them from the training data.
      probe: whether models with references are also probed at every checkpoint, for which reference
        is whose (see `uvit_jax.training.binding_probe`).
      curve: the metric that is plotted over training steps.
      seed: of the noise of validation and samples.
      grid: number of samples in the sample sheets.
    """

    split: str = "test"
    validation: int = 2048
    samples: int = 512
    batch_size: int = 64
    encoder: str = "efficientnet_lite0"
    weights: str = ""
    reference: str = ""
    probe: bool = False
    curve: str = "validation_loss"
    seed: int = 0
    grid: int = 16

    def __post_init__(self):
        super().__post_init__()
        if min(self.validation, self.batch_size) < 1:
            raise UvitError("validation and batch_size must be at least 1")
        if self.samples == 1 or min(self.samples, self.seed, self.grid) < 0:
            raise UvitError("samples must be 0 or at least 2, seed and grid at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationConfig(Config):
    """The keys of an ablation's config besides those of the base run.

    Attributes:
      groups: by group and variant, the changes to the base config, by dotted key.
      baseline: the variant of each group that the others are compared with.
      seeds: number of seeds, from `config.seed` on.
      metrics: see `MetricsConfig`.
    """

    groups: Mapping[str, Mapping[str, Mapping[str, Any]]]
    baseline: Mapping[str, str]
    seeds: int = 3
    metrics: MetricsConfig = MetricsConfig()

    def __post_init__(self):
        super().__post_init__()
        if not self.groups or not all(self.groups.values()):
            raise UvitError("groups must name at least one group, and each at least one variant")
        for group, variants in self.groups.items():
            if self.baseline.get(group) not in variants:
                hint = nearest(self.baseline.get(group, ""), variants)
                raise UvitError(f"baseline.{group} must name a variant of groups.{group}{hint}")
        if self.seeds < 1:
            raise UvitError(f"seeds must be at least 1, got {self.seeds}")


@dataclasses.dataclass(frozen=True)
class AblationRun:
    """One training run of an ablation.

    Attributes:
      name: of the variant, the same for all seeds; `base` for the base config.
      seed: also in `run`.
      run: its config.
      variants: all (group, variant) pairs that have this config.
    """

    name: str
    seed: int
    run: RunConfig
    variants: tuple[tuple[str, str], ...]

    @property
    def title(self) -> str:
        """For messages, such as `long_skip/add seed 1`."""
        names = [f"{group}/{variant}" for group, variant in self.variants]
        return f"{' = '.join(names)} seed {self.seed}"

    @property
    def folder(self) -> str:
        """Its workdir, relative to the ablation's."""
        return f"runs/{self.name}/seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class AblationPlan:
    """A parsed ablation.

    Attributes:
      config: with the chosen groups only.
      base: the base run's config as plain JSON.
      jobs: all runs, ordered by seed: an ablation that is stopped early has compared all variants
        on its first seeds.
      params: number of parameters by name.
      names: the name of each (group, variant).
    """

    config: AblationConfig
    base: dict[str, Any]
    jobs: tuple[AblationRun, ...]
    params: dict[str, int]
    names: dict[tuple[str, str], str]


def make_plan(
    config: Mapping[str, Any], *, groups: Sequence[str] = (), seeds: int | None = None
) -> AblationPlan:
    """Parses an ablation's config and builds every model once.

    Args:
      config: see above. groups: the chosen ones, empty for all. seeds: overrides `config.seeds`.

    Raises:
      UvitError: if a group is unknown, or the config of a variant is invalid, naming it.
    """
    config = plain(config)
    own = {f.name for f in dataclasses.fields(AblationConfig)}
    for key in ("groups", "baseline"):
        if key not in config:
            raise UvitError(f"config.{key} is missing: this is not the config of an ablation")
    ablation = parse(AblationConfig, {k: v for k, v in config.items() if k in own})
    for group in groups:
        if group not in ablation.groups:
            raise UvitError(f"groups has no {group!r}{nearest(group, ablation.groups)}")
    chosen = {g: v for g, v in ablation.groups.items() if not groups or g in groups}
    ablation = dataclasses.replace(
        ablation, groups=chosen, seeds=ablation.seeds if seeds is None else seeds
    )
    base = {k: v for k, v in config.items() if k not in own}
    base_run = parse_run(base)
    train = base_run.train
    saved = -(-train.steps // train.checkpoint_every)
    if saved > train.keep_checkpoints:
        raise UvitError(
            f"the curves need all {saved} checkpoints, but config.train.keep_checkpoints="
            f"{train.keep_checkpoints}; set config.train.checkpoint_every={-(-train.steps // 4)}"
        )

    runs: dict[str, RunConfig] = {}
    names: dict[tuple[str, str], str] = {}
    params: dict[str, int] = {}
    for group, variants in chosen.items():
        for variant, changes in variants.items():
            try:
                run = parse_run(replaced(base, changes))
                same = {key: getattr(base_run.data, key) for key in OF_TRAINING}
                held_out = dataclasses.replace(run.data, **same)
                if held_out != base_run.data or run.seed != base_run.seed:
                    raise UvitError(
                        "a variant must have the base's data and seed to be comparable, but for "
                        f"{', '.join(OF_TRAINING)}"
                    )
                name = next((n for n, other in runs.items() if other == run), None)
                if name is None:
                    name = BASE if run == base_run else f"{group}-{variant}"
                    params[name] = build(run.model).num_params
            except UvitError as error:
                raise UvitError(f"group {group}, variant {variant}: {error}") from None
            runs[name], names[group, variant] = run, name
    jobs = []
    for seed in range(base_run.seed, base_run.seed + ablation.seeds):
        for name, run in runs.items():
            seeded = dataclasses.replace(run, seed=seed)
            variants = tuple(key for key, value in names.items() if value == name)
            jobs.append(AblationRun(name, seed, seeded, variants))
    return AblationPlan(ablation, to_dict(base_run), tuple(jobs), params, names)
