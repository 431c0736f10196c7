"""`CompareConfig`: the networks, methods, evaluation settings and encoders of a comparison."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal

from experiments.subjects.tuning import TuningGrid
from uvit_jax.config import Config, parse, plain
from uvit_jax.data.sources.worlds import evaluation_sets
from uvit_jax.errors import UvitError, nearest
from uvit_jax.training.finetune import FinetuneConfig

DREAMBENCH = "dreambench"
Composition = Literal["fused", "sum", "joint"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig(Config):
    """One compared method (an entry of the key `arms`).

    Attributes:
      network: its name in `CompareConfig.networks`. title: shown in tables and plots.
      method: `context` gives the network the references; `lora` and `full` fine-tune it on them.
      compose: how `lora` composes the adapters of several subjects: `fused` (closed-form least
        squares), their `sum`, or `joint` training. The first is reported as the method itself, the
        others as `NAME_sum` and so on.
      grid: ranks, rates and steps that `lora` and `full` are tuned over on validation subjects;
        None uses the comparison's.
      settings: evaluated settings; () for all. `full` fine-tunes one network per subject, which
        cannot be composed: it needs settings of one subject, or compose=("joint",).
    """

    network: str
    title: str
    method: Literal["context", "lora", "full"] = "context"
    compose: tuple[Composition, ...] = typing.get_args(Composition)
    grid: TuningGrid | None = None
    settings: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if not self.compose:
            raise UvitError(f"compose must name one of {', '.join(typing.get_args(Composition))}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingConfig:
    """The size of an evaluation setting: `subjects` groups of subjects, `prompts` for each."""

    subjects: int
    prompts: int = 2

    def __post_init__(self):
        if min(self.subjects, self.prompts) < 1:
            raise UvitError("subjects and prompts must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig(Config):
    """A comparison.

    Attributes:
      world: `totems`, `emoji_scenes`, or `dreambench`, a folder of photographs at `path`.
      networks: by name, the config of a training run (see `RunConfig`), or {"load": path} with the
        workdir of a finished one.
      arms: the compared methods by name, in the order of the tables.
      baseline: the method that the others are compared with.
      settings: the size of each evaluation setting, by its name in the world.
      main: the setting of the plots, the tuning curves and the costs.
      title: of the report.
      samples: images per case, each with its own seed.
      batch_size: images sampled at once. at_once: subjects fine-tuned at once.
      finetune: the recipe of `lora` and `full`, apart from what a grid tunes.
      grid: the default of `MethodConfig.grid`. validation: the number of validation subjects.
      prior: class images for prior preservation.
      word: the class word in captions; it names none of a case's subjects.
      encoders: for worlds without trained judges, as in `experiments.evaluate`.
      weights: files of the encoders' weights, by encoder. path: of DreamBench's folder.
      tolerance: the largest relative difference of training compute between networks.
      seed: of noise and fine-tuning. notes: sentences at the head of the report.
    """

    world: Literal["totems", "emoji_scenes", "dreambench"]
    networks: Mapping[str, Any]
    arms: Mapping[str, MethodConfig]
    baseline: str
    settings: Mapping[str, SettingConfig]
    main: str
    title: str = "One sequence against DiT + LoRA"
    samples: int = 2
    batch_size: int = 16
    at_once: int = 8
    finetune: FinetuneConfig = FinetuneConfig()
    grid: TuningGrid = TuningGrid()
    validation: int = 4
    prior: int = 64
    word: str = "@4"
    encoders: tuple[str, ...] = ("efficientnet_lite0",)
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    path: str = ""
    tolerance: float = 0.02
    seed: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if (self.world == DREAMBENCH) != bool(self.path):
            raise UvitError(
                f"path is the folder of world='dreambench', and only that: got path={self.path!r} "
                f"and world={self.world!r}"
            )
        for name, method in self.arms.items():
            if method.network not in self.networks:
                raise UvitError(
                    f"arms.{name}: there is no network {method.network!r}"
                    f"{nearest(method.network, self.networks)}"
                )
        if self.baseline not in self.arms:
            raise UvitError(
                f"baseline={self.baseline!r} is not in arms{nearest(self.baseline, self.arms)}"
            )
        for name in self.settings:
            if self.world != DREAMBENCH and name not in evaluation_sets.settings(self.world):
                raise UvitError(
                    f"settings.{name}: {self.world} has no such setting"
                    f"{nearest(name, evaluation_sets.settings(self.world))}"
                )
        chosen = [name for method in self.arms.values() for name in method.settings]
        for name in (self.main, *chosen):
            if name not in self.settings:
                raise UvitError(f"{name!r} is not in settings{nearest(name, self.settings)}")
        if self.world != DREAMBENCH:
            self._check_composable()
        for key in ("samples", "batch_size", "at_once", "validation", "prior"):
            if getattr(self, key) < 1:
                raise UvitError(f"{key} must be at least 1, got {getattr(self, key)}")

    def _check_composable(self) -> None:
        for name, method in self.arms.items():
            if method.method != "full" or method.compose[0] == "joint":
                continue
            for setting in method.settings or self.settings:
                if (count := evaluation_sets.SETTINGS[setting].subjects) > 1:
                    raise UvitError(
                        f"arms.{name}: fully fine-tuned networks cannot be composed, and {setting} "
                        f"has {count} subjects; choose settings of one subject, or "
                        "compose=('joint',)"
                    )


def parse_compare(config: Mapping[str, Any]) -> CompareConfig:
    """Parses the config of a comparison.

    Raises:
      UvitError: on an unknown, missing or impossible value, naming the key.
    """
    config = plain(config)
    for key in ("networks", "arms", "settings"):
        if not config.get(key):
            raise UvitError(f"config.{key} is missing: this is not the config of a comparison")
    return parse(CompareConfig, config)
