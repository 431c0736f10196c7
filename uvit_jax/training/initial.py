"""The parameters and words of a stored run, from which a run starts (`config.train.init_from`)."""

import dataclasses
import logging

import jax
import numpy as np

from uvit_jax.data.dataset import Dataset
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.errors import UvitError
from uvit_jax.models.model import Model
from uvit_jax.parallel.sharding import path_string
from uvit_jax.training.load import load
from uvit_jax.training.run_config import RunConfig
from uvit_jax.training.state import TrainState
from uvit_jax.training.stored_run import open_run

logger = logging.getLogger(__name__)


def with_stored_words(dataset: Dataset, run: RunConfig) -> Dataset:
    """The data with the words of `run.train.init_from`, which keep their ids, before its own.

    Raises:
      UvitError: if the stored run has other classes, or there are more words than the model's
        `vocab_size` has room for.
    """
    where = f"config.train.init_from={run.train.init_from!r}"
    stored = open_run(run.train.init_from).read_vocabulary()
    if dataset.class_names and stored.classes and stored.classes != dataset.class_names:
        raise UvitError(
            f"{where} has other classes than the data; train on data with the same classes, or "
            "without labels"
        )
    if dataset.tokenizer is None or stored.tokenizer is None:
        return dataset
    known = stored.tokenizer
    new = [word for word in dataset.tokenizer.words if word not in known.words]
    tokenizer = Tokenizer((*known.words, *new), known.attributes)
    for name, segment in run.model.segments.items():
        if segment.kind == "text" and segment.vocab_size < tokenizer.vocab_size:
            raise UvitError(
                f"{where} has {len(known.words)} words and the data {len(new)} more; set "
                f"config.model.segments.{name}.vocab_size to at least {tokenizer.vocab_size}"
            )
    return dataset.with_tokenizer(tokenizer)


def initialised(state: TrainState, where: TrainState, run: RunConfig, model: Model) -> TrainState:
    """A fresh state with the averaged parameters of `run.train.init_from`.

    Parameters that the stored run does not have keep their random values. So do the rows of a
    text's tables beyond the stored ones: those of new words and of further positions.

    Args:
      where: the state's shardings.

    Raises:
      UvitError: if the stored run cannot be loaded, or a parameter has another shape there.
    """
    given = f"config.train.init_from={run.train.init_from!r}"
    _, params = load(open_run(run.train.init_from).path)
    stored = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    names = [path_string(p) for p, _ in jax.tree_util.tree_leaves_with_path(state.params)]
    if not stored.keys() & set(names):
        raise UvitError(f"{given} has none of this run's parameters; give the run its config.model")
    texts = tuple(s.name for s in model.layout.inputs if s.kind == "text")
    fresh = []

    def started(path, own: jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
        name = path_string(path)
        if name not in stored:
            fresh.append(name)
            return own.copy()
        leaf = np.asarray(stored[name], own.dtype)
        if leaf.shape == own.shape:
            return jax.make_array_from_callback(own.shape, sharding, lambda index: leaf[index])
        rows = len(leaf) if leaf.ndim else 0
        longer = leaf.shape[1:] == own.shape[1:] and rows < (own.shape or (0,))[0]
        if not (longer and _is_text_table(name, texts)):
            raise UvitError(
                f"{given}: the parameter {name} is {leaf.shape} there and {own.shape} in this run; "
                "give the run the stored run's config.model"
            )
        fresh.append(f"{name}[{rows}:]")
        return jax.jit(lambda a: a.at[:rows].set(leaf), out_shardings=sharding)(own)

    def tree(shardings):
        fresh.clear()
        return jax.tree_util.tree_map_with_path(started, state.params, shardings)

    state = dataclasses.replace(state, params=tree(where.params), ema=tree(where.ema))
    logger.info(
        "initialised from %s%s",
        run.train.init_from,
        f"; random: {', '.join(fresh)}" if fresh else "",
    )
    return state


def _is_text_table(name: str, texts: tuple[str, ...]) -> bool:
    """Whether the rows of a parameter belong to words or positions of a text."""
    return any(
        name == f"embed/positions/{text}"
        or (
            name.startswith(f"embed/segments/{text}/")
            and name.endswith(("table/embedding", "encoder/positions"))
        )
        for text in texts
    )
