"""The workdir of a comparison: config, networks, evaluation cases, samples.

It holds `compare.json` (the config), `networks/NAME` (each the workdir of a training run),
`tuning/METHOD` and `pictures/METHOD/SETTING.npz`.
"""

import contextlib
import dataclasses
import functools
import json
from pathlib import Path

import numpy as np

from experiments.subjects.evaluation_cases import EvaluationCase, StudyWorld, next_group, open_world
from experiments.subjects.networks import TrainedNetwork
from experiments.subjects.result_rows import ANCHORS, RENDERED_ANCHORS
from experiments.subjects.sample_store import SampleStore
from experiments.subjects.scoring import Scorer, make_scorer
from experiments.subjects.study_config import CompareConfig, parse_compare
from experiments.subjects.tuning import TuningGrid
from uvit_jax.config import to_dict
from uvit_jax.errors import UvitError
from uvit_jax.io import write_text
from uvit_jax.training.run_config import changed_keys, parse_run
from uvit_jax.training.workdir import Workdir


class Workspace:
    """A comparison's workdir.

    Attributes:
      runs: the run config by network, None for loaded ones. store: the samples and costs.

    Raises:
      UvitError: if the workdir belongs to another comparison; nothing is overwritten.
    """

    def __init__(self, config: CompareConfig, workdir: Path):
        self.config, self.workdir = config, workdir
        self.runs = {
            name: None if "load" in given else parse_run(given)
            for name, given in config.networks.items()
        }
        for name, run in self.runs.items():
            if run is not None:
                Workdir(self.folder(name)).check(to_dict(run))
        self._claim()
        self.store = SampleStore(workdir / "pictures")
        self._networks: dict[str, TrainedNetwork] = {}
        self._cases: dict[str, list[EvaluationCase]] = {}

    @functools.cached_property
    def world(self) -> StudyWorld:
        """The evaluated world, at the image size of the networks."""
        sizes = set()
        for name in self.runs:
            if self.ready(name):
                layout = self.network(name).model.layout
                sizes.add(layout.noisy_images[0].shape[-3])
        if not sizes:
            raise UvitError(f"no network in {self.workdir} has finished training yet")
        if len(sizes) != 1:
            raise UvitError(f"all networks must have one image size, got {sorted(sizes)}")
        return open_world(self.config, sizes.pop())

    @functools.cached_property
    def scorer(self) -> Scorer:
        """The scorer of the world."""
        return make_scorer(self.config, self.world)

    def cases(self, setting: str) -> list[EvaluationCase]:
        """The evaluation cases of a setting."""
        if setting not in self._cases:
            self._cases[setting] = self.world.cases(setting, self.config.settings[setting])
        return self._cases[setting]

    def network(self, name: str) -> TrainedNetwork:
        """A network that is `ready`, loaded once."""
        if name not in self._networks:
            self._networks[name] = TrainedNetwork(name, self.folder(name), self.runs[name])
        return self._networks[name]

    def folder(self, name: str) -> Path:
        """A network's workdir."""
        load = self.config.networks[name].get("load")
        return Path(load).expanduser() if load else self.workdir / "networks" / name

    def ready(self, name: str) -> bool:
        """Whether a network has finished training."""
        run = self.runs[name]
        return run is None or max(Workdir(self.folder(name)).steps, default=0) >= run.train.steps

    def grid(self, name: str) -> TuningGrid:
        """The tuning grid of a method."""
        method = self.config.arms[name]
        grid = method.grid or self.config.grid
        # Full fine-tuning has no rank.
        return dataclasses.replace(grid, ranks=grid.ranks[:1]) if method.method == "full" else grid

    def variants(self, name: str) -> dict[str, str]:
        """`compose` of a configured method and of its variants, by the names of the results."""
        first, *others = self.config.arms[name].compose
        return {name: first} | {f"{name}_{compose}": compose for compose in others}

    def methods(self) -> list[str]:
        """The names of all methods, their variants and the anchors."""
        found = [method for name in self.config.arms for method in self.variants(name)]
        return [*found, *ANCHORS]

    def has_images(self, method: str, setting: str) -> bool:
        """Whether there are images of a method in a setting."""
        return method in RENDERED_ANCHORS or self.store.has(method, setting)

    def images(self, method: str, setting: str) -> np.ndarray:
        """Images (Q, samples, H, W, C) of a method: stored samples, or a rendered anchor."""
        if method not in RENDERED_ANCHORS:
            return self.store.read(method, setting)
        cases, samples = self.cases(setting), self.config.samples
        images = []
        for i, case in enumerate(cases):
            if method == "copy_paste":
                own = [case.references[0][0]] * samples
            elif method == "oracle":
                own = [self.world.oracle(case, k) for k in range(samples)]
            else:
                other = next_group(cases, i)
                own = [self.world.impostor(case, other, k) for k in range(samples)]
            images.append(np.stack(own))
        return np.stack(images)

    def style(self, method: str) -> str:
        """The backbone style of a method, `none` for rendered anchors."""
        for name in sorted(self.config.arms, key=len, reverse=True):
            if method == name or method.startswith(f"{name}_"):
                return self.network(self.config.arms[name].network).style
        if method in RENDERED_ANCHORS:
            return "none"
        return self.network(self.config.arms[self.config.baseline].network).style

    def _claim(self) -> None:
        """Writes the config into a new workdir, or checks it against the stored one."""
        file, config = self.workdir / "compare.json", to_dict(self.config)
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
        config, before = ({**each, "notes": None} for each in (config, before))
        if changed := changed_keys(before, config):
            raise UvitError(
                f"workdir {self.workdir} belongs to another comparison; it differs in "
                f"{', '.join(changed)}. Nothing was changed; give another --workdir"
            )
