"""DreamBooth (Ruiz et al. 2023): fine-tunes adapters or all parameters, for many subjects at once.

    tune = Finetuner(model, run.diffusion, FinetuneConfig(method="lora"))
    subjects = stacked({"bear": examples, "clock": examples})        # see examples.py
    tuned = tune(params, subjects, prior=stacked({"toy": class_examples}))
    params = tune.params(params, tree_index(tuned.trained[400], 0))  # the bear's

The trained parameters, optimizer state and examples of S subjects have a leading axis S, over which
the step is `vmap`ped. The base parameters do not have this axis, so all subjects share one product
with them. A subject's randomness depends on its name and the seed only, so its result does not
depend on the subjects that are trained beside it.
"""

import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uvit_jax.config import Config
from uvit_jax.diffusion.objective import ObjectiveConfig, of_data
from uvit_jax.errors import UvitError
from uvit_jax.models import lora
from uvit_jax.models.lora import LoraConfig
from uvit_jax.models.model import Model, Params
from uvit_jax.training.examples import Stacked
from uvit_jax.training.loss import corrupt, diffusion_loss
from uvit_jax.training.run_config import check_adam
from uvit_jax.training.tuning_checkpoint import TuningCheckpoint


class Method(NamedTuple):
    """The functions that define what fine-tuning trains, for one subject.

    Attributes:
      start: (key, base params, config) → initial trained parameters.
      attached: (base params, trained, config) → parameters for `model.apply`.
      merged: the same, as plain arrays of the base's shapes.
      learning_rate: the default.
    """

    start: Callable[[jax.Array, Params, LoraConfig], Any]
    attached: Callable[[Params, Any, LoraConfig], Params]
    merged: Callable[[Params, Any, LoraConfig], Params]
    learning_rate: float


METHODS = {
    "lora": Method(
        start=lora.init,
        attached=lambda params, adapters, config: lora.attach(params, adapters, config.scale),
        merged=lambda params, adapters, config: lora.merge(params, adapters, config.scale),
        learning_rate=2e-4,
    ),
    "full": Method(
        start=lambda key, params, config: jax.tree.map(jnp.copy, params),
        attached=lambda params, trained, config: trained,
        merged=lambda params, trained, config: trained,
        learning_rate=5e-6,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Config):
    """The recipe of DreamBooth.

    Attributes:
      method: `lora` trains adapters, `full` all parameters.
      lora: the adapters' config.
      steps: of the optimizer.
      batch_size: images of a subject per step, sampled with replacement, and as many of its class.
      learning_rate: constant; 0 is the method's default, 2e-4 or 5e-6.
      b1, b2, eps, weight_decay: of AdamW.
      clip_norm: maximum norm of a subject's gradient; 0 does not clip.
      prior_weight: weight of the loss on class images (prior preservation), if there are any.
      given: of a video model, the share of examples in which each of these segments is given, as
        in its training (`config.train.given`).
      word_rate: the learning rate of word vectors (`LoraConfig.words`), relative to the adapters':
        vectors start at 0 and have to grow to those of other words.
      drop_text: share of examples, class images included, with the null text, as the base was
        trained and guidance needs it.
      seed: of the adapters' initialization, and of batches, noise and times.
    """

    method: Literal["lora", "full"] = "lora"
    lora: LoraConfig = LoraConfig()
    steps: int = 400
    batch_size: int = 4
    learning_rate: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    prior_weight: float = 1.0
    given: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    word_rate: float = 1.0
    drop_text: float = 0.0
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        for key in ("steps", "batch_size"):
            if getattr(self, key) < 1:
                raise UvitError(f"{key} must be at least 1, got {getattr(self, key)}")
        check_adam(self.b1, self.b2, self.eps)
        for key in ("learning_rate", "weight_decay", "clip_norm", "prior_weight", "word_rate"):
            if getattr(self, key) < 0:
                raise UvitError(f"{key} must be at least 0, got {getattr(self, key)}")
        if not 0 <= self.drop_text <= 1:
            raise UvitError(f"drop_text must lie in [0, 1], got {self.drop_text}")
        if not 0 <= self.seed < 2**32:
            raise UvitError(f"seed must lie in [0, 2**32), got {self.seed}")

    @property
    def rate(self) -> float:
        """The learning rate, with the method's default for 0."""
        return self.learning_rate or METHODS[self.method].learning_rate


def tree_index(tree: Any, index: int) -> Any:
    """The tree of index `index` along the leading axis of all leaves, such as one subject's."""
    return jax.tree.map(lambda a: a[index], tree)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The result of fine-tuning S subjects.

    Attributes:
      names: of the subjects.
      trained: by step, the trained parameters, numpy leaves (S, …).
      losses: float32 (steps, S), on the subjects' images.
      prior_losses: float32 (steps, S), on the class images; None without.
      seconds: wall time of all steps, extrapolated from those after the first.
      first_step: wall time of the first step in seconds, with compilation.
    """

    names: tuple[str, ...]
    trained: dict[int, Any]
    losses: np.ndarray
    prior_losses: np.ndarray | None
    seconds: float
    first_step: float


class Finetuner:
    """Fine-tunes a model by one recipe, which compiles once per number of subjects and of images.

    Args:
      model: the base model. diffusion: the objective of its run. config: the recipe.
    """

    def __init__(self, model: Model, diffusion: ObjectiveConfig, config: FinetuneConfig):
        self.model, self.diffusion, self.config = model, of_data(diffusion), config
        self.method = METHODS[config.method]
        adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
        clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
        # The learning rate is an argument of the step, so that a grid of rates compiles once.
        self._optimizer = optax.chain(clip, adam, optax.add_decayed_weights(config.weight_decay))
        self._start = jax.jit(self._start_all)
        self._step = jax.jit(self._step_all, donate_argnums=(1, 2))

    def __call__(
        self,
        params: Params,
        subjects: Stacked,
        *,
        prior: Stacked | None = None,
        prior_of: Sequence[int] | None = None,
        learning_rate: float | None = None,
        prior_weight: float | None = None,
        at: Collection[int] = (),
        progress: Callable[[int], None] | None = None,
        watch: Callable[[int, Any], None] | None = None,
        watch_every: int = 0,
        checkpoint: TuningCheckpoint | None = None,
    ) -> Tuned:
        """Trains for `config.steps`.

        Args:
          params: of the base model; they are not changed.
          subjects: see `stacked`.
          prior: class images, samples of the base model, of one or more classes.
          prior_of: the index of each subject's class in `prior`; None if there is only one.
          learning_rate, prior_weight: replace the config's.
          at: steps after which to copy the trained parameters, besides the last step.
          progress: called with the number of each step after it.
          watch: called with (step, trained parameters, leaves (S, …)) at multiples of
            `watch_every`, and after the last step.
          checkpoint: where the state is saved at its interval, and read at the start.

        Raises:
          UvitError: if the examples are not the model's inputs, or a loss is not finite, naming
            the subject.
        """
        config = self.config
        for examples in (subjects, prior) if prior is not None else (subjects,):
            self._check(examples)
        copied_steps = {*at, config.steps}
        if min(copied_steps) < 1 or max(copied_steps) > config.steps:
            raise UvitError(f"at={sorted(at)} must be steps from 1 to {config.steps}")
        groups = None
        if prior is not None:
            groups = [0] * len(subjects.names) if prior_of is None else list(prior_of)
            if not all(0 <= group < len(prior.names) for group in groups):
                raise UvitError(
                    f"prior_of={groups} must be indices from 0 to {len(prior.names) - 1}, of prior"
                )
            groups = jnp.asarray(groups, jnp.int32)
        rate = jnp.float32(config.rate if learning_rate is None else learning_rate)
        weight = jnp.float32(config.prior_weight if prior_weight is None else prior_weight)
        trained, opt_state = self._start(params, subjects.seeds)
        own = (subjects.examples, subjects.counts, subjects.seeds)
        classes = None if prior is None else (prior.examples, prior.counts)
        losses, snapshots = [], {}
        start = 0
        if checkpoint is not None and (stored := checkpoint.restore((trained, opt_state))):
            start, (trained, opt_state), losses = stored
            if min(copied_steps) <= start:
                raise UvitError(f"{checkpoint.path} is of step {start}, after at={sorted(at)}")
        began = time.perf_counter()
        first = 0.0
        for step in range(start + 1, config.steps + 1):
            trained, opt_state, loss = self._step(
                params, trained, opt_state, own, classes, groups, (rate, weight), jnp.uint32(step)
            )
            losses.append(loss)
            if step == start + 1:
                jax.block_until_ready(loss)
                first, began = time.perf_counter() - began, time.perf_counter()
            if step in copied_steps:
                self._check_losses(subjects.names, losses)
                # A copy: the next step donates these buffers.
                snapshots[step] = jax.tree.map(np.array, jax.device_get(trained))
            if watch is not None and (
                step == config.steps or (watch_every and step % watch_every == 0)
            ):
                watch(step, trained)
            if checkpoint is not None and step % checkpoint.every == 0 and step < config.steps:
                self._check_losses(subjects.names, losses)
                checkpoint.save(step, (trained, opt_state), losses)
            if progress is not None:
                jax.block_until_ready(loss)
                progress(step)
        seconds = time.perf_counter() - began
        return Tuned(
            names=subjects.names,
            trained=snapshots,
            losses=np.stack([own for own, _ in jax.device_get(losses)]),
            prior_losses=None
            if prior is None
            else np.stack([p for _, p in jax.device_get(losses)]),
            seconds=seconds * config.steps / max(1, config.steps - start - 1),
            first_step=first,
        )

    def params(self, params: Params, trained: Any) -> Params:
        """One subject's parameters: plain arrays of the base's shapes."""
        return self.method.merged(params, trained, self.config.lora)

    def attached(self, params: Params, trained: Any) -> Params:
        """One subject's parameters for `model.apply`; may be `vmap`ped over `trained`."""
        return self.method.attached(params, trained, self.config.lora)

    def _key(self, seed: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.config.seed), seed)

    def _start_all(self, params: Params, seeds: jax.Array) -> tuple[Any, Any]:
        def start(seed: jax.Array) -> tuple[Any, Any]:
            trained = self.method.start(self._key(seed), params, self.config.lora)
            return trained, self._optimizer.init(trained)

        return jax.vmap(start)(seeds)

    def _step_all(self, params, trained, opt_state, own, classes, groups, rates, step):
        one = functools.partial(self._step_one, params, classes, rates, step)
        return jax.vmap(one)(trained, opt_state, *own, groups)

    def _step_one(
        self, params, classes, rates, step, trained, opt_state, examples, count, seed, group
    ):
        """One subject's step: (trained, opt_state, (loss, loss on the class images))."""
        config, (rate, prior_weight) = self.config, rates
        key = jax.random.fold_in(self._key(seed), step)
        own_key, class_key, noise_key = jax.random.split(key, 3)
        rows = jax.random.randint(own_key, (config.batch_size,), 0, count)
        batch = {name: value[rows] for name, value in examples.items()}
        if classes is not None:
            class_images, counts = classes
            rows = jax.random.randint(class_key, (config.batch_size,), 0, counts[group])
            batch = {
                k: jnp.concatenate([v, class_images[k][group, rows]]) for k, v in batch.items()
            }
        conditions, corrupted = corrupt(
            noise_key, self.model, batch, self.diffusion, given=config.given
        )
        if config.drop_text:
            conditions = self._with_texts_dropped(key, conditions)

        def loss(trained):
            adapted = self.method.attached(params, trained, config.lora)
            losses_B, _ = diffusion_loss(
                self.model, adapted, conditions, corrupted, prediction=self.diffusion.prediction
            )
            own_loss = jnp.mean(losses_B[: config.batch_size])
            if classes is None:
                return own_loss, (own_loss, None)
            prior_loss = jnp.mean(losses_B[config.batch_size :])
            return own_loss + prior_weight * prior_loss, (own_loss, prior_loss)

        gradient, losses = jax.grad(loss, has_aux=True)(trained)
        updates, opt_state = self._optimizer.update(gradient, opt_state, trained)
        rates = jax.tree.map(lambda p: rate, trained)
        if config.lora.words and config.method == "lora":
            path, _ = lora.word_table(params)
            rates[path] = jax.tree.map(lambda p: config.word_rate * rate, trained[path])
        trained = jax.tree.map(lambda p, u, rate: p - rate * u, trained, updates, rates)
        return trained, opt_state, losses

    def _with_texts_dropped(self, key: jax.Array, conditions: Any) -> Any:
        """The conditions with the null text in a share of the examples."""
        for segment in self.model.layout.conditions:
            if segment.kind == "text" and segment.role == "condition":
                ids_BT = conditions[segment.name]
                own_key = jax.random.fold_in(key, np.uint32(zlib.crc32(segment.name.encode())))
                lost_B1 = jax.random.bernoulli(own_key, self.config.drop_text, (len(ids_BT), 1))
                null = self.model.layout.null(segment.name, 1)
                conditions = conditions | {segment.name: jnp.where(lost_B1, null, ids_BT)}
        return conditions

    def _check(self, stack: Stacked) -> None:
        expected = dict(self.model.layout.input_shapes)
        shapes = {name: value.shape[2:] for name, value in stack.examples.items()}
        if shapes != expected:
            raise UvitError(
                f"the examples have the shapes {shapes}, but the model takes {expected}"
            )
        self.model.layout.check_ids(stack.examples)

    def _check_losses(self, names: Sequence[str], losses: list[Any]) -> None:
        finite_S = np.isfinite(np.stack([own for own, _ in jax.device_get(losses)])).all(axis=0)
        if not finite_S.all():
            raise UvitError(
                f"the loss of {names[int(np.argmin(finite_S))]!r} is not finite; lower the "
                f"learning rate ({self.config.rate:g}) or set clip_norm"
            )
