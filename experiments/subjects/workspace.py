"""The workdir of a comparison: config, networks, evaluation cases, samples.

It holds `compare.json` (the config), `networks/NAME_sSEED` (each the workdir of a training run) and
its finished weights beside it, `tuning/METHOD`, `pictures/sSEED/METHOD/SETTING.npz`, and `notes`
(recipes, costs, the networks' checksums). Without networks, tuning and pictures it is small: copied
to another machine with `results.csv.gz` and `manifest.json`, it takes the results of more networks.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.subjects.evaluation_cases import (
    EvaluationCase,
    StudyWorld,
    grouped,
    next_group,
)
from experiments.subjects.networks import TrainedNetwork
from experiments.subjects.result_rows import ANCHORS, RENDERED_ANCHORS
from experiments.subjects.sample_store import SampleStore
from experiments.subjects.scoring import Scorer, make_scorer
from experiments.subjects.study_config import TOTEM_VIDEOS, CompareConfig, parse_compare
from experiments.subjects.tuning import TuningGrid
from experiments.subjects.video_world import VideoWorld, open_world
from uvit_jax.config import to_dict
from uvit_jax.encoders.weights import sha256
from uvit_jax.errors import UvitError
from uvit_jax.io import write_text
from uvit_jax.training.run_config import RunConfig, changed_keys, parse_run
from uvit_jax.training.workdir import Workdir


class Workspace:
    """A comparison's workdir.

    Args:
      networks: the files of finished networks by NETWORK_sSEED, in place of training; those without
        a file are left out. None to train all.

    Attributes:
      runs: the run config by network, None for loaded ones.

    Raises:
      UvitError: if the workdir belongs to another comparison (nothing is overwritten), or there is
        a file of none of the networks.
    """

    def __init__(
        self, config: CompareConfig, workdir: Path, networks: Mapping[str, Path] | None = None
    ):
        self.config, self.workdir, self.given = config, workdir, networks
        self.runs = {
            name: None if "load" in given else parse_run(given)
            for name, given in config.networks.items()
        }
        pairs = [(name, seed) for seed in config.seeds for name in self.runs]
        names = [f"{name}_s{seed}" for name, seed in pairs]
        if networks is not None and not set(networks) & set(names):
            raise UvitError(
                f"--networks has none of the networks of the comparison, such as {names[0]}"
                ".safetensors; write them there with experiments.export_checkpoint"
            )
        for name, seed in pairs if networks is None else ():
            if self.runs[name] is not None:
                Workdir(self.folder(name, seed)).check(to_dict(self.run(name, seed)))
        self._claim()
        self._networks: dict[tuple[str, int], TrainedNetwork] = {}
        self._cases: dict[str, list[EvaluationCase]] = {}

    @functools.cached_property
    def world(self) -> StudyWorld:
        """The evaluated world, at the image size of the networks."""
        shapes = {
            self.network(name, seed).shape
            for name in self.runs
            for seed in self.config.seeds
            if self.ready(name, seed)
        }
        if not shapes:
            raise UvitError(f"no network in {self.workdir} has finished training yet")
        if len(shapes) != 1:
            raise UvitError(f"all networks must generate one shape, got {sorted(shapes)}")
        return open_world(self.config, shapes.pop())

    @functools.cached_property
    def scorer(self) -> Scorer:
        """The scorer of the world."""
        return make_scorer(self.config, self.world)

    @property
    def has_portraits(self) -> bool:
        """Whether references can be generated again, from captions of their own."""
        return hasattr(self.world, "portraits")

    def store(self, seed: int) -> SampleStore:
        """The samples of the networks of a seed."""
        return SampleStore(self.workdir / "pictures" / f"s{seed}")

    @property
    def notes(self) -> SampleStore:
        """Costs and recipes."""
        return SampleStore(self.workdir / "notes")

    def cases(self, setting: str, method: str = "") -> list[EvaluationCase]:
        """The evaluation cases of a setting; of a fine-tuned method, the first of them."""
        size = self.config.settings[setting]
        if setting not in self._cases:
            self._cases[setting] = self.world.cases(setting, size)
        arm, cases = self.arm(method), self._cases[setting]
        if arm and self.config.arms[arm].method != "context" and size.finetuned:
            return [case for group in grouped(cases)[: size.finetuned] for case in group]
        return cases

    def run(self, name: str, seed: int) -> RunConfig:
        """The config of a network's training with a seed."""
        return dataclasses.replace(self.runs[name], seed=seed)

    def network(self, name: str, seed: int) -> TrainedNetwork:
        """A network that is `ready`, loaded once."""
        if (name, seed) not in self._networks:
            self.check_network(name, seed)
            network = TrainedNetwork(f"{name}_s{seed}", self.weights(name, seed), self.runs[name])
            self._networks[name, seed] = network
        return self._networks[name, seed]

    def check_network(self, name: str, seed: int) -> None:
        """Raises UvitError if the workdir's results are of another network of this name."""
        file = self.weights(name, seed)
        if not file.is_file():  # the workdir of a training run
            return
        note = f"networks/{name}_s{seed}"
        found = {"sha256": sha256(file)}
        before = self.notes.noted(note)
        if before is None:
            self.notes.note(note, found)
        elif before != found:
            raise UvitError(
                f"{file} is not the network {name}_s{seed} that the results in {self.workdir} are "
                "of; give another --workdir"
            )

    def folder(self, name: str, seed: int) -> Path:
        """The workdir that a network is trained in."""
        return self.workdir / "networks" / f"{name}_s{seed}"

    def weights(self, name: str, seed: int) -> Path:
        """A finished network's file, or the workdir that is loaded."""
        if load := self.config.networks[name].get("load"):
            return Path(load).expanduser()
        trained = self.workdir / "networks" / f"{name}_s{seed}.safetensors"
        return trained if self.given is None else self.given.get(f"{name}_s{seed}", trained)

    def ready(self, name: str, seed: int) -> bool:
        """Whether a network has finished training."""
        if self.runs[name] is None:
            return True
        if self.given is not None:
            return f"{name}_s{seed}" in self.given
        return self.weights(name, seed).is_file()

    def available(self, arm: str) -> list[int]:
        """The seeds of an arm whose networks are ready."""
        network = self.config.arms[arm].network
        return [seed for seed in self.config.seeds_of(arm) if self.ready(network, seed)]

    def grid(self, name: str) -> TuningGrid:
        """The tuning grid of a method; the word vectors alone have no rank."""
        method = self.config.arms[name]
        grid = method.grid or self.config.grid
        return dataclasses.replace(grid, ranks=grid.ranks[:1]) if method.method == "words" else grid

    def variants(self, name: str) -> dict[str, str]:
        """`compose` of a configured method and of its variants, by the names of the results."""
        first, *others = self.config.arms[name].compose
        return {name: first} | {f"{name}_{compose}": compose for compose in others}

    def methods(self) -> list[str]:
        """The names of all methods, their variants and the anchors."""
        found = [method for name in self.config.arms for method in self.variants(name)]
        return [*found, *ANCHORS]

    def arm(self, method: str) -> str:
        """The arm that a method, a variant of it or one of its curves belongs to; "" for none."""
        name = method.partition("@")[0].partition("~")[0]
        return next((arm for arm in self.config.arms if name in self.variants(arm)), "")

    def has_images(self, method: str, setting: str, seed: int) -> bool:
        """Whether there are images of a method in a setting; rendered anchors count as those of the
        first seed."""
        if method in RENDERED_ANCHORS:
            known = hasattr(self.world, RENDERED_ANCHORS[method])
            if method == "nearest_training":  # by attributes
                known &= self.config.world in ("totems", TOTEM_VIDEOS)
            return known and seed == self.config.seeds[0]
        return self.store(seed).has(method, setting)

    def images(self, method: str, setting: str, seed: int, count: int | None = None) -> np.ndarray:
        """Images (Q, samples, H, W, C) of a method: stored samples, or a rendered anchor; of the
        first `count` cases, or all."""
        if method not in RENDERED_ANCHORS:
            return self.store(seed).read(method, setting)[:count]
        cases, samples, images = self.cases(setting), self.config.samples, []
        for i, case in enumerate(cases[:count]):
            if method == "copy_paste":
                image = case.references[0][0]
                video = isinstance(self.world, VideoWorld)
                own = [self.world.still(image) if video else image] * samples
            elif method == "random_identity":
                other = next_group(cases, i)
                own = [self.world.impostor(case, other, k) for k in range(samples)]
            else:
                render = getattr(self.world, RENDERED_ANCHORS[method])
                own = [render(case, k) for k in range(samples)]
            images.append(np.stack(own))
        return np.stack(images)

    def style(self, method: str) -> str:
        """The backbone style of a method, `none` for rendered anchors."""
        if method in RENDERED_ANCHORS:
            return "none"
        arm = self.arm(method) or self.config.baseline
        return self.network(self.config.arms[arm].network, self.available(arm)[0]).style

    def _claim(self) -> None:
        """Writes the config into a new workdir, or checks it against the stored one."""
        file = self.workdir / "compare.json"
        config = to_dict(self.config)
        if not file.exists():
            others = [p.name for p in self.workdir.glob("*") if p.name not in ("networks",)]
            if others:
                raise UvitError(
                    f"workdir {self.workdir} is not empty and holds no comparison (no "
                    "compare.json); give a new folder with --workdir"
                )
            self.workdir.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(config, indent=1) + "\n")
            return
        try:
            before = json.loads(file.read_text())
        except ValueError as error:
            raise UvitError(f"{file} is damaged: {error}") from None
        if not isinstance(before, dict):
            raise UvitError(f"{file} is damaged: it is not a config")
        with contextlib.suppress(UvitError):  # fills in defaults of newer keys
            before = to_dict(parse_compare(before))
        # What does not change the results.
        config, before = ({**each, "notes": None, "shipped": None} for each in (config, before))
        if changed := changed_keys(before, config):
            raise UvitError(
                f"workdir {self.workdir} belongs to another comparison; it differs in "
                f"{', '.join(changed)}. Nothing was changed; give another --workdir"
            )
