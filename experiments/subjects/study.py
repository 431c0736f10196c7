"""Runs a comparison: trains, tunes, samples, scores and reports.

An interrupted run resumes from its workdir (see workspace.py).
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.subjects.evaluation_cases import EvaluationCase, class_cases, grouped
from experiments.subjects.methods import Finetuned, InContext
from experiments.subjects.networks import check_compute
from experiments.subjects.report import write
from experiments.subjects.scoring import score_images, tuning_objective
from experiments.subjects.study_config import CompareConfig, SettingConfig
from experiments.subjects.tuning import best_setting, tune
from experiments.subjects.workspace import Workspace
from uvit_jax.errors import UvitError, nearest
from uvit_jax.training.examples import stacked
from uvit_jax.training.finetune import FinetuneConfig, Finetuner
from uvit_jax.training.loop import train


class Comparison:
    """A comparison in a workdir.

    Args:
      only: the methods to run, empty for all; the report includes earlier results of the others.

    Attributes:
      space: its workdir.

    Raises:
      UvitError: if the workdir belongs to another comparison (nothing is overwritten), or a method
        is unknown.
    """

    def __init__(self, config: CompareConfig, workdir: Path, only: Sequence[str] = ()):
        if unknown := [name for name in only if name not in config.arms]:
            raise UvitError(f"arms has no {unknown[0]!r}{nearest(unknown[0], config.arms)}")
        self.space = Workspace(config, workdir)
        self.config, self.store = config, self.space.store
        self.chosen = [name for name in config.arms if not only or name in only]
        self._finetuned: dict[tuple, Finetuned] = {}

    def __call__(self) -> dict[str, Any] | None:
        """Runs what is missing; prints a line per step. None if it was stopped by a signal.

        Raises:
          UvitError: if networks were not trained with equal compute, or a file is damaged.
        """
        for name in dict.fromkeys(self.config.arms[method].network for method in self.chosen):
            if not self._train(name):
                return None
        trained = [name for name, run in self.space.runs.items() if run and self.space.ready(name)]
        if trained:
            check_compute([self.space.network(name) for name in trained], self.config.tolerance)
        for name in self.chosen:
            if self.config.arms[name].method == "context":
                self._sample_in_context(name)
            else:
                self._sample_finetuned(name)
            jax.clear_caches()
        return write(self.space)

    def _train(self, name: str) -> bool:
        run = self.space.runs[name]
        if run is None or self.space.ready(name):
            return True
        if train(run, self.space.folder(name)).stopped:
            print(f"network {name}: stopped and saved; rerun the command to resume")
            return False
        jax.clear_caches()
        return True

    def _sample_in_context(self, name: str) -> None:
        network = self.space.network(self.config.arms[name].network)
        reported = {"own": name}
        if name == self.config.baseline:
            reported |= {"none": "text_only", "others": "shuffled_references"}
        before = _fingerprint(network.params)
        for references, title in reported.items():
            method = InContext(network, self.config, references)
            for setting in self._settings(name):
                if not self.store.has(title, setting):
                    began = time.perf_counter()
                    self.store.write(title, setting, method(self.space.cases(setting)))
                    _print_seconds(title, setting, began)
            if references == "own" and not self.store.noted(f"costs/{name}"):
                self._time_in_context(name, method)
        if _fingerprint(network.params) != before:
            raise UvitError(f"network {network.name} was modified by sampling, which is a bug")

    def _time_in_context(self, name: str, method: InContext) -> None:
        """Times sampling of the main setting with cached references and without, alternately."""
        network, cases = method.network, self.space.cases(self.config.main)
        size = self.config.batch_size
        rows = [cases[i % len(cases)] for i in range(size)]
        S, V = len(rows[0].names), rows[0].views
        seeds = np.array([q.seed for q in rows], np.uint32)
        conditions = network.case_conditions(rows)
        cached, uncached = (method.sampler(S, V, how) for how in ("when_exact", "never"))
        marks = []
        for sample in (cached, uncached):
            sample(network.params, seeds, conditions)
            marks.append(len(sample.seconds))
        for _ in range(3):
            for sample in (cached, uncached):
                sample(network.params, seeds, conditions)
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

    def _sample_finetuned(self, name: str) -> None:
        missing = [s for s in self._settings(name) if not self.space.has_images(name, s)]
        if not missing:
            return
        method = self._finetuner(name)
        for setting in missing:
            cases = self.space.cases(setting)
            began = time.perf_counter()
            if setting == self.config.main:
                self._sample_main(name, method, cases)
            else:
                several = self.config.arms[name].method == "lora" and len(cases[0].names) > 1
                variants = self.space.variants(name) if several else {name: ""}
                # The method itself comes last: its file marks the setting as complete.
                for variant, compose in reversed(variants.items()):
                    if not self.store.has(variant, setting):
                        self.store.write(variant, setting, method(cases, compose))
            _print_seconds(name, setting, began)

    def _sample_main(self, name: str, method: Finetuned, cases: list[EvaluationCase]) -> None:
        """Samples the main setting; for LoRA also after other numbers of steps, and with the class
        word in place of the subject."""
        lora = self.config.arms[name].method == "lora"
        steps = self.space.grid(name).steps if lora else ()
        method.seconds.clear()
        trained = method.trained(cases, steps=steps)
        by_group, of_class = grouped(cases), grouped(class_cases(cases, self.config.word))
        chosen = method.recipe.steps
        for step in steps:
            self.store.write(
                f"{name}@{step}", self.config.main, method.sample(trained[step], by_group)
            )
            self.store.write(
                f"{name}@{step}~nobody",
                self.config.main,
                method.sample(trained[step], of_class),
            )
        if lora:
            untrained = jax.tree.map(np.zeros_like, trained[chosen])
            found = method.sample(untrained, of_class)
            self.store.write(f"{name}@0~nobody", self.config.main, found)
        each = len(by_group[0]) * self.config.samples
        sampler = method.sampler(trained[chosen], each)
        mark = len(sampler.seconds)
        found = method.sample(trained[chosen], by_group)
        self.store.note(
            f"costs/{name}",
            {
                "parameters": method.network.model.num_params,
                "finetune_seconds": method.seconds,
                "image_seconds": [s / each for s in sampler.seconds[mark:]],
                "compile_seconds": sampler.compile_seconds,
                "finetune_flops": method.finetune_flops,
                "image_flops": method.network.image_flops(method.network.model),
                "memory_bytes": sampler.memory_bytes,
                "subject_bytes": method.subject_bytes,
                "recipe": json.loads(json.dumps(dataclasses.asdict(method.recipe))),
            },
        )
        self.store.write(name, self.config.main, found)

    def _settings(self, name: str) -> list[str]:
        """The settings that a method is evaluated in."""
        own = self.config.arms[name].settings
        return [setting for setting in self.config.settings if not own or setting in own]

    def _finetuner(self, name: str) -> Finetuned:
        config = self.config.arms[name]
        network = self.space.network(config.network)
        recipe = dataclasses.replace(
            self.config.finetune, method=config.method, seed=self.config.seed
        )
        method = Finetuned(network, config, self.config, self.space.world, recipe)
        method.recipe = self._tuned(name, method)
        return method

    def _tuned(self, name: str, method: Finetuned) -> FinetuneConfig:
        """The recipe with rank, rate and steps tuned on validation subjects."""
        config, network = self.config, method.network
        cases = self.space.world.cases("validation", SettingConfig(subjects=config.validation))
        by_group, scorer = grouped(cases), self.space.scorer
        subjects = {f"validation {i}": method.examples(p[0], 0) for i, p in enumerate(by_group)}
        prior, prior_of = method.prior([part[0].kinds[0] for part in by_group])

        def score(tuner: Finetuner, trained: Any) -> np.ndarray:
            images = self._sample_tuned(method, tuner, trained, by_group)
            scores = tuning_objective(scorer, score_images(scorer, cases, images))
            return scores.reshape(len(by_group), -1).mean(axis=1)

        began = time.perf_counter()
        rows = tune(
            network.model,
            network.run.diffusion,
            network.params,
            stacked(subjects),
            self.space.grid(name),
            score,
            folder=self.space.workdir / "tuning" / name,
            config=method.recipe,
            prior=prior,
            prior_of=prior_of,
        )
        best = best_setting(rows)
        print(
            f"{name}: rank {best.rank}, rate {best.rate:g}, {best.step} steps, tuned on "
            f"{config.validation} validation subjects ({time.perf_counter() - began:.0f} s)",
            flush=True,
        )
        lora = dataclasses.replace(method.recipe.lora, rank=best.rank)
        return dataclasses.replace(
            method.recipe, lora=lora, learning_rate=best.rate, steps=best.step
        )

    def _sample_tuned(
        self, method: Finetuned, tuner: Finetuner, trained: Any, by_group
    ) -> np.ndarray:
        """Samples with what a tuner has trained, whose rank may differ from the recipe's."""
        key = method.network.name, tuner.config.method, tuner.config.lora.rank
        if key not in self._finetuned:
            self._finetuned[key] = Finetuned(
                method.network, method.method, self.config, self.space.world, tuner.config
            )
        return self._finetuned[key].sample(trained, by_group)


def _print_seconds(method: str, setting: str, began: float) -> None:
    print(f"{method}, {setting}: {time.perf_counter() - began:.0f} s", flush=True)


def _fingerprint(params: Any) -> float:
    return float(sum(np.abs(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(params)))
