"""Runs a comparison: trains, tunes, asks and judges what is missing, and writes the page.

Its workdir holds `compare.json` (the config), `networks/NAME` (each the ordinary workdir of a
training run), `tuning/ARM`, `pictures/METHOD/SETTING.npz`, and from these `results.csv`,
`manifest.json`, `tables.md` and `report.html`, which are written anew at the end. Killed anywhere,
it goes on from there.
"""

import dataclasses
import functools
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uvit_jax.comparison import tables
from uvit_jax.comparison.arms import Finetuned, InContext
from uvit_jax.comparison.config import Asked, CompareConfig
from uvit_jax.comparison.judging import make_judge, score
from uvit_jax.comparison.networks import Network, check_compute
from uvit_jax.comparison.questions import Question, World, groups, next_group, open_world
from uvit_jax.comparison.store import Store
from uvit_jax.config import to_dict
from uvit_jax.errors import UvitError, nearest
from uvit_jax.evaluation.report_page import page
from uvit_jax.evaluation.results import Manifest, Method, Row, text
from uvit_jax.models.cost import forward_cost
from uvit_jax.training.checkpoint import checkpoints
from uvit_jax.training.config import changed_keys, parse_run
from uvit_jax.training.finetune import FinetuneConfig, Finetuner
from uvit_jax.training.loop import train
from uvit_jax.training.subjects import stacked
from uvit_jax.training.tuning import fixed_step, tune
from uvit_jax.training.workdir import Workdir, write_text


class Comparison:
    """A comparison in a workdir.

    Args:
      only: the arms to run, empty for all; the others' results are shown where they are there.

    Raises:
      UvitError: if the workdir is another comparison's, or an arm is unknown. Nothing was
        overwritten then.
    """

    def __init__(self, config: CompareConfig, workdir: Path, only: Sequence[str] = ()):
        self.config, self.workdir = config, workdir
        if unknown := [name for name in only if name not in config.arms]:
            raise UvitError(f"there is no arm {unknown[0]!r}{nearest(unknown[0], config.arms)}")
        self.chosen = [name for name in config.arms if not only or name in only]
        self.runs = {
            name: None if "load" in given else parse_run(given)
            for name, given in config.networks.items()
        }
        for name, run in self.runs.items():
            if run is not None:
                Workdir(self._folder(name)).check(_plain(run))
        self._claim()
        self.store = Store(workdir / "pictures")
        self._networks: dict[str, Network] = {}
        self._finetuned: dict[tuple, Finetuned] = {}

    def __call__(self) -> dict[str, Any] | None:
        """Runs what is missing and prints a line a piece; None if it was asked to stop.

        Raises:
          UvitError: if networks were not trained with equal compute, or what is kept is damaged.
        """
        for name in dict.fromkeys(self.config.arms[arm].network for arm in self.chosen):
            if not self._train(name):
                return None
        trained = [name for name, run in self.runs.items() if run and self._ready(name)]
        if trained:
            check_compute([self._network(name) for name in trained], self.config.tolerance)
        for name in self.chosen:
            arm = self.config.arms[name]
            if arm.method == "context":
                self._answer_in_context(name)
            else:
                self._answer_finetuned(name)
            jax.clear_caches()
        return self.write()

    @functools.cached_property
    def world(self) -> World:
        """What is asked about, at the networks' size."""
        sizes = set()
        for name in self.runs:
            if self._ready(name):
                layout = self._network(name).model.layout
                sizes.add(next(s.shape[0] for s in layout.noisy if s.modality == "image"))
        if len(sizes) != 1:
            raise UvitError(f"the networks' pictures must be of one size, got {sorted(sizes)}")
        return open_world(self.config, sizes.pop())

    @functools.cached_property
    def judge(self) -> Any:
        """Who judges."""
        return make_judge(self.config, self.world)

    @functools.cache  # noqa: B019 - one comparison a process
    def questions(self, setting: str) -> list[Question]:
        """The questions of a setting."""
        return self.world.questions(setting, self.config.settings[setting])

    # Training and answering.

    def _train(self, name: str) -> bool:
        run = self.runs[name]
        if run is None or self._ready(name):
            return True
        if train(run, _plain(run), self._folder(name)).stopped:
            print(f"network {name}: stopped and saved; the same command goes on from there")
            return False
        jax.clear_caches()
        return True

    def _answer_in_context(self, name: str) -> None:
        arm = self.config.arms[name]
        network = self._network(arm.network)
        drawn = {"own": name}
        if name == self.config.baseline:
            drawn |= {"none": "text_only", "others": "shuffled_references"}
        before = _fingerprint(network.params)
        for references, method in drawn.items():
            answers = InContext(network, self.config, references)
            for setting in self.config.settings:
                if not self.store.has(method, setting):
                    began = time.perf_counter()
                    self.store.write(method, setting, answers(self.questions(setting)))
                    self._told(method, setting, began)
            if references == "own" and not self.store.noted(f"costs/{name}"):
                self._cost_in_context(name, answers)
        if _fingerprint(network.params) != before:
            raise UvitError(f"network {network.name} was changed by answering, which is a bug")

    def _cost_in_context(self, name: str, answers: InContext) -> None:
        """Times pictures of the main setting with the references' cache and without, in pairs."""
        network, asked = answers.network, self.questions(self.config.main)
        size = self.config.batch_size
        rows = [asked[i % len(asked)] for i in range(size)]
        S, V = len(rows[0].names), rows[0].views
        seeds = np.array([q.seed for q in rows], np.uint32)
        conditions = network.asked(rows)
        cached, uncached = (answers.drawer(S, V, how) for how in ("when_exact", "never"))
        marks = []
        for draw in (cached, uncached):
            draw(network.params, seeds, conditions)
            marks.append(len(draw.seconds))
        for _ in range(3):
            for draw in (cached, uncached):
                draw(network.params, seeds, conditions)
        model = network.model_for(S, V)
        self.store.note(
            f"costs/{name}",
            {
                "parameters": network.model.num_params,
                "image_seconds": cached.seconds[marks[0] :],
                "uncached_seconds": uncached.seconds[marks[1] :],
                "compile_seconds": cached.compile_seconds,
                "image_flops": network.image_flops(model),
                "memory_bytes": cached.memory_bytes,
            },
        )

    def _answer_finetuned(self, name: str) -> None:
        config, arm = self.config, self.config.arms[name]
        lora = arm.method == "lora"
        settings = [s for s in config.settings if lora or s in config.full_settings]
        missing = [s for s in settings if not self._answered(name, s)]
        if not missing:
            return
        answers = self._finetuner(name)
        for setting in missing:
            asked = self.questions(setting)
            began = time.perf_counter()
            if setting == config.main:
                self._answer_main(name, answers, asked)
            else:
                several = lora and len(asked[0].names) > 1
                variants = self._variants(name) if several else {name: ""}
                for method, compose in variants.items():
                    if not self.store.has(method, setting):
                        self.store.write(method, setting, answers(asked, compose))
            self._told(name, setting, began)

    def _answer_main(self, name: str, answers: Finetuned, asked: list[Question]) -> None:
        """The main setting, with the way there: pictures after fewer and more steps, and what is
        then drawn of nobody in particular."""
        lora = self.config.arms[name].method == "lora"
        steps = self.config.grid.steps if lora else ()
        answers.seconds.clear()
        trained = answers.trained(asked, steps=steps)
        by_group, nobody = groups(asked), groups(self._nobody(asked))
        chosen = answers.recipe.steps
        for step in steps:
            self.store.write(
                f"{name}@{step}", self.config.main, answers.draw(trained[step], by_group)
            )
            self.store.write(
                f"{name}@{step}~nobody", self.config.main, answers.draw(trained[step], nobody)
            )
        if lora:
            untrained = jax.tree.map(np.zeros_like, trained[chosen])
            found = answers.draw(untrained, nobody)
            self.store.write(f"{name}@0~nobody", self.config.main, found)
        each = len(by_group[0]) * self.config.samples
        draw = answers.drawer(trained[chosen], each)
        mark = len(draw.seconds)
        found = answers.draw(trained[chosen], by_group)
        self.store.note(
            f"costs/{name}",
            {
                "parameters": answers.network.model.num_params,
                "finetune_seconds": answers.seconds,
                "image_seconds": [s / each for s in draw.seconds[mark:]],
                "compile_seconds": draw.compile_seconds,
                "finetune_flops": answers.finetune_flops,
                "image_flops": answers.network.image_flops(answers.network.model),
                "memory_bytes": draw.memory_bytes,
                "subject_bytes": answers.subject_bytes,
                "recipe": json.loads(json.dumps(dataclasses.asdict(answers.recipe))),
            },
        )
        self.store.write(name, self.config.main, found)

    def _finetuner(self, name: str) -> Finetuned:
        arm = self.config.arms[name]
        network = self._network(arm.network)
        base = self.config.finetune if arm.method == "lora" else self.config.full
        recipe = dataclasses.replace(base, method=arm.method, seed=self.config.seed)
        found = Finetuned(network, arm, self.config, self.world, recipe)
        if arm.method == "lora":
            found.recipe = self._tuned(name, found)
        return found

    def _tuned(self, name: str, answers: Finetuned) -> FinetuneConfig:
        """The recipe with rank, rate and steps that did best on validation subjects."""
        config, network = self.config, answers.network
        asked = self.world.questions("validation", Asked(subjects=config.validation))
        by_group = groups(asked)
        subjects = {f"validation {i}": answers.examples(p[0], 0) for i, p in enumerate(by_group)}
        prior, prior_of = answers.prior([part[0].kinds[0] for part in by_group])

        def judged(tuner: Finetuner, trained: Any) -> np.ndarray:
            found = self._drawn_by(answers, tuner, trained, by_group)
            repeated = [q for q in asked for _ in range(config.samples)]
            scores = score(self.judge, self.judge(repeated, found.reshape(-1, *found.shape[2:])))
            return scores.reshape(len(by_group), -1).mean(axis=1)

        began = time.perf_counter()
        rows = tune(
            network.model,
            network.run.diffusion,
            network.params,
            stacked(subjects),
            config.grid,
            judged,
            folder=self.workdir / "tuning" / name,
            config=answers.recipe,
            prior=prior,
            prior_of=prior_of,
        )
        choice = fixed_step(rows)
        step = next(iter(choice.steps.values()))
        print(
            f"arm {name}: rank {choice.rank}, rate {choice.rate:g}, {step} steps, by "
            f"{config.validation} validation subjects ({time.perf_counter() - began:.0f} s)",
            flush=True,
        )
        lora = dataclasses.replace(answers.recipe.lora, rank=choice.rank)
        return dataclasses.replace(answers.recipe, lora=lora, learning_rate=choice.rate, steps=step)

    def _drawn_by(self, answers: Finetuned, tuner: Finetuner, trained: Any, by_group) -> np.ndarray:
        """Pictures by what a tuner has trained, whose rank the recipe may not have."""
        key = answers.network.name, tuner.config.lora.rank
        if key not in self._finetuned:
            self._finetuned[key] = Finetuned(
                answers.network, answers.arm, self.config, self.world, tuner.config
            )
        return self._finetuned[key].draw(trained, by_group)

    def _nobody(self, asked: Sequence[Question]) -> list[Question]:
        """The same questions about nobody in particular, for what the class has become."""
        word = self.config.word
        return [dataclasses.replace(q, prompt=q.prompt.replace("@1", word)) for q in asked]

    # Judging and writing.

    def write(self) -> dict[str, Any]:
        """Judges all pictures there are and writes the table, the manifest and the page."""
        answers = {
            (method, setting): self._answers(method, setting)
            for setting in self.config.settings
            for method in self._methods()
            if self._answered(method, setting)
        }
        rows = self.rows(answers)
        manifest = self._manifest(rows)
        settings = {name: self.questions(name) for name in self.config.settings}
        pictures = tables.grids(settings, answers, manifest.methods)
        write_text(self.workdir / "results.csv", text(rows))
        manifest.write(self.workdir / "manifest.json")
        write_text(self.workdir / "tables.md", tables.markdown(rows, manifest))
        write_text(self.workdir / "report.html", page(rows, manifest, pictures))
        return {
            "rows": len(rows),
            "methods": list(manifest.methods),
            "report": str(self.workdir / "report.html"),
        }

    def rows(self, answers: Mapping[tuple[str, str], np.ndarray]) -> list[Row]:
        """All rows of what has been answered, by method and setting, anchors included."""
        found: list[Row] = []
        main = self.config.main
        for (method, setting), pictures in answers.items():
            asked, style = self.questions(setting), self._style(method)
            found += tables.rows_of(method, style, asked, pictures, self.judge, main=main)
            found += tables.diversity_rows(method, style, asked, pictures, main)
        for name, arm in self.config.arms.items():
            if arm.method == "lora" and self._answered(name, main):
                found += self._curve_rows(name)
        return found

    def _curve_rows(self, name: str) -> list[Row]:
        """The way of a LoRA arm: after how many steps what, and at best."""
        main, style = self.config.main, self._style(name)
        asked, found = self.questions(main), []
        by_step = {}
        for step in self.config.grid.steps:
            answers = self.store.read(f"{name}@{step}", main)
            by_step[step] = answers
            found += tables.rows_of(
                name, style, asked, answers, self.judge, main=main, setting=f"lora_step={step}"
            )
        own = [metric for metric in self.judge.metrics if metric.startswith("identity")][:1]
        text_ = [m for m, about in self.judge.metrics.items() if about.role == "text"][:1]
        for step in (0, *self.config.grid.steps):
            rows = tables.rows_of(
                name,
                style,
                self._nobody(asked),
                self.store.read(f"{name}@{step}~nobody", main),
                self.judge,
                main=main,
                setting=f"forgetting={step}",
            )
            found += [dataclasses.replace(r, metric="pres") for r in rows if r.metric in own]
            found += [r for r in rows if r.metric in text_]
        repeats = self.config.samples
        repeated = [q for q in asked for _ in range(repeats)]
        scores = {
            step: score(self.judge, self.judge(repeated, a.reshape(-1, *a.shape[2:]))).reshape(
                len(asked), repeats
            )
            for step, a in by_step.items()
        }
        best = np.zeros_like(answers)
        for group in {q.group for q in asked}:
            rows_of_group = [i for i, q in enumerate(asked) if q.group == group]
            step = max(scores, key=lambda s, r=rows_of_group: scores[s][r].mean())
            best[rows_of_group] = by_step[step][rows_of_group]
        found += tables.rows_of(f"{name}_best", style, asked, best, self.judge, main=main)
        return found

    def _manifest(self, rows: Sequence[Row]) -> Manifest:
        config = self.config
        present = {row.method for row in rows}
        methods = {}
        for name, arm in config.arms.items():
            costs = dict(self.store.noted(f"costs/{name}") or {})
            costs.pop("recipe", None)
            costs = {k: tuple(v) if isinstance(v, list) else v for k, v in costs.items()}
            for method, compose in self._variants(name).items():
                methods[method] = Method(title=f"{arm.title}, {compose}")
            methods[name] = Method(title=arm.title, **costs)
            best = f"{arm.title}, each subject's best step (an oracle's choice)"
            methods[f"{name}_best"] = Method(title=best, anchor=True)
        methods |= {n: Method(title=t, anchor=True) for n, t in tables.ANCHORS.items()}
        metrics = {**self.judge.metrics, "diversity": tables.DIVERSITY, "pres": tables.PRES}
        used = {row.metric for row in rows}
        return Manifest(
            title=config.title,
            commit=_commit(),
            config={
                "comparison": to_dict(config),
                "training": {
                    name: {
                        "flops": self._network(name).train_flops,
                        "parameters": self._network(name).model.num_params,
                        "forward_macs": forward_cost(self._network(name).run.model).total,
                    }
                    for name in self.runs
                    if self._ready(name)
                },
                "recipes": {
                    name: found["recipe"]
                    for name in config.arms
                    if (found := self.store.noted(f"costs/{name}")) and "recipe" in found
                },
            },
            hardware=f"{jax.device_count()} {jax.devices()[0].device_kind} device",
            timing="wall seconds without compilation: an image in batches of "
            f"{config.batch_size}, cached and uncached in turn; fine-tuning by the subject, "
            f"{config.at_once} at once",
            methods={n: m for n, m in methods.items() if n in present},
            metrics={n: m for n, m in metrics.items() if n in used},
            baseline=config.baseline if config.baseline in present else next(iter(methods)),
            notes=config.notes,
        )

    def _methods(self) -> list[str]:
        found = [method for name in self.config.arms for method in self._variants(name)]
        return [*found, *tables.ANCHORS]

    def _variants(self, name: str) -> dict[str, str]:
        """An arm's methods by how they compose several subjects: its own, and those beside it."""
        first, *others = self.config.arms[name].compose
        return {name: first} | {f"{name}_{compose}": compose for compose in others}

    def _answered(self, method: str, setting: str) -> bool:
        return method in _MADE or self.store.has(method, setting)

    def _answers(self, method: str, setting: str) -> np.ndarray:
        if method not in _MADE:
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

    def _style(self, method: str) -> str:
        for name in sorted(self.config.arms, key=len, reverse=True):
            if method == name or method.startswith(f"{name}_"):
                return self._network(self.config.arms[name].network).style
        if method in _MADE:
            return "none"
        return self._network(self.config.arms[self.config.baseline].network).style

    def _network(self, name: str) -> Network:
        if name not in self._networks:
            self._networks[name] = Network(name, self._folder(name), self.runs[name])
        return self._networks[name]

    def _folder(self, name: str) -> Path:
        load = self.config.networks[name].get("load")
        return Path(load).expanduser() if load else self.workdir / "networks" / name

    def _ready(self, name: str) -> bool:
        run = self.runs[name]
        return run is None or max(checkpoints(self._folder(name)), default=0) >= run.train.steps

    def _claim(self) -> None:
        """Writes the config into a new workdir, or checks that it is the same."""
        file, asked = self.workdir / "compare.json", to_dict(self.config)
        asked = json.loads(json.dumps(asked))
        asked.pop("notes")
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
        if changed := changed_keys(before, asked):
            raise UvitError(
                f"workdir {self.workdir} belongs to another comparison; it differs in "
                f"{', '.join(changed)}. Nothing was changed; give another --workdir"
            )

    def _told(self, method: str, setting: str, began: float) -> None:
        print(f"{method}, {setting}: {time.perf_counter() - began:.0f} s", flush=True)


_MADE = ("oracle", "copy_paste", "random_identity")
"""Anchors that no network draws."""


def _plain(run: Any) -> dict[str, Any]:
    return json.loads(json.dumps(to_dict(run)))


def _fingerprint(params: Any) -> float:
    return float(sum(np.abs(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(params)))


def _commit() -> str:
    """The code's commit, "unknown" outside of a checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
