"""`CompareConfig`: which networks, adapted how, are asked what, and who judges."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.subjects.tuning import Grid
from uvit_jax.config import parse, plain
from uvit_jax.data.data_config import WORLDS
from uvit_jax.data.sources.worlds import evaluation_sets
from uvit_jax.errors import UvitError, nearest
from uvit_jax.training.finetune import FinetuneConfig

METHODS = ("context", "lora", "full")
COMPOSITIONS = ("fused", "sum", "joint")
DREAMBENCH = "dreambench"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """One competitor.

    Attributes:
      network: its name among `CompareConfig.networks`. title: for people.
      method: `context` shows the references to the network; `lora` and `full` fine-tune it to them.
      compose: of several subjects, for `lora`: `fused` (closed-form least squares), `sum` of the
        adapters, `joint` training. The first is the arm's own row, the others have rows beside it.
      grid: of ranks, rates and steps, of which `lora` and `full` take what does best on validation
        subjects; None for the comparison's.
      settings: the ones that it answers; () for all. `full` keeps a network a subject, and no two
        can be made one: it answers about single ones, or trains them together (`joint` first).
    """

    network: str
    title: str
    method: str = "context"
    compose: tuple[str, ...] = COMPOSITIONS
    grid: Grid | None = None
    settings: tuple[str, ...] = ()

    def __post_init__(self):
        if self.method not in METHODS:
            raise UvitError(f"unknown method {self.method!r}{nearest(self.method, METHODS)}")
        for how in self.compose:
            if how not in COMPOSITIONS:
                raise UvitError(f"unknown composition {how!r}{nearest(how, COMPOSITIONS)}")
        if not self.compose:
            raise UvitError(f"compose must name one of {', '.join(COMPOSITIONS)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """How much is asked in a setting: groups of `subjects`, `prompts` for each of them."""

    subjects: int
    prompts: int = 2

    def __post_init__(self):
        if min(self.subjects, self.prompts) < 1:
            raise UvitError("subjects and prompts must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A comparison.

    Attributes:
      world: `totems`, `emoji_scenes`, or `dreambench`, a folder of photographs at `path`.
      networks: by name the whole config of a training run (see `RunConfig`), or {"load": path} with
        a workdir to take as it is.
      arms: see `ArmConfig`, in the order to show them.
      baseline: the arm that the others are compared with.
      settings: by the name of a setting of the world how much is asked there.
      main: the setting of the plots, the tuning curves and the costs.
      samples: pictures a question, from as many seeds.
      batch_size: pictures drawn at once. at_once: subjects fine-tuned at once.
      finetune: the recipe of `lora` and `full` arms, but for what a grid tries.
      grid, validation: what is tried (see `ArmConfig`), and on how many validation subjects.
      prior: class pictures for prior preservation.
      word: the caption's name of a subject nobody means (of the class), which no question has.
      encoders: for worlds without judges of their own, as `experiments.evaluate` has them.
      weights: by encoder, its file. path: of DreamBench's folder.
      tolerance: how far the networks' training compute may lie apart, as a share.
      seed: of noise and fine-tuning. notes: sentences for the page's head.
    """

    world: str
    networks: Mapping[str, Any]
    arms: Mapping[str, ArmConfig]
    baseline: str
    settings: Mapping[str, Asked]
    main: str
    title: str = "One sequence against DiT + LoRA"
    samples: int = 2
    batch_size: int = 16
    at_once: int = 8
    finetune: FinetuneConfig = FinetuneConfig()
    grid: Grid = Grid()
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
        worlds = (*WORLDS, DREAMBENCH)
        if self.world not in worlds:
            raise UvitError(f"unknown world {self.world!r}{nearest(self.world, worlds)}")
        if (self.world == DREAMBENCH) != bool(self.path):
            raise UvitError(f"path names DreamBench's folder, and the world is {self.world!r}")
        for name, arm in self.arms.items():
            if arm.network not in self.networks:
                raise UvitError(
                    f"arm {name}: there is no network {arm.network!r}"
                    f"{nearest(arm.network, self.networks)}"
                )
        if self.baseline not in self.arms:
            raise UvitError(f"the baseline {self.baseline!r} is no arm")
        for name in self.settings:
            if self.world != DREAMBENCH and name not in evaluation_sets.settings(self.world):
                raise UvitError(
                    f"{self.world} have no setting {name!r}"
                    f"{nearest(name, evaluation_sets.settings(self.world))}"
                )
        chosen = [name for arm in self.arms.values() for name in arm.settings]
        for name in (self.main, *chosen):
            if name not in self.settings:
                raise UvitError(f"{name!r} is none of the settings{nearest(name, self.settings)}")
        if self.world != DREAMBENCH:
            self._check_composable()
        for key in ("samples", "batch_size", "at_once", "validation", "prior"):
            if getattr(self, key) < 1:
                raise UvitError(f"{key} must be at least 1, got {getattr(self, key)}")

    def _check_composable(self) -> None:
        for name, arm in self.arms.items():
            if arm.method != "full" or arm.compose[0] == "joint":
                continue
            for setting in arm.settings or self.settings:
                if (count := evaluation_sets.SETTINGS[setting].subjects) > 1:
                    raise UvitError(
                        f"arm {name}: the networks of {setting}'s {count} subjects cannot be made "
                        "one; give the arm settings of single subjects, or compose=('joint',)"
                    )


def parse_compare(config: Mapping[str, Any]) -> CompareConfig:
    """The comparison that a config file describes; UvitError if it is none."""
    config = plain(config)
    for key in ("networks", "arms", "settings"):
        if not config.get(key):
            raise UvitError(f"config.{key} is missing: this is no comparison's config")
    return parse(CompareConfig, config)
