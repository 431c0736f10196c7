"""Trains the encoder of a text segment on captions alone, before a run's first step.

    encoder = pretrained(run.text_pretraining, segment, dataset, seed=run.seed)
    params = with_encoder(params, segment.name, encoder)

A denoiser learns slowly from images which of two references a caption puts where: its loss improves
only once it reads the caption, finds the name's slot and matches the slot to references. Captions
alone teach an encoder to read in a minute of one core, and references take its output at their
subject's name (`Segment.names_from`).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from uvit_jax import described_names
from uvit_jax.data.dataset import Dataset
from uvit_jax.errors import UvitError
from uvit_jax.models.cost import count
from uvit_jax.tokens.modalities.text import Text
from uvit_jax.training.dropping import permutations, renamed
from uvit_jax.training.run_config import TextPretrainingConfig

CAPTIONS = 2**12
"""The most captions that are read, in the order of the data."""


class Captions(NamedTuple):
    """Captions and what they state of their subjects.

    Attributes:
      ids_NT: token ids. named_NST: float, which tokens name which subject.
      facts_NSF: the class of each fact of each named subject, -1 where there is none; F = 0 if the
        data do not say.
      classes: the number of classes of each fact.
    """

    ids_NT: np.ndarray
    named_NST: np.ndarray
    facts_NSF: np.ndarray
    classes: tuple[int, ...]


class CaptionModel(nnx.Module):
    """An encoder without its projection, and linear outputs: (B, T) → (B, T, outputs)."""

    def __init__(self, segment: Text, outputs: int, *, rngs: nnx.Rngs):
        width = segment.encoder_width
        segment = dataclasses.replace(segment, attributes=())  # not part of the encoder
        self.embedding = segment.embedding(width, dtype=jnp.float32, rngs=rngs)
        self.output = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        features_BTE = self.embedding.encoder.features(self.embedding.table(ids_BT))
        return self.output(features_BTE)


def facts_loss(logits_BTO: jax.Array, batch: Captions) -> jax.Array:
    """The sum over facts of the mean cross-entropy, from the output at each name."""
    logits_BSO = jnp.einsum("bst,bto->bso", batch.named_NST, logits_BTO)
    bounds = np.cumsum(batch.classes)[:-1]
    loss = 0.0
    for f, logits in enumerate(jnp.split(logits_BSO, bounds.tolist(), axis=-1)):
        label_BS = batch.facts_NSF[..., f]
        losses_BS = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.maximum(label_BS, 0)
        )
        loss += _mean(losses_BS, label_BS >= 0)
    return loss


def neighbours_loss(logits_BTO: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """The mean over words of the Kullback–Leibler divergence to the words before and after them;
    where there are none, to id 0."""
    words_BT = ids_BT != 0
    before, after = jnp.split(logits_BTO, 2, axis=-1)
    one_BTV = jax.nn.one_hot(ids_BT, before.shape[-1]) * words_BT[..., None]
    until_BTV = jnp.cumsum(one_BTV, axis=1)
    loss = 0.0
    for logits, counts in (
        (before, until_BTV - one_BTV),
        (after, until_BTV[:, -1:] - until_BTV),
    ):
        counts = counts.at[..., 0].set(counts.sum(-1) == 0)
        target = counts / counts.sum(-1, keepdims=True)
        loss += _mean(optax.kl_divergence(jax.nn.log_softmax(logits), target), words_BT)
    return loss


def pretrained(
    config: TextPretrainingConfig,
    segment: Text,
    dataset: Dataset,
    *,
    seed: int,
) -> tuple[dict[str, Any], float]:
    """The parameters of a text segment's embedding after training on a data set's captions.

    Subjects' names are exchanged at random (`Text.names`), so that none has a meaning of its own.
    The result depends on the config, the segment's encoder, the captions and the seed only: models
    of different widths get the same encoder.

    Returns:
      (parameters, without the projection; the mean loss of the last tenth of the steps).

    Raises:
      UvitError: if the data have no captions as token ids, or do not say what they state.
    """
    captions = read_captions(config, segment, dataset)
    rngs = nnx.Rngs(seed)
    words = 2 * segment.vocab_size
    graph, state = nnx.split(CaptionModel(segment, words + sum(captions.classes), rngs=rngs))
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.adamw(schedule, b2=0.99, weight_decay=0.01)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(state, opt_state, key, arrays):
        batch = Captions(*arrays, captions.classes)
        order_BS = permutations(key, len(batch.ids_NT), len(segment.names))
        ids_BT = renamed(order_BS, {"text": batch.ids_NT}, {"text": segment.names})["text"]

        def loss(state):
            logits_BTO = nnx.merge(graph, state)(ids_BT)
            total = neighbours_loss(logits_BTO[..., :words], ids_BT)
            return total + facts_loss(logits_BTO[..., words:], batch) if config.facts else total

        value, grads = jax.value_and_grad(loss)(state)
        updates, opt_state = optimizer.update(grads, opt_state, state)
        return optax.apply_updates(state, updates), opt_state, value

    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    opt_state, losses = optimizer.init(state), []
    for i in range(config.steps):
        rows = rng.integers(len(captions.ids_NT), size=config.batch_size)
        arrays = [a[rows] for a in captions[:3]]
        state, opt_state, value = step(state, opt_state, jax.random.fold_in(key, i), arrays)
        losses.append(value)
    params = jax.device_get(nnx.to_pure_dict(state["embedding"]))
    del params["encoder"]["proj"]
    return params, float(np.mean(jax.device_get(losses[-max(1, config.steps // 10) :])))


def read_captions(config: TextPretrainingConfig, segment: Text, dataset: Dataset) -> Captions:
    """The data's first captions.

    Raises:
      UvitError: as `pretrained`.
    """
    if dataset.tokenizer is None:
        raise UvitError(
            "config.text_pretraining needs captions; set config.data.text=True, or steps=0"
        )
    records = [dataset.source[i] for i in range(min(len(dataset), CAPTIONS))]
    texts = [(*record["captions"], "")[0] for record in records]
    length, S = segment.shape[0], len(segment.names)
    ids_NT = np.stack([dataset.tokenizer.encode(t, length, truncate=True) for t in texts])
    ids_NT = described_names.plain(ids_NT, segment.names or (0,), np)
    named_NST = np.zeros((len(texts), 0, length), np.float32)
    if S:
        named_NST = np.asarray(segment.names_in({segment.name: jnp.asarray(ids_NT)}))
    facts = [record.get("facts", ()) for record in records]
    F = max((len(fact) for one in facts for fact in one), default=0)
    if not config.facts:
        F = 0
    elif not (F and S):
        raise UvitError(
            "config.text_pretraining.facts=True needs records with `facts`, and names in "
            f"config.model.segments.{segment.name}; set it to False"
        )
    values = [sorted({fact[f] for one in facts for fact in one}) for f in range(F)]
    facts_NSF = np.full((len(texts), S, F), -1, np.int32)
    for n, one in enumerate(facts):
        for s, fact in enumerate(one[:S]):
            facts_NSF[n, s] = [values[f].index(fact[f]) for f in range(F)]
    return Captions(ids_NT, named_NST, facts_NSF, tuple(len(v) for v in values))


def with_encoder(params: Any, name: str, encoder: dict[str, Any]) -> Any:
    """A model's parameters with those of a pretrained encoder in its text segment `name`."""
    embed = params["embed"]
    own = embed["segments"][name]
    new = own | encoder | {"encoder": own["encoder"] | encoder["encoder"]}
    return params | {"embed": embed | {"segments": embed["segments"] | {name: new}}}


def flops(config: TextPretrainingConfig, segment: Text) -> float:
    """The FLOPs of the pretraining without its outputs: three forward passes per caption, two per
    multiply-add."""
    graph, state = nnx.split(nnx.eval_shape(lambda: CaptionModel(segment, 1, rngs=nnx.Rngs(0))))
    ids = jax.ShapeDtypeStruct((1, *segment.shape), jnp.int32)
    traced = jax.make_jaxpr(lambda state, ids: nnx.merge(graph, state)(ids))(state, ids)
    return 6.0 * count(traced.jaxpr).total * config.batch_size * config.steps


def _mean(values_BT: jax.Array, chosen_BT: jax.Array) -> jax.Array:
    return jnp.sum(values_BT * chosen_BT) / jnp.maximum(chosen_BT.sum(), 1)
