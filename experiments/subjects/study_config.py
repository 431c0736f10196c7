"""`CompareConfig`: the networks, methods, evaluation settings and encoders of a comparison."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal

from experiments.subjects.results import PrimaryComparison
from experiments.subjects.tuning import TuningGrid
from uvit_jax.config import Config, brief, parse, plain
from uvit_jax.data.sources.worlds import evaluation_sets
from uvit_jax.errors import UvitError, nearest
from uvit_jax.training.finetune import FinetuneConfig

DREAMBENCH = "dreambench"
TOTEM_VIDEOS = "totem_videos"
AMPLITUDE_SETTING, TURNING_SETTING = "amplitudes", "turning"
VIDEO_SETTINGS = {AMPLITUDE_SETTING: "identities_2v", TURNING_SETTING: "compositions"}
"""Settings of videos alone, and the settings of images that have the same scenes: `amplitudes` has
the same scene and moves in all amplitudes; in `turning`, a subject with the front of one identity
and the back of another turns from one to the other, which the clips that a LoRA is trained on,
made of cut-out references, cannot show."""
Composition = Literal["fused", "sum", "joint"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig(Config):
    """One compared method (an entry of the key `arms`).

    Attributes:
      network: its name in `CompareConfig.networks`. title: shown in tables and plots.
      method: `context` gives the network the references; `lora` fine-tunes it on them, `words` only
        the vector of the subject's own word, if the network has one.
      compose: how `lora` composes the adapters of several subjects: `fused` (closed-form least
        squares), their `sum`, or `joint` training. The first is reported as the method itself, the
        others as `NAME_sum` and so on.
      grid: ranks, rates, prior weights and steps that fine-tuning is tuned over on validation
        subjects; None uses the comparison's.
      settings: evaluated settings; () for all.
      seeds: of the networks; () for all of the comparison's.
      references: whether `context` gives the network the references.
      given: of videos, the frames that are given instead of generated: the true `first` one, the
        true `first_last`, or a `composed` first one, of cut-out references.
      controls: of videos, which of camera and amplitude are inputs, beside the caption.
    """

    network: str
    title: str
    method: Literal["context", "lora", "words"] = "context"
    references: bool = True
    given: Literal["", "first", "first_last", "composed"] = ""
    controls: tuple[Literal["camera", "amplitude"], ...] = ("camera", "amplitude")
    compose: tuple[Composition, ...] = typing.get_args(Composition)
    grid: TuningGrid | None = None
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if not self.compose:
            raise UvitError(f"compose must name one of {', '.join(typing.get_args(Composition))}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingConfig:
    """The size of an evaluation setting.

    Attributes:
      subjects: groups of subjects. prompts: of each group.
      finetuned: of the groups, how many fine-tuned methods are evaluated on, the first; 0 for all.
    """

    subjects: int
    prompts: int = 2
    finetuned: int = 0

    def __post_init__(self):
        if min(self.subjects, self.prompts) < 1 or not 0 <= self.finetuned <= self.subjects:
            raise UvitError(
                "subjects and prompts must be at least 1, and finetuned from 0 to subjects"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig(Config):
    """A comparison.

    Attributes:
      world: `totems`, `emoji_scenes`, `totem_videos`, or `dreambench`, a folder of photographs at
        `path`.
      networks: by name, the config of a training run (see `RunConfig`), or {"load": path} with the
        workdir of a finished one.
      seeds: of the networks: each is trained with every one. They are trained in this order, all
        networks of a seed before the next.
      arms: the compared methods by name, in the order of the tables.
      baseline: the method that the others are compared with.
      settings: the size of each evaluation setting, by its name in the world.
      main: the setting of the plots, the tuning curves and the costs.
      primary: the comparisons whose p-values are adjusted, fixed in advance; all others are
        secondary.
      title: of the report.
      samples: images per case, each with its own seed.
      batch_size: images sampled at once. at_once: subjects fine-tuned at once.
      finetune: the recipe of `lora` and `words`, apart from what a grid tunes.
      pasted: captioned scenes with a subject's references pasted in, that it is fine-tuned on
        beside the references.
      grid: the default of `MethodConfig.grid`. validation: the number of validation subjects.
      guidance: scales, of references or else of the text, of which every method takes the best on
        validation subjects; () keeps the networks' own.
      prior: class images for prior preservation.
      word: the class word in captions; it names none of a case's subjects.
      encoders: judges of another family, and for worlds without trained ones the only, as in
        `experiments.evaluate`.
      weights: files of the encoders' weights, by encoder. path: of DreamBench's folder.
      shipped: for `--networks=shipped`, names of the package's networks by NETWORK_sSEED.
      tolerance: the largest relative difference of training compute between networks.
      seed: of noise and fine-tuning. notes: sentences at the head of the report.
    """

    world: Literal["totems", "emoji_scenes", "totem_videos", "dreambench"]
    networks: Mapping[str, Any]
    arms: Mapping[str, MethodConfig]
    baseline: str
    settings: Mapping[str, SettingConfig]
    main: str
    seeds: tuple[int, ...] = (0,)
    primary: Mapping[str, PrimaryComparison] = dataclasses.field(default_factory=dict)
    title: str = "One sequence against DiT + LoRA"
    samples: int = 2
    batch_size: int = 16
    at_once: int = 8
    finetune: FinetuneConfig = FinetuneConfig()
    pasted: int = 0
    grid: TuningGrid = TuningGrid()
    validation: int = 4
    guidance: tuple[float, ...] = ()
    prior: int = 64
    word: str = "@4"
    encoders: tuple[str, ...] = ("efficientnet_lite0",)
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    path: str = ""
    shipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
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
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UvitError(f"seeds must be one or more different numbers, got {brief(self.seeds)}")
        for name, method in self.arms.items():
            if method.network not in self.networks:
                raise UvitError(
                    f"arms.{name}: there is no network {method.network!r}"
                    f"{nearest(method.network, self.networks)}"
                )
            if unknown := set(method.seeds) - set(self.seeds):
                raise UvitError(f"arms.{name}: seed {min(unknown)} is not in seeds={self.seeds}")
        if self.baseline not in self.arms:
            raise UvitError(
                f"baseline={self.baseline!r} is not in arms{nearest(self.baseline, self.arms)}"
            )
        if self.world == TOTEM_VIDEOS:
            known = (*evaluation_sets.settings("totems"), *VIDEO_SETTINGS)
        elif self.world != DREAMBENCH:
            known = evaluation_sets.settings(self.world)
        for name in self.settings if self.world != DREAMBENCH else ():
            if name not in known:
                raise UvitError(
                    f"settings.{name}: {self.world} has no such setting{nearest(name, known)}"
                )
        for name, method in self.arms.items():
            if method.given and self.world != TOTEM_VIDEOS:
                raise UvitError(f"arms.{name}: given={method.given!r} is for videos")
        chosen = {"main": self.main}
        chosen |= {f"primary.{key}.setting": o.setting for key, o in self.primary.items()}
        for key, method in self.arms.items():
            chosen |= {f"arms.{key}.settings[{i}]": s for i, s in enumerate(method.settings)}
        for key, name in chosen.items():
            if name and name not in self.settings:
                raise UvitError(f"{key}: {name!r} is not in settings{nearest(name, self.settings)}")
        for key, one in self.primary.items():
            for method in (one.method, *one.against):
                if method not in self.arms:
                    raise UvitError(
                        f"primary.{key}: {method!r} is not in arms{nearest(method, self.arms)}"
                    )
        for key in ("samples", "batch_size", "at_once", "validation", "prior"):
            if getattr(self, key) < 1:
                raise UvitError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.pasted < 0 or (self.pasted and self.world == DREAMBENCH):
            raise UvitError(f"pasted={self.pasted} must be 0, or positive in a rendered world")

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """The seeds of the networks that a method is evaluated with."""
        return self.arms[arm].seeds or self.seeds


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
