"""Runs a comparison: trains, tunes, samples, scores and reports.

An interrupted run resumes from its workdir (see workspace.py).
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import uvit_jax
from experiments.subjects.evaluation_cases import EvaluationCase, class_cases, grouped
from experiments.subjects.methods import Finetuned, InContext
from experiments.subjects.networks import BatchedSampler, TrainedNetwork, check_compute
from experiments.subjects.report import write
from experiments.subjects.report_summary import NAME_EFFECT
from experiments.subjects.scoring import gated_objective, score_images, tuning_objective
from experiments.subjects.study_config import CompareConfig, SettingConfig
from experiments.subjects.tuning import best_setting, tune
from experiments.subjects.workspace import Workspace
from uvit_jax.errors import UvitError, nearest
from uvit_jax.interop.exporting import export
from uvit_jax.training.examples import stacked
from uvit_jax.training.finetune import Finetuner
from uvit_jax.training.loop import train
from uvit_jax.training.workdir import Workdir

ROUNDS = 3
"""How often every method is timed, in turn."""


class Comparison:
    """A comparison in a workdir.

    Args:
      only: the methods to run, empty for all; the report includes earlier results of the others.
      networks: see `Workspace`.

    Attributes:
      space: its workdir.

    Raises:
      UvitError: if the workdir belongs to another comparison (nothing is overwritten), or a method
        is unknown.
    """

    def __init__(
        self,
        config: CompareConfig,
        workdir: Path,
        only: Sequence[str] = (),
        networks: Mapping[str, Path] | None = None,
    ):
        if unknown := [name for name in only if name not in config.arms]:
            raise UvitError(f"arms has no {unknown[0]!r}{nearest(unknown[0], config.arms)}")
        self.space, self.config = Workspace(config, workdir, networks), config
        self.chosen = [name for name in config.arms if not only or name in only]

    def __call__(self) -> dict[str, Any] | None:
        """Runs what is missing; prints a line per step. None if it was stopped by a signal.

        Raises:
          UvitError: if networks were not trained with equal compute, or a file is damaged.
        """
        for seed in self.config.seeds:
            arms = [name for name in self.chosen if seed in self.config.seeds_of(name)]
            for name in dict.fromkeys(self.config.arms[arm].network for arm in arms):
                if not self._train(name, seed):
                    return None
            trained = [n for n, run in self.space.runs.items() if run and self.space.ready(n, seed)]
            if trained:
                check_compute(
                    [self.space.network(name, seed) for name in trained], self.config.tolerance
                )
            for name in arms:
                network = self.config.arms[name].network
                if not self.space.ready(network, seed):
                    print(f"{name}: left out, there is no network {network}_s{seed}", flush=True)
                elif self.config.arms[name].method == "context":
                    self._sample_in_context(name, seed)
                else:
                    self._sample_finetuned(name, seed)
                jax.clear_caches()
        self._time()
        return write(self.space)

    def _train(self, name: str, seed: int) -> bool:
        if self.space.ready(name, seed) or self.space.given is not None:
            return True
        run, folder = self.space.run(name, seed), self.space.folder(name, seed)
        if max(Workdir(folder).steps, default=0) < run.train.steps and train(run, folder).stopped:
            print(f"network {name}: stopped and saved; rerun the command to resume")
            return False
        model, params = uvit_jax.load(folder)
        out, vocabulary = self.space.weights(name, seed), Workdir(folder).read_vocabulary()
        export(out, model, params, run=run, vocabulary=vocabulary, dtype="bfloat16")
        jax.clear_caches()
        return True

    def _sample_in_context(self, name: str, seed: int) -> None:
        store, network = self.space.store(seed), self.space.network(self._network(name), seed)
        guidance = self._recipe(name)["guidance"]
        reported = {"own": name}
        if name == self.config.baseline and seed == self.config.seeds[0]:
            reported |= {"none": "text_only", "others": "shuffled_references"}
        before = _fingerprint(network.params)
        for references, title in reported.items():
            method = self._in_context(name, network, references, guidance)
            for setting in self._settings(name):
                if references != "own" and setting not in self._central():
                    continue
                cases = self.space.cases(setting)
                if not store.has(title, setting):
                    began = time.perf_counter()
                    store.write(title, setting, method(cases))
                    _print_seconds(title, setting, seed, began)
                note = f"preferred/s{seed}/{title}/{setting}"
                if (
                    method.references == "own"
                    and len(cases[0].names) > 1
                    and not self.space.notes.noted(note)
                ):
                    found = method.preferred(cases, self._truth(cases))
                    self.space.notes.note(note, {"preferred": found.tolist()})
        if _fingerprint(network.params) != before:
            raise UvitError(f"network {network.name} was modified by sampling, which is a bug")

    def _sample_finetuned(self, name: str, seed: int) -> None:
        store = self.space.store(seed)
        missing = [s for s in self._settings(name) if not store.has(name, s)]
        if not missing:
            return
        method = self._finetuned(name, seed)
        for setting in missing:
            cases, began = self.space.cases(setting, name), time.perf_counter()
            if setting == self.config.main:
                self._sample_main(name, seed, method, cases)
            else:
                several = len(cases[0].names) > 1
                variants = self.space.variants(name) if several else {name: ""}
                # The method itself comes last: its file marks the setting as complete.
                for variant, compose in reversed(variants.items()):
                    if not store.has(variant, setting):
                        trained = method.trained(cases, compose)[method.recipe.steps]
                        if several:
                            found = method.preferred(trained, grouped(cases), self._truth(cases))
                            note = f"preferred/s{seed}/{variant}/{setting}"
                            self.space.notes.note(note, {"preferred": found.tolist()})
                        store.write(variant, setting, method.sample(trained, grouped(cases)))
            _print_seconds(name, setting, seed, began)

    def _sample_main(
        self, name: str, seed: int, method: Finetuned, cases: list[EvaluationCase]
    ) -> None:
        """Samples the main setting, and what its gates need: the same with the class word in place
        of the subject, and the references again. With the first seed also after other steps."""
        store, main, chosen = self.space.store(seed), self.config.main, method.recipe.steps
        steps = self.space.grid(name).steps if seed == self.space.available(name)[0] else ()
        method.seconds.clear()
        trained = method.trained(cases, steps=steps)
        by_group = grouped(cases)
        nobody = grouped(class_cases(cases, self.config.word))
        for step in steps:
            store.write(f"{name}@{step}", main, method.sample(trained[step], by_group))
            store.write(f"{name}@{step}~nobody", main, method.sample(trained[step], nobody))
        store.write(f"{name}~nobody", main, method.sample(trained[chosen], nobody))
        if self.space.has_portraits:
            again = [self.space.world.portraits(part[0]) for part in by_group]
            store.write(f"{name}~portraits", main, method.sample(trained[chosen], again))
        self.space.notes.note(
            f"finetuning/s{seed}/{name}",
            {
                "finetune_seconds": method.seconds,
                "finetune_flops": method.finetune_flops,
                "subject_bytes": method.subject_bytes,
                "recipe": json.loads(json.dumps(dataclasses.asdict(method.recipe))),
            },
        )
        store.write(name, main, method.sample(trained[chosen], by_group))

    def _time(self) -> None:
        """Times the sampling of every method on the main setting, one after the other in turn."""
        tuned = {name for name in self.config.arms if self.space.notes.noted(f"recipes/{name}")}
        ready = [name for name in self.config.arms if name in tuned and self.space.available(name)]
        if all(self.space.notes.noted(f"costs/{name}") for name in ready):
            return
        timed: dict[str, tuple[BatchedSampler, tuple, int]] = {}
        facts: dict[str, dict[str, Any]] = {}
        for name in ready:
            network = self.space.network(self._network(name), self.space.available(name)[0])
            cases, size = self.space.cases(self.config.main), self.config.batch_size
            rows = [cases[i % len(cases)] for i in range(size)]
            if self.config.arms[name].method == "context":
                method = self._in_context(name, network, "own", self._recipe(name)["guidance"])
                seeds = np.array([q.seed for q in rows], np.uint32)
                arguments = (network.params, seeds, method.conditions(rows))
                caches = {name: "when_exact", f"{name} uncached": "never"}
                model = network.model_for(*rows[0].slots)
                if method.references == "none":
                    caches = {name: "never"}
                    model = network.model.without_references()
                for key, cache in caches.items():
                    timed[key] = method.sampler(*rows[0].slots, cache), arguments, 1
            else:
                method = self._finetuned(name, self.space.available(name)[0])
                arguments, each = method.timing_arguments(grouped(cases))
                timed[name] = method.sampler(arguments[1], each), arguments, each
                model = network.model
            facts[name] = {
                "parameters": network.model.num_params,
                "train_flops": network.train_flops,
                "image_flops": network.image_flops(model, method.sample_config),
            }
        for sampler, arguments, _ in timed.values():
            sampler(*arguments)
        marks = {key: len(sampler.seconds) for key, (sampler, _, _) in timed.items()}
        for _ in range(ROUNDS):
            for sampler, arguments, _ in timed.values():
                sampler(*arguments)
        seconds = {
            key: [s / each for s in sampler.seconds[marks[key] :]]
            for key, (sampler, _, each) in timed.items()
        }
        for name, found in facts.items():
            sampler = timed[name][0]
            found |= {
                "image_seconds": seconds[name],
                "uncached_seconds": seconds.get(f"{name} uncached", []),
                "compile_seconds": sampler.compile_seconds,
                "memory_bytes": sampler.memory_bytes,
            }
            self.space.notes.note(f"costs/{name}", found)

    def _network(self, name: str) -> str:
        return self.config.arms[name].network

    def _settings(self, name: str) -> list[str]:
        """The settings that a method is evaluated in."""
        own = self.config.arms[name].settings
        return [setting for setting in self.config.settings if not own or setting in own]

    def _central(self) -> set[str]:
        """The main setting and those of the primary comparisons."""
        return {self.config.main, *(one.setting for one in self.config.primary.values())}

    def _in_context(
        self, name: str, network: TrainedNetwork, references: str, guidance: float | None
    ) -> InContext:
        arm, world = self.config.arms[name], self.space.world
        return InContext(network, arm, self.config, world, references, guidance)

    def _truth(self, cases: Sequence[EvaluationCase]) -> np.ndarray:
        return np.stack([self.space.world.truth(case) for case in cases])

    def _finetuned(self, name: str, seed: int, found: Any = None) -> Finetuned:
        """The method with its tuned recipe."""
        found, config = found or self._recipe(name), self.config
        lora = dataclasses.replace(config.finetune.lora, rank=found["rank"])
        recipe = dataclasses.replace(
            config.finetune,
            seed=config.seed,
            lora=lora,
            learning_rate=found["rate"],
            prior_weight=found["prior"],
            steps=found["step"],
        )
        return self._untuned(name, seed, recipe, found["guidance"])

    def _untuned(self, name: str, seed: int, recipe: Any, guidance: float | None) -> Finetuned:
        network = self.space.network(self._network(name), seed)
        arm = self.config.arms[name]
        return Finetuned(network, arm, self.config, self.space.world, recipe, guidance)

    def _recipe(self, name: str) -> dict[str, Any]:
        """What is tuned on validation subjects, with the network of the first seed: the guidance,
        and the grid of a fine-tuned method."""
        note = f"recipes/{name}"
        if found := self.space.notes.noted(note):
            return dict(found)
        began, seed = time.perf_counter(), self.space.available(name)[0]
        validation = SettingConfig(subjects=self.config.validation)
        cases = self.space.world.cases("validation", validation)
        found: dict[str, Any] = {"guidance": None, "tuning_flops": 0.0}
        if self.config.arms[name].method == "context":
            network = self.space.network(self._network(name), seed)
            scales = self.config.guidance if self.config.arms[name].references else ()
            images = {
                scale: lambda scale=scale: self._in_context(name, network, "own", scale)(cases)
                for scale in scales
            }
        else:
            found |= self._tuned(name, seed, cases)
            images = self._guided(name, seed, cases, found)
        scores = {scale: float(self._objective(cases, of()).mean()) for scale, of in images.items()}
        if scores:
            found["guidance"] = max(scores, key=scores.get)
            found["score"] = scores[found["guidance"]]
            found["scores"] = {f"{scale:g}": score for scale, score in scores.items()}
        elif self.config.arms[name].method == "context":
            own = self._in_context(name, network, "own", None)(cases)
            found["score"] = float(self._objective(cases, own).mean())
        self.space.notes.note(note, found)
        print(
            f"{name}: {', '.join(f'{k} {v}' for k, v in found.items() if k != 'scores')}; tuned on "
            f"{self.config.validation} validation subjects ({time.perf_counter() - began:.0f} s)",
            flush=True,
        )
        return found

    def _guided(
        self, name: str, seed: int, cases: list[EvaluationCase], found: dict[str, Any]
    ) -> dict[float, Any]:
        """Functions that sample validation cases with the tuned recipe, by guidance scale."""
        if not self.config.guidance:
            return {}
        method = self._finetuned(name, seed, found)
        trained = method.trained(cases)[method.recipe.steps]
        found["tuning_flops"] += method.finetune_flops * self.config.validation
        return {
            scale: lambda scale=scale: self._untuned(name, seed, method.recipe, scale).sample(
                trained, grouped(cases)
            )
            for scale in self.config.guidance
        }

    def _objective(self, cases: list[EvaluationCase], images: np.ndarray) -> np.ndarray:
        """The objective of tuning, of every image."""
        return tuning_objective(self.space.scorer, score_images(self.space.scorer, cases, images))

    def _tuned(self, name: str, seed: int, cases: list[EvaluationCase]) -> dict[str, Any]:
        """Rank, rate, prior weight and steps tuned on validation subjects, and what that cost."""
        config, grid, by_group = self.config, self.space.grid(name), grouped(cases)
        base = dataclasses.replace(config.finetune, seed=config.seed)
        method = self._untuned(name, seed, base, None)
        network = method.network
        subjects = {f"validation {i}": method.examples(p[0], 0) for i, p in enumerate(by_group)}
        prior = prior_of = None
        if max(grid.priors):
            prior, prior_of = method.prior([part[0].kinds[0] for part in by_group])
        by_rank: dict[int, Finetuned] = {}

        def score(tuner: Finetuner, trained: Any) -> np.ndarray:
            rank = tuner.config.lora.rank
            own = by_rank.setdefault(rank, self._untuned(name, seed, tuner.config, None))
            named, unnamed = (
                score_images(self.space.scorer, given, own.sample(trained, grouped(given)))
                for given in (cases, class_cases(cases, config.word))
            )
            scores = gated_objective(self.space.scorer, named, unnamed, NAME_EFFECT)
            return scores.reshape(len(by_group), -1).mean(axis=1)

        rows = tune(
            network.model,
            network.run.diffusion,
            network.params,
            stacked(subjects),
            grid,
            score,
            folder=self.space.workdir / "tuning" / name,
            config=method.recipe,
            prior=prior,
            prior_of=prior_of,
        )
        best = best_setting(rows)
        runs = len(grid.ranks) * len(grid.rates)
        flops = sum(method.flops(max(grid.steps), weight) for weight in grid.priors)
        return {
            "rank": best.rank,
            "rate": best.rate,
            "prior": best.prior,
            "step": best.step,
            "score": best.score,
            "tuning_flops": runs * flops * len(by_group),
        }


def _print_seconds(method: str, setting: str, seed: int, began: float) -> None:
    seconds = time.perf_counter() - began
    print(f"{method}, seed {seed}, {setting}: {seconds:.0f} s", flush=True)


def _fingerprint(params: Any) -> float:
    return float(sum(np.abs(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(params)))
