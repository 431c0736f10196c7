"""What a comparison has in its workdir: config, networks, questions, pictures.

Its workdir holds `compare.json` (the config), `networks/NAME` (each the ordinary workdir of a
training run), `tuning/ARM` and `pictures/METHOD/SETTING.npz`.
"""

import contextlib
import dataclasses
import functools
import json
from pathlib import Path

import numpy as np

from experiments.subjects import tables
from experiments.subjects.judging import Judge, make_judge
from experiments.subjects.networks import Network
from experiments.subjects.questions import Question, World, next_group, open_world
from experiments.subjects.store import Store
from experiments.subjects.study_config import CompareConfig, parse_compare
from experiments.subjects.tuning import Grid
from uvit_jax.config import to_dict
from uvit_jax.errors import UvitError
from uvit_jax.io import write_text
from uvit_jax.training.run_config import changed_keys, parse_run
from uvit_jax.training.workdir import Workdir

MADE = ("oracle", "copy_paste", "random_identity")
"""Anchors that no network draws."""


class Workspace:
    """A comparison's workdir.

    Attributes:
      runs: by network its run, None where it is loaded. store: the pictures and costs.

    Raises:
      UvitError: if the workdir is another comparison's. Nothing was overwritten then.
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
        self.store = Store(workdir / "pictures")
        self._networks: dict[str, Network] = {}
        self._questions: dict[str, list[Question]] = {}

    @functools.cached_property
    def world(self) -> World:
        """What is asked about, at the networks' size."""
        sizes = set()
        for name in self.runs:
            if self.ready(name):
                layout = self.network(name).model.layout
                sizes.add(next(s.shape[0] for s in layout.noisy if s.modality == "image"))
        if not sizes:
            raise UvitError(f"no network in {self.workdir} is trained to its end yet")
        if len(sizes) != 1:
            raise UvitError(f"the networks' pictures must be of one size, got {sorted(sizes)}")
        return open_world(self.config, sizes.pop())

    @functools.cached_property
    def judge(self) -> Judge:
        """Who judges."""
        return make_judge(self.config, self.world)

    def questions(self, setting: str) -> list[Question]:
        """The questions of a setting."""
        if setting not in self._questions:
            asked = self.config.settings[setting]
            self._questions[setting] = self.world.questions(setting, asked)
        return self._questions[setting]

    def network(self, name: str) -> Network:
        """A network that is `ready`."""
        if name not in self._networks:
            self._networks[name] = Network(name, self.folder(name), self.runs[name])
        return self._networks[name]

    def folder(self, name: str) -> Path:
        """A network's workdir."""
        load = self.config.networks[name].get("load")
        return Path(load).expanduser() if load else self.workdir / "networks" / name

    def ready(self, name: str) -> bool:
        """Whether a network is trained to its end."""
        run = self.runs[name]
        return run is None or max(Workdir(self.folder(name)).steps, default=0) >= run.train.steps

    def grid(self, name: str) -> Grid:
        """What is tried for an arm."""
        arm = self.config.arms[name]
        grid = arm.grid or self.config.grid
        # All parameters have no rank, so one stands for all.
        return dataclasses.replace(grid, ranks=grid.ranks[:1]) if arm.method == "full" else grid

    def variants(self, name: str) -> dict[str, str]:
        """An arm's methods by how they compose several subjects: its own, and those beside it."""
        first, *others = self.config.arms[name].compose
        return {name: first} | {f"{name}_{compose}": compose for compose in others}

    def methods(self) -> list[str]:
        """Of all arms, with the ways they compose several subjects, and the anchors."""
        found = [method for name in self.config.arms for method in self.variants(name)]
        return [*found, *tables.ANCHORS]

    def answered(self, method: str, setting: str) -> bool:
        """Whether a method has answered a setting."""
        return method in MADE or self.store.has(method, setting)

    def answers(self, method: str, setting: str) -> np.ndarray:
        """Its pictures, (Q, samples, H, W, C): kept ones, or an anchor's that no network draws."""
        if method not in MADE:
            return self.store.read(method, setting)
        asked, samples = self.questions(setting), self.config.samples
        found = []
        for i, question in enumerate(asked):
            if method == "copy_paste":
                own = [question.references[0][0]] * samples
            elif method == "oracle":
                own = [self.world.oracle(question, k) for k in range(samples)]
            else:
                other = next_group(asked, i)
                own = [self.world.impostor(question, other, k) for k in range(samples)]
            found.append(np.stack(own))
        return np.stack(found)

    def style(self, method: str) -> str:
        """The backbone of a method, `none` of one without."""
        for name in sorted(self.config.arms, key=len, reverse=True):
            if method == name or method.startswith(f"{name}_"):
                return self.network(self.config.arms[name].network).style
        if method in MADE:
            return "none"
        return self.network(self.config.arms[self.config.baseline].network).style

    def _claim(self) -> None:
        """Writes the config into a new workdir, or checks that it is the same."""
        file, asked = self.workdir / "compare.json", to_dict(self.config)
        if not file.exists():
            others = [p.name for p in self.workdir.glob("*") if p.name not in ("networks",)]
            if others:
                raise UvitError(
                    f"workdir {self.workdir} is not empty and holds no comparison (no "
                    "compare.json); give a new folder with --workdir"
                )
            self.workdir.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(asked, indent=1) + "\n")
            return
        try:
            before = json.loads(file.read_text())
        except ValueError as error:
            raise UvitError(f"{file} is damaged: {error}") from None
        if not isinstance(before, dict):
            raise UvitError(f"{file} is damaged: it is no config")
        with contextlib.suppress(UvitError):  # keys that did not exist yet have their defaults
            before = to_dict(parse_compare(before))
        asked, before = ({**given, "notes": None} for given in (asked, before))
        if changed := changed_keys(before, asked):
            raise UvitError(
                f"workdir {self.workdir} belongs to another comparison; it differs in "
                f"{', '.join(changed)}. Nothing was changed; give another --workdir"
            )
