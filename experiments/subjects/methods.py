"""The compared methods: references in the sequence, or fine-tuning on them.

    method = InContext(network, config.arms["unified"], config, world)
    images = method(cases)                 # (Q, samples, H, W, C), Q cases of one setting

All methods start an image from the same noise, which depends on the case's seed and the index of
the sample alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.subjects.evaluation_cases import (
    EvaluationCase,
    StudyWorld,
    exchanged,
    grouped,
    own_words,
)
from experiments.subjects.fusion import fuse, input_moments
from experiments.subjects.networks import BatchedSampler, TrainedNetwork
from experiments.subjects.study_config import CompareConfig, MethodConfig
from uvit_jax.data.sources.worlds.scene_motion import Motion
from uvit_jax.errors import UvitError
from uvit_jax.models import lora
from uvit_jax.models.cost import forward_cost
from uvit_jax.sampling.sampler import padded_rows
from uvit_jax.training.examples import Examples, Stacked, class_examples, concatenated, stacked
from uvit_jax.training.finetune import FinetuneConfig, Finetuner, Tuned, tree_index
from uvit_jax.training.loss import corrupt, diffusion_loss

SAMPLE_STRIDE = 1_000_003
"""The difference between the seeds of two samples of a case."""


def seeds_of(cases: Sequence[EvaluationCase], samples: int) -> np.ndarray:
    """Seeds uint32 (Q, samples)."""
    first = np.array([q.seed for q in cases], np.uint64)[:, None]
    return (first + np.arange(samples, dtype=np.uint64) * SAMPLE_STRIDE).astype(np.uint32)


GIVEN = {"first": ("first",), "first_last": ("first", "last"), "composed": ("first",)}
"""The noisy segments of videos that are given, by `MethodConfig.given`."""

PREFERENCE_TIME = 0.75
"""The noise level t at which losses are compared."""


def _losses(network: TrainedNetwork, model: Any) -> Callable[..., jax.Array]:
    """(params, images or videos, conditions) → each one's loss (Q,), from fixed noise."""

    @jax.jit
    def losses(params, parts, conditions):
        key, batch = jax.random.key(0), {**parts, **conditions}
        diffusion = network.run.diffusion
        given = corrupt(key, model, batch, diffusion, t=PREFERENCE_TIME)
        return diffusion_loss(model, params, *given, prediction=diffusion.prediction)[0]

    return losses


def _lower(losses, params, truth: Examples, right, wrong, size: int = 16) -> np.ndarray:
    """Whether the right conditions have the lower loss, bool (Q,)."""
    found, count = [], len(next(iter(truth.values())))
    for rows in padded_rows(count, min(size, count)):
        parts = {k: v[rows] for k, v in truth.items()}
        a, b = (
            np.asarray(losses(params, parts, {k: v[rows] for k, v in given.items()}))
            for given in (right, wrong)
        )
        found.append(a < b)
    return np.concatenate(found)[:count]


class InContext:
    """Samples with the references in the sequence.

    Args:
      method: whether there are references, and for videos what else is given.
      references: `own`; or, to measure what they contribute, `none` or those of `others`.
      guidance: the scale of references, None for the network's own.
      world: for the given frames of videos.

    Raises:
      UvitError: if the network takes no references.
    """

    def __init__(
        self,
        network: TrainedNetwork,
        method: MethodConfig,
        config: CompareConfig,
        world: StudyWorld,
        references: str = "own",
        guidance: float | None = None,
    ):
        if not network.in_context:
            raise UvitError(
                f"network {network.name} takes no references, which method 'context' needs"
            )
        self.network, self.config, self.references = network, config, references
        self.method, self.world = method, world
        if not method.references:
            self.references = "none"
        self.sample_config = network.run.sample
        if self.references == "none":
            guidance = 0.0
        if method.given:
            names = [s.name for s in network.model.layout.noisy_images]
            generated = tuple(n for n in names if n not in GIVEN[method.given])
            self.sample_config = dataclasses.replace(self.sample_config, generate=generated)
        if guidance is not None:
            changes = dict(reference_guidance_scale=guidance)
            self.sample_config = dataclasses.replace(self.sample_config, **changes)
        self._samplers: dict[tuple, BatchedSampler] = {}

    def __call__(self, cases: Sequence[EvaluationCase]) -> np.ndarray:
        config, network = self.config, self.network
        seeds = seeds_of(cases, config.samples).reshape(-1)
        conditions = self.conditions(cases)
        rows = {k: np.repeat(v, config.samples, axis=0) for k, v in conditions.items()}
        sample = self.sampler(*cases[0].slots)
        found = sample(network.params, seeds, rows)
        return found.reshape(len(cases), config.samples, *found.shape[1:])

    def conditions(self, cases: Sequence[EvaluationCase]) -> dict[str, Any]:
        """Of cases of one setting, leaves (Q, …), given frames among them."""
        found = self.network.case_conditions(cases, self.references, self.method.controls)
        if given := self.method.given:
            make = self.world.truth
            if given == "composed":
                make = functools.partial(self.world.cut_paste, seed=self.config.seed)
            parts = self.network.parts(np.stack([make(case) for case in cases]))
            found |= {name: parts[name] for name in GIVEN[given]}
        return found

    def sampler(self, subjects: int, views: int, cache: str = "when_exact") -> BatchedSampler:
        """The compiled sampler for cases with so many references."""
        bare = self.references == "none"
        key = (0, 0, cache) if bare else (subjects, views, cache)
        if key not in self._samplers:
            model = self.network.model_for(*key[:2]) if not bare else self.network.model
            sample = dataclasses.replace(self.sample_config, cache_references=cache)
            if bare:
                model = model.without_references()
            one = jax.vmap(self.network.sampler(model, sample), in_axes=(None, 0, 0))
            self._samplers[key] = BatchedSampler(one, self.config.batch_size)
        return self._samplers[key]

    def preferred(self, cases: Sequence[EvaluationCase], truth: np.ndarray) -> np.ndarray:
        """Whether the loss on the true images is lower with each subject's references in its own
        slot than in the next one's, bool (Q,)."""
        network = self.network
        controls = self.method.controls
        right, wrong = (
            network.case_conditions(cases, how, controls) for how in ("own", "exchanged")
        )
        losses = _losses(network, network.model_for(*cases[0].slots))
        return _lower(losses, network.params, network.parts(truth), right, wrong)


class Finetuned:
    """Samples with an adapter of its own for every subject, and with words of their own
    (`EvaluationCase.prompt` with `@1*` for `@1`) where the network has any.

    Args:
      recipe: of the fine-tuning; samples are generated after `recipe.steps`.
      guidance: the scale of the text, None for the network's own.

    Raises:
      UvitError: if the network takes references.
    """

    def __init__(
        self,
        network: TrainedNetwork,
        method: MethodConfig,
        config: CompareConfig,
        world: StudyWorld,
        recipe: FinetuneConfig,
        guidance: float | None = None,
    ):
        if network.in_context:
            raise UvitError(
                f"network {network.name} takes references, which method "
                f"{method.method!r} does not support; name a network without references"
            )
        self.network, self.method, self.config, self.world = network, method, config, world
        self.sample_config = network.run.sample
        if guidance is not None:
            self.sample_config = dataclasses.replace(self.sample_config, guidance_scale=guidance)
        words = network.own_words
        if method.method == "words" and not words:
            raise UvitError(
                f"network {network.name} has no words of subjects' own, which method 'words' "
                "trains; train it with config.data.described"
            )
        targets = () if method.method == "words" else recipe.lora.targets
        adapters = dataclasses.replace(recipe.lora, targets=targets, words=words)
        self.recipe = dataclasses.replace(recipe, lora=adapters)
        self.seconds: list[float] = []
        self._tuners: dict[int, Finetuner] = {}
        self._samplers: dict[tuple, BatchedSampler] = {}
        self._adapters: dict[tuple, list[Any]] = {}
        self._priors: dict[str, Examples] = {}

    def __call__(self, cases: Sequence[EvaluationCase], compose: str = "") -> np.ndarray:
        """Images (Q, samples, H, W, C). compose: as `MethodConfig.compose`; "" takes the first."""
        trained = self.trained(cases, compose)[self.recipe.steps]
        return self.sample(trained, grouped(cases))

    def trained(
        self, cases: Sequence[EvaluationCase], compose: str = "", *, steps: Sequence[int] = ()
    ) -> dict[int, Any]:
        """Trained parameters of each group, leaves (G, …), by step: `recipe.steps` and `steps`."""
        compose = compose or self.method.compose[0]
        by_group = grouped(cases)
        count = len(cases[0].names)
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

    def examples(self, case: EvaluationCase, slot: int) -> Examples:
        """One subject's references, and scenes with these pasted in, as training examples."""
        images, captions, motions = self.world.shown(case, slot, self.config.pasted)
        return self.network.parts(images) | self._conditions(captions, case, motions)

    def _conditions(
        self, prompts: Sequence[str], case: EvaluationCase, motions: Sequence[Motion | None]
    ) -> Examples:
        """The conditions of prompts, with the subjects' own words where there are any."""
        if self.network.own_words:
            prompts = [own_words(prompt, case.names) for prompt in prompts]
        return self.network.conditions(prompts) | self.network.controls(motions)

    def _of_cases(self, cases: Sequence[EvaluationCase]) -> Examples:
        return self._conditions([q.prompt for q in cases], cases[0], [q.motion for q in cases])

    def sample(self, trained: Any, by_group: Sequence[Sequence[EvaluationCase]]) -> np.ndarray:
        """Images (Q, samples, H, W, C) of each group with its trained parameters, leaves (G, …)."""
        cases = [q for part in by_group for q in part]
        samples = self.config.samples
        seeds = seeds_of(cases, samples).reshape(len(by_group), -1)
        conditions = self._of_cases(cases)
        rows = {
            k: np.repeat(v, samples, axis=0).reshape(*seeds.shape, *v.shape[1:])
            for k, v in conditions.items()
        }
        found = self.sampler(trained, seeds.shape[1])(self.network.params, trained, seeds, rows)
        return found.reshape(len(cases), samples, *found.shape[2:])

    def timing_arguments(
        self, by_group: Sequence[Sequence[EvaluationCase]]
    ) -> tuple[tuple[Any, ...], int]:
        """Arguments of a sampler for one batch of images of untrained adapters, and the number of
        images of each."""
        each = len(by_group[0]) * self.config.samples
        groups = max(1, self.config.batch_size // each)
        cases = [by_group[i % len(by_group)][0] for i in range(groups)]
        tuner = self.tuner(self.recipe.steps)
        start = jax.eval_shape(
            lambda params: tuner.method.start(jax.random.key(0), params, self.recipe.lora),
            self.network.params,
        )
        trained = jax.tree.map(lambda a: np.zeros((groups, *a.shape), np.float32), start)
        conditions = self._of_cases(cases)
        rows = {k: np.repeat(v[:, None], each, axis=1) for k, v in conditions.items()}
        seeds = np.repeat(seeds_of(cases, 1), each, axis=1)
        return (self.network.params, trained, seeds, rows), each

    def sampler(self, trained: Any, each: int) -> BatchedSampler:
        """The compiled sampler of `each` images for each of several groups."""
        shapes = tuple(np.shape(leaf)[1:] for leaf in jax.tree.leaves(trained))
        key = (shapes, each)
        if key not in self._samplers:
            one = self.network.sampler(self.network.model, self.sample_config)
            attached = self.tuner(self.recipe.steps).attached

            def of_subject(params, tree, seeds, conditions):
                adapted = attached(params, tree)
                return jax.vmap(one, in_axes=(None, 0, 0))(adapted, seeds, conditions)

            size = max(1, self.config.batch_size // each)
            self._samplers[key] = BatchedSampler(
                jax.vmap(of_subject, in_axes=(None, 0, 0, 0)), size
            )
        return self._samplers[key]

    def tuner(self, steps: int) -> Finetuner:
        """The recipe's fine-tuner, for so many steps."""
        if steps not in self._tuners:
            recipe = dataclasses.replace(self.recipe, steps=steps)
            self._tuners[steps] = Finetuner(self.network.model, self.network.run.diffusion, recipe)
        return self._tuners[steps]

    def preferred(
        self, trained: Any, by_group: Sequence[Sequence[EvaluationCase]], truth: np.ndarray
    ) -> np.ndarray:
        """Whether the loss on the true images is lower with the prompts as they are than with the
        subjects' names exchanged, bool (Q,)."""
        losses = _losses(self.network, self.network.model)
        attached = jax.jit(self.tuner(self.recipe.steps).attached)
        found, first = [], 0
        for i, part in enumerate(by_group):
            right = self._of_cases(part)
            swapped = [dataclasses.replace(q, prompt=exchanged(q.prompt, q.names)) for q in part]
            wrong = self._of_cases(swapped)
            params = attached(self.network.params, tree_index(trained, i))
            own = self.network.parts(truth[first : first + len(part)])
            found.append(_lower(losses, params, own, right, wrong))
            first += len(part)
        return np.concatenate(found)

    def prior(self, kinds: Sequence[str]) -> tuple[Stacked, list[int]]:
        """Sampled class images for prior preservation, and the index of each subject's class."""
        names = list(dict.fromkeys(kinds))
        for kind in names:
            if kind not in self._priors:
                captions, motions = self.world.class_prompts(
                    kind, self.config.prior, self.config.word
                )
                controls = self.network.controls(motions)
                self._priors[kind] = class_examples(
                    self.network.model,
                    self.network.params,
                    self.network.run.diffusion,
                    self.network.run.sample,
                    self.network.conditions(captions) | controls,
                    count=len(captions),
                    batch_size=self.config.batch_size,
                    seed=self.config.seed,
                    vocabulary=self.network.vocabulary,
                )
        return stacked({kind: self._priors[kind] for kind in names}), [
            names.index(kind) for kind in kinds
        ]

    @property
    def subject_bytes(self) -> int:
        """Bytes stored for each subject, in float32: of word vectors, its own."""
        start = self.tuner(self.recipe.steps).method.start
        one = jax.eval_shape(
            lambda params: start(jax.random.key(0), params, self.recipe.lora), self.network.params
        )
        words = [pair.delta for pair in one.values() if isinstance(pair, lora.WordVectors)]
        sizes = [np.prod(leaf.shape) for leaf in jax.tree.leaves(one)]
        return int(4 * (sum(sizes) - sum(np.prod(w.shape) - w.shape[-1] for w in words)))

    @property
    def finetune_flops(self) -> float:
        """FLOPs for one subject: its images and, with a prior weight, as many of its class, forward
        and backward."""
        return self.flops(self.recipe.steps, self.recipe.prior_weight)

    def flops(self, steps: int, prior_weight: float) -> float:
        """The same for other steps and weights."""
        cost = forward_cost(self.network.run.model).total
        return 6.0 * cost * (2 if prior_weight else 1) * self.recipe.batch_size * steps

    def _trained(
        self, subjects: dict[str, Examples], kinds: Sequence[str], steps: Sequence[int]
    ) -> dict[int, Any]:
        """The trained parameters of all subjects by step, leaves (G, …)."""
        last = max([self.recipe.steps, *steps])
        tuner, names = self.tuner(last), list(subjects)
        at_once = min(self.config.at_once, len(names))
        size = max(len(next(iter(examples.values()))) for examples in subjects.values())
        parts: list[Tuned] = []
        for rows in padded_rows(len(names), at_once):
            chosen = [names[i] for i in rows]
            prior = prior_of = None
            if self.recipe.prior_weight:
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

    def _composed(self, by_group: Sequence[Sequence[EvaluationCase]], compose: str) -> Any:
        """The adapters of each group's subjects composed into one."""
        units = {
            f"{i}/{s}": self.examples(part[0], s)
            for i, part in enumerate(by_group)
            for s in range(len(part[0].names))
        }
        kinds = [kind for part in by_group for kind in part[0].kinds]
        key = (by_group[0][0].setting, len(by_group))
        if key not in self._adapters:  # sum and fusion compose the same adapters
            trained = self._trained(units, kinds, ())[self.recipe.steps]
            self._adapters[key] = [tree_index(trained, i) for i in range(len(units))]
        adapters = self._adapters[key]
        composed = []
        each = len(by_group[0][0].names)
        for first in range(0, len(adapters), each):
            own = adapters[first : first + each]
            if compose == "sum":
                joined = lora.combined(own, [1.0] * each)  # `attached` applies the scale
            else:
                joined = self._fused(own, list(units.values())[first : first + each])
            composed.append(joined)
        return jax.tree.map(lambda *leaves: np.stack(leaves), *composed)

    def _fused(self, adapters: list[Any], examples: list[Examples]) -> Any:
        network = self.network
        layers = [path for path, one in adapters[0].items() if isinstance(one, lora.Adapter)]
        moments = [
            input_moments(
                network.model,
                network.run.diffusion,
                self.tuner(self.recipe.steps).params(network.params, own),
                layers,
                seen,
                jax.random.key(self.config.seed),
                rounds=8,
            )
            for own, seen in zip(adapters, examples, strict=True)
        ]
        return fuse(adapters, moments)
