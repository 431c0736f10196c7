"""Runs a comparison: trains, tunes and asks what is missing, and has the page written.

Killed anywhere, it goes on from what its workdir has (see workspace.py).
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.subjects.arms import Finetuned, InContext
from experiments.subjects.judging import judged, score
from experiments.subjects.networks import check_compute
from experiments.subjects.questions import Question, groups, nobody
from experiments.subjects.study_config import Asked, CompareConfig
from experiments.subjects.tuning import fixed_step, tune
from experiments.subjects.workspace import Workspace
from experiments.subjects.writing import write
from uvit_jax.config import to_dict
from uvit_jax.errors import UvitError, nearest
from uvit_jax.training.examples import stacked
from uvit_jax.training.finetune import FinetuneConfig, Finetuner
from uvit_jax.training.loop import train


class Comparison:
    """A comparison in a workdir.

    Args:
      only: the arms to run, empty for all; the others' results are shown where they are there.

    Attributes:
      space: what there is of it.

    Raises:
      UvitError: if the workdir is another comparison's, or an arm is unknown. Nothing was
        overwritten then.
    """

    def __init__(self, config: CompareConfig, workdir: Path, only: Sequence[str] = ()):
        if unknown := [name for name in only if name not in config.arms]:
            raise UvitError(f"there is no arm {unknown[0]!r}{nearest(unknown[0], config.arms)}")
        self.space = Workspace(config, workdir)
        self.config, self.store = config, self.space.store
        self.chosen = [name for name in config.arms if not only or name in only]
        self._finetuned: dict[tuple, Finetuned] = {}

    def __call__(self) -> dict[str, Any] | None:
        """Runs what is missing and prints a line a piece; None if it was asked to stop.

        Raises:
          UvitError: if networks were not trained with equal compute, or what is kept is damaged.
        """
        for name in dict.fromkeys(self.config.arms[arm].network for arm in self.chosen):
            if not self._train(name):
                return None
        trained = [name for name, run in self.space.runs.items() if run and self.space.ready(name)]
        if trained:
            check_compute([self.space.network(name) for name in trained], self.config.tolerance)
        for name in self.chosen:
            arm = self.config.arms[name]
            if arm.method == "context":
                self._answer_in_context(name)
            else:
                self._answer_finetuned(name)
            jax.clear_caches()
        return write(self.space)

    def _train(self, name: str) -> bool:
        run = self.space.runs[name]
        if run is None or self.space.ready(name):
            return True
        if train(run, to_dict(run), self.space.folder(name)).stopped:
            print(f"network {name}: stopped and saved; the same command goes on from there")
            return False
        jax.clear_caches()
        return True

    def _answer_in_context(self, name: str) -> None:
        arm = self.config.arms[name]
        network = self.space.network(arm.network)
        drawn = {"own": name}
        if name == self.config.baseline:
            drawn |= {"none": "text_only", "others": "shuffled_references"}
        before = _fingerprint(network.params)
        for references, method in drawn.items():
            answers = InContext(network, self.config, references)
            for setting in self._asked(name):
                if not self.store.has(method, setting):
                    began = time.perf_counter()
                    self.store.write(method, setting, answers(self.space.questions(setting)))
                    _told(method, setting, began)
            if references == "own" and not self.store.noted(f"costs/{name}"):
                self._cost_in_context(name, answers)
        if _fingerprint(network.params) != before:
            raise UvitError(f"network {network.name} was changed by answering, which is a bug")

    def _cost_in_context(self, name: str, answers: InContext) -> None:
        """Times pictures of the main setting with the references' cache and without, in pairs."""
        network, asked = answers.network, self.space.questions(self.config.main)
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
        missing = [s for s in self._asked(name) if not self.space.answered(name, s)]
        if not missing:
            return
        answers = self._finetuner(name)
        for setting in missing:
            asked = self.space.questions(setting)
            began = time.perf_counter()
            if setting == config.main:
                self._answer_main(name, answers, asked)
            else:
                several = arm.method == "lora" and len(asked[0].names) > 1
                variants = self.space.variants(name) if several else {name: ""}
                # The own one last: it says that all are there.
                for method, compose in reversed(variants.items()):
                    if not self.store.has(method, setting):
                        self.store.write(method, setting, answers(asked, compose))
            _told(name, setting, began)

    def _answer_main(self, name: str, answers: Finetuned, asked: list[Question]) -> None:
        """The main setting, with the way there: pictures after fewer and more steps, and what is
        then drawn of nobody in particular."""
        lora = self.config.arms[name].method == "lora"
        steps = self.space.grid(name).steps if lora else ()
        answers.seconds.clear()
        trained = answers.trained(asked, steps=steps)
        by_group, unnamed = groups(asked), groups(nobody(asked, self.config.word))
        chosen = answers.recipe.steps
        for step in steps:
            self.store.write(
                f"{name}@{step}", self.config.main, answers.draw(trained[step], by_group)
            )
            self.store.write(
                f"{name}@{step}~nobody",
                self.config.main,
                answers.draw(trained[step], unnamed),
            )
        if lora:
            untrained = jax.tree.map(np.zeros_like, trained[chosen])
            found = answers.draw(untrained, unnamed)
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

    def _asked(self, name: str) -> list[str]:
        """The settings that an arm answers."""
        own = self.config.arms[name].settings
        return [setting for setting in self.config.settings if not own or setting in own]

    def _finetuner(self, name: str) -> Finetuned:
        arm = self.config.arms[name]
        network = self.space.network(arm.network)
        recipe = dataclasses.replace(self.config.finetune, method=arm.method, seed=self.config.seed)
        found = Finetuned(network, arm, self.config, self.space.world, recipe)
        found.recipe = self._tuned(name, found)
        return found

    def _tuned(self, name: str, answers: Finetuned) -> FinetuneConfig:
        """The recipe with rank, rate and steps that did best on validation subjects."""
        config, network = self.config, answers.network
        asked = self.space.world.questions("validation", Asked(subjects=config.validation))
        by_group = groups(asked)
        subjects = {f"validation {i}": answers.examples(p[0], 0) for i, p in enumerate(by_group)}
        prior, prior_of = answers.prior([part[0].kinds[0] for part in by_group])

        def by_judge(tuner: Finetuner, trained: Any) -> np.ndarray:
            found = self._drawn_by(answers, tuner, trained, by_group)
            scores = score(self.space.judge, judged(self.space.judge, asked, found))
            return scores.reshape(len(by_group), -1).mean(axis=1)

        began = time.perf_counter()
        rows = tune(
            network.model,
            network.run.diffusion,
            network.params,
            stacked(subjects),
            self.space.grid(name),
            by_judge,
            folder=self.space.workdir / "tuning" / name,
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
        key = answers.network.name, tuner.config.method, tuner.config.lora.rank
        if key not in self._finetuned:
            self._finetuned[key] = Finetuned(
                answers.network, answers.arm, self.config, self.space.world, tuner.config
            )
        return self._finetuned[key].draw(trained, by_group)


def _told(method: str, setting: str, began: float) -> None:
    print(f"{method}, {setting}: {time.perf_counter() - began:.0f} s", flush=True)


def _fingerprint(params: Any) -> float:
    return float(sum(np.abs(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(params)))
