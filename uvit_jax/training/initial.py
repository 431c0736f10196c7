"""The parameters and words of a stored run, from which a run starts (`config.train.init_from`)."""

import dataclasses
import logging
from collections.abc import Mapping

import jax
import numpy as np

from uvit_jax.data.dataset import Dataset
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.model import Model
from uvit_jax.parallel.sharding import path_string
from uvit_jax.training.load import load
from uvit_jax.training.run_config import RunConfig
from uvit_jax.training.state import TrainState
from uvit_jax.training.stored_run import open_run

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Initial:
    """A stored run that fits a new one.

    Attributes:
      vocabulary: its classes and words. params: its averaged parameters, by their path in the new
        run; those that the new one does not have are left out.
    """

    vocabulary: Vocabulary
    params: Mapping[str, np.ndarray]


def read_initial(run: RunConfig, model: Model) -> Initial:
    """Reads `run.train.init_from`, and checks it before anything is written.

    Raises:
      UvitError: if it cannot be loaded, has another prediction or schedule than the run, a
        parameter has another shape there, or a segment of `init_segments` does not exist.
    """
    where = _where(run)
    try:
        stored = open_run(run.train.init_from)
        their_run = stored.read_run()
        _, params = load(stored.path)
        vocabulary = stored.read_vocabulary()
    except UvitError as error:
        raise UvitError(
            f"{where}: {error}; give a workdir, a file of experiments.export_checkpoint, or "
            "shipped:NAME"
        ) from None
    for key in ("prediction", "schedule"):
        if (own := getattr(run.diffusion, key)) != (other := getattr(their_run.diffusion, key)):
            raise UvitError(
                f"{where} was trained with diffusion.{key}={other}, and this run has {own}; set "
                f"config.diffusion.{key} to that of the stored run"
            )
    for name, theirs in run.train.init_segments.items():
        _check_segment(run, name, name, run.model.segments, "this run")
        _check_segment(run, name, theirs, their_run.model.segments, "the stored run")
    own = _by_path(model.abstract_params)
    stored_params = _by_path(params)
    names = {name: _stored_name(run, name) for name in own}
    moved = {_segment(name) for name, there in names.items() if there in stored_params}
    for name, theirs in run.train.init_segments.items():
        if name not in moved:
            raise UvitError(
                f"config.train.init_segments.{name}={theirs!r}: the two have no parameters in "
                "common; name segments of one kind that have their own parameters (share='')"
            )
    initial = Initial(
        vocabulary,
        {name: stored_params[there] for name, there in names.items() if there in stored_params},
    )
    if not initial.params:
        raise UvitError(f"{where} has none of this run's parameters; give the run its config.model")
    for name, leaf in initial.params.items():
        _rows(run, model, name, leaf.shape, own[name].shape)
    return initial


def with_words(dataset: Dataset, run: RunConfig, stored: Vocabulary) -> Dataset:
    """The data with the words of a stored run, which keep their ids, before its own.

    Raises:
      UvitError: if the stored run has other classes or attributes of described names, or there are
        more words than the model's `vocab_size` has room for.
    """
    where = _where(run)
    if dataset.class_names and stored.classes and stored.classes != dataset.class_names:
        raise UvitError(
            f"{where} has other classes than the data; train on data with the same classes, or "
            "without labels"
        )
    if dataset.tokenizer is None or stored.tokenizer is None:
        return dataset
    known, own = stored.tokenizer, dataset.tokenizer
    if known.attributes and own.attributes and known.attributes != own.attributes:
        raise UvitError(
            f"{where} has subjects of other attributes than the data; set config.data.described=0.0"
        )
    new = sorted(set(own.words) - set(known.words), key=own.words.index)
    tokenizer = Tokenizer((*known.words, *new), known.attributes or own.attributes)
    for name, segment in run.model.segments.items():
        if segment.kind == "text" and segment.vocab_size < tokenizer.vocab_size:
            raise UvitError(
                f"{where} has {len(known.words)} words and the data {len(new)} more; set "
                f"config.model.segments.{name}.vocab_size to at least {tokenizer.vocab_size}"
            )
    return dataset.with_tokenizer(tokenizer)


def initialised(
    state: TrainState, where: TrainState, run: RunConfig, model: Model, initial: Initial
) -> TrainState:
    """A fresh state with the parameters of a stored run.

    Parameters that the stored run does not have keep their random values. So do the rows of a
    text's tables beyond the stored ones: those of new words and of further positions.

    Args:
      where: the state's shardings.
    """
    fresh: dict[str, None] = {}

    def started(path, own: jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
        name = path_string(path)
        if name not in initial.params:
            fresh[name] = None
            return own.copy()
        leaf = np.asarray(initial.params[name], own.dtype)
        rows = _rows(run, model, name, leaf.shape, own.shape)
        if rows is None:
            return jax.make_array_from_callback(own.shape, sharding, lambda index: leaf[index])
        fresh[f"{name}[{rows}:]"] = None
        return jax.jit(lambda a: a.at[:rows].set(leaf), out_shardings=sharding)(own)

    trees = {
        key: jax.tree_util.tree_map_with_path(started, state.params, getattr(where, key))
        for key in ("params", "ema")
    }
    rest = f"; random: {', '.join(fresh)}" if fresh else ""
    logger.info("initialised from %s%s", run.train.init_from, rest)
    return dataclasses.replace(state, **trees)


def _where(run: RunConfig) -> str:
    return f"config.train.init_from={run.train.init_from!r}"


def _check_segment(
    run: RunConfig, key: str, name: str, segments: Mapping[str, object], whose: str
) -> None:
    """Raises UvitError if `name`, of the entry `key` of init_segments, is not a segment."""
    if name not in segments:
        raise UvitError(
            f"config.train.init_segments.{key}={run.train.init_segments[key]!r}: {whose} has no "
            f"segment {name!r}{nearest(name, segments)}"
        )


def _stored_name(run: RunConfig, path: str) -> str:
    """The path of a parameter in the stored run: that of `embed/segments/video/…` is
    `embed/segments/image/…` with init_segments={"video": "image"}."""
    segment, parts = _segment(path), path.split("/")
    if segment in run.train.init_segments:
        parts[2] = run.train.init_segments[segment]
    return "/".join(parts)


def _segment(path: str) -> str:
    """The segment that a parameter is of; "" for none."""
    parts = path.split("/")
    return parts[2] if len(parts) > 2 and parts[1] in ("segments", "positions") else ""


def _by_path(tree) -> dict[str, jax.Array]:
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _rows(
    run: RunConfig, model: Model, name: str, stored: tuple[int, ...], own: tuple[int, ...]
) -> int | None:
    """How many rows of a parameter are stored, None for all.

    Raises:
      UvitError: if the shapes differ, and not in the words or positions of a text.
    """
    if stored == own:
        return None
    texts = [s.name for s in model.layout.inputs if s.kind == "text"]
    of_words = any(
        name == f"embed/positions/{text}"
        or (
            name.startswith(f"embed/segments/{text}/")
            and name.endswith(("table/embedding", "encoder/positions"))
        )
        for text in texts
    )
    if of_words and stored[1:] == own[1:] and stored[0] < own[0]:
        return stored[0]
    raise UvitError(
        f"{_where(run)}: the parameter {name} is {stored} there and {own} in this run; give the "
        "run the config.model of the stored run"
    )
