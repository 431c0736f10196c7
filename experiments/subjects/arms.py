"""How an arm answers: with the references in its sequence, or fine-tuned to them.

    arm = InContext(network, config)
    answers = arm(questions)                 # (Q, samples, H, W, C), the questions of one setting

Every arm starts a picture from the same noise, which follows from the question's seed and the
sample's number alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.subjects.fusion import fuse, input_moments
from experiments.subjects.networks import Batched, Network
from experiments.subjects.questions import Question, World, groups
from experiments.subjects.study_config import ArmConfig, CompareConfig
from uvit_jax.errors import UvitError
from uvit_jax.models import lora
from uvit_jax.models.cost import forward_cost
from uvit_jax.sampling.conditions import nulls_of
from uvit_jax.sampling.sampler import filled
from uvit_jax.training.examples import Examples, Stacked, class_examples, concatenated, stacked
from uvit_jax.training.finetune import FinetuneConfig, Finetuner, Tuned, tree_index

SAMPLE_STRIDE = 1_000_003
"""Between the seeds of two samples of a question."""


def seeds_of(questions: Sequence[Question], samples: int) -> np.ndarray:
    """Seeds uint32 (Q, samples)."""
    first = np.array([q.seed for q in questions], np.uint64)[:, None]
    return (first + np.arange(samples, dtype=np.uint64) * SAMPLE_STRIDE).astype(np.uint32)


class InContext:
    """Answers from the references in the sequence, or, with other `references`, what is left
    without them (`none`) or with those of other subjects (`others`)."""

    def __init__(self, network: Network, config: CompareConfig, references: str = "own"):
        if not network.in_context:
            raise UvitError(f"network {network.name} takes no references, and its arm is `context`")
        self.network, self.config, self.references = network, config, references
        self._drawers: dict[tuple, Batched] = {}

    def __call__(self, questions: Sequence[Question]) -> np.ndarray:
        config, network = self.config, self.network
        seeds = seeds_of(questions, config.samples).reshape(-1)
        asked = network.asked(questions, self.references)
        rows = {k: np.repeat(v, config.samples, axis=0) for k, v in asked.items()}
        draw = self.drawer(len(questions[0].references), questions[0].views)
        found = draw(network.params, seeds, rows)
        return found.reshape(len(questions), config.samples, *found.shape[1:])

    def drawer(self, subjects: int, views: int, cache: str = "when_exact") -> Batched:
        """Draws pictures of so many references."""
        bare = self.references == "none"
        key = (0, 0, cache) if bare else (subjects, views, cache)
        if key not in self._drawers:
            model = self.network.model_for(*key[:2]) if not bare else self.network.model
            sample = dataclasses.replace(self.network.run.sample, cache_references=cache)
            if bare:
                model = model.without_references()
                sample = dataclasses.replace(sample, reference_guidance_scale=0.0)
            one = jax.vmap(self.network.drawer(model, sample), in_axes=(None, 0, 0))
            self._drawers[key] = Batched(one, self.config.batch_size)
        return self._drawers[key]


class Finetuned:
    """Answers from adapters (or whole networks) of its own for every subject.

    Args:
      recipe: how to fine-tune, its steps the ones that count.
    """

    def __init__(
        self,
        network: Network,
        arm: ArmConfig,
        config: CompareConfig,
        world: World,
        recipe: FinetuneConfig,
    ):
        if network.in_context:
            raise UvitError(
                f"network {network.name} takes references, and its arm fine-tunes; name one "
                "without them"
            )
        self.network, self.arm, self.config, self.world = network, arm, config, world
        self.recipe = recipe
        self.seconds: list[float] = []
        self._tuners: dict[int, Finetuner] = {}
        self._drawers: dict[tuple, Batched] = {}
        self._adapters: dict[tuple, list[Any]] = {}
        self._priors: dict[str, Examples] = {}

    def __call__(self, questions: Sequence[Question], compose: str = "") -> np.ndarray:
        """The answers (Q, samples, H, W, C); several subjects are composed as asked."""
        trained = self.trained(questions, compose)[self.recipe.steps]
        return self.draw(trained, groups(questions))

    def trained(
        self, questions: Sequence[Question], compose: str = "", *, steps: Sequence[int] = ()
    ) -> dict[int, Any]:
        """What is trained for each group, leaves (G, …): by step, the recipe's and further ones."""
        compose = compose or self.arm.compose[0]
        by_group = groups(questions)
        count = len(questions[0].names)
        if count == 1 or compose == "joint":
            return self._trained(
                {
                    f"{i}": concatenated([self.examples(part[0], s) for s in range(count)])
                    for i, part in enumerate(by_group)
                },
                [part[0].kinds[0] for part in by_group],
                steps,
            )
        return {self.recipe.steps: self._composed(by_group, compose)}

    def examples(self, question: Question, slot: int) -> Examples:
        """One subject's references as training examples."""
        conditions = self.network.conditions(question.captions[slot])
        return {"image": np.stack(question.references[slot]), **conditions}

    def draw(self, trained: Any, by_group: Sequence[Sequence[Question]]) -> np.ndarray:
        """The answers of each group by what was trained for it, leaves (G, …)."""
        questions = [q for part in by_group for q in part]
        samples = self.config.samples
        seeds = seeds_of(questions, samples).reshape(len(by_group), -1)
        conditions = self.network.conditions([q.prompt for q in questions])
        rows = {
            k: np.repeat(v, samples, axis=0).reshape(*seeds.shape, *v.shape[1:])
            for k, v in conditions.items()
        }
        found = self.drawer(trained, seeds.shape[1])(self.network.params, trained, seeds, rows)
        return found.reshape(len(questions), samples, *found.shape[2:])

    def drawer(self, trained: Any, each: int) -> Batched:
        """Draws `each` pictures of some subjects."""
        shapes = tuple(np.shape(leaf)[1:] for leaf in jax.tree.leaves(trained))
        key = (shapes, each)
        if key not in self._drawers:
            one = self.network.drawer(self.network.model)
            attached = self.tuner(self.recipe.steps).attached

            def of_subject(params, tree, seeds, conditions):
                whole = attached(params, tree)
                return jax.vmap(one, in_axes=(None, 0, 0))(whole, seeds, conditions)

            size = max(1, self.config.batch_size // each)
            self._drawers[key] = Batched(jax.vmap(of_subject, in_axes=(None, 0, 0, 0)), size)
        return self._drawers[key]

    def tuner(self, steps: int) -> Finetuner:
        """Fine-tunes for so many steps by the recipe."""
        if steps not in self._tuners:
            recipe = dataclasses.replace(self.recipe, steps=steps)
            self._tuners[steps] = Finetuner(self.network.model, self.network.run.diffusion, recipe)
        return self._tuners[steps]

    def prior(self, kinds: Sequence[str]) -> tuple[Stacked, list[int]]:
        """Pictures of the subjects' classes, which the network itself draws, and whose is whose."""
        names = list(dict.fromkeys(kinds))
        for kind in names:
            if kind not in self._priors:
                captions = self.world.class_captions(kind, self.config.prior, self.config.word)
                self._priors[kind] = class_examples(
                    self.network.model,
                    self.network.params,
                    self.network.run.diffusion,
                    self.network.run.sample,
                    self.network.conditions(captions),
                    batch_size=self.config.batch_size,
                    seed=self.config.seed,
                    nulls=nulls_of(self.network.model.layout, self.network.vocabulary),
                )
        return stacked({kind: self._priors[kind] for kind in names}), [
            names.index(kind) for kind in kinds
        ]

    @property
    def subject_bytes(self) -> int:
        """What is kept of a subject, float32."""
        start = self.tuner(self.recipe.steps).method.start
        one = jax.eval_shape(
            lambda params: start(jax.random.key(0), params, self.recipe.lora), self.network.params
        )
        return int(sum(4 * np.prod(leaf.shape) for leaf in jax.tree.leaves(one)))

    @property
    def finetune_flops(self) -> float:
        """Of one subject: its pictures and as many of its class, forward and backward."""
        cost = forward_cost(self.network.run.model).total
        return 6.0 * cost * 2 * self.recipe.batch_size * self.recipe.steps

    def _trained(
        self, subjects: dict[str, Examples], kinds: Sequence[str], steps: Sequence[int]
    ) -> dict[int, Any]:
        """By step what is trained of all subjects, leaves (G, …)."""
        last = max([self.recipe.steps, *steps])
        tuner, names = self.tuner(last), list(subjects)
        at_once = min(self.config.at_once, len(names))
        size = max(len(next(iter(examples.values()))) for examples in subjects.values())
        parts: list[Tuned] = []
        for rows in filled(len(names), at_once):
            chosen = [names[i] for i in rows]
            prior, prior_of = self.prior([kinds[names.index(name)] for name in chosen])
            found = tuner(
                self.network.params,
                stacked({f"{i}/{n}": subjects[n] for i, n in enumerate(chosen, rows[0])}, size),
                prior=prior,
                prior_of=prior_of,
                at=sorted({self.recipe.steps, *steps} - {last}),
            )
            self.seconds.append(found.seconds / at_once * self.recipe.steps / last)
            parts.append(found)
        return {
            step: jax.tree.map(
                lambda *leaves: np.concatenate(leaves)[: len(names)],
                *(part.trained[step] for part in parts),
            )
            for step in {self.recipe.steps, *steps}
        }

    def _composed(self, by_group: Sequence[Sequence[Question]], compose: str) -> Any:
        """Every group's subjects' adapters as one."""
        units = {
            f"{i}/{s}": self.examples(part[0], s)
            for i, part in enumerate(by_group)
            for s in range(len(part[0].names))
        }
        kinds = [kind for part in by_group for kind in part[0].kinds]
        key = (by_group[0][0].setting, len(by_group))
        if key not in self._adapters:  # the sum and the fusion are of the same adapters
            trained = self._trained(units, kinds, ())[self.recipe.steps]
            self._adapters[key] = [tree_index(trained, i) for i in range(len(units))]
        adapters = self._adapters[key]
        whole = []
        each = len(by_group[0][0].names)
        for first in range(0, len(adapters), each):
            own = adapters[first : first + each]
            if compose == "sum":
                joined = lora.combined(own, [1.0] * each)  # `attached` scales the whole
            else:
                joined = self._fused(own, list(units.values())[first : first + each])
            whole.append(joined)
        return jax.tree.map(lambda *leaves: np.stack(leaves), *whole)

    def _fused(self, adapters: list[Any], examples: list[Examples]) -> Any:
        network = self.network
        moments = [
            input_moments(
                network.model,
                network.run.diffusion,
                self.tuner(self.recipe.steps).params(network.params, own),
                list(own),
                seen,
                jax.random.key(self.config.seed),
                rounds=8,
            )
            for own, seen in zip(adapters, examples, strict=True)
        ]
        return fuse(adapters, moments)
