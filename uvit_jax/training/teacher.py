"""The frozen teacher of a run that distills guidance or a flow (`distill`, `mean_flow`)."""

import dataclasses

import jax
from jax.sharding import Mesh

from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.errors import UvitError
from uvit_jax.models.model import Model, Params
from uvit_jax.parallel.sharding import path_string, shardings
from uvit_jax.training.load import load
from uvit_jax.training.run_config import RunConfig
from uvit_jax.training.state import TrainState
from uvit_jax.training.stored_run import open_run


def load_teacher(
    run: RunConfig, model: Model, vocabulary: Vocabulary, mesh: Mesh
) -> tuple[Model, Params, ObjectiveConfig]:
    """The model of `run.train.teacher`, its averaged parameters, on the devices, and its objective.

    Raises:
      UvitError: if it cannot be loaded, or has other inputs, words, classes, schedule, prediction
        or shared noise than the run; or if there are several processes.
    """
    where = f"config.train.teacher={run.train.teacher!r}"
    if jax.process_count() > 1:
        raise UvitError(f"{where} is not supported on several processes; use one host")
    try:
        stored = open_run(run.train.teacher)
        theirs = stored.read_run().diffusion
        teacher, params = load(stored.path)
    except UvitError as error:
        raise UvitError(
            f"{where}: {error}; train it first (for configs/few_steps.py, configs/quickstart.py), "
            "or give another run"
        ) from None
    schedules = [run.diffusion.schedule, theirs.schedule]
    if run.diffusion.objective == "mean_flow":  # whose own times change slowly
        schedules = [dataclasses.replace(s, time_scale=None) for s in schedules]
    for what, ours, other in (
        ("inputs", model.layout.input_shapes, teacher.layout.input_shapes),
        ("classes and words", vocabulary.to_json(), stored.read_vocabulary().to_json()),
        ("schedule", *schedules),
        ("prediction", run.diffusion.prediction, theirs.prediction),
        ("shared_noise", run.diffusion.shared_noise, theirs.shared_noise),
    ):
        if ours != other:
            raise UvitError(f"{where} has other {what} than this run; make them equal")
    return teacher, jax.device_put(params, shardings(params, mesh)), theirs


def resized_as(model: Model, teacher: Model) -> Model:
    """The teacher for images of the size of a student's."""
    ours = {s.name: s.shape for s in model.layout.noisy_images}
    theirs = {s.name: s.shape for s in teacher.layout.noisy_images}
    return teacher if ours == theirs else teacher.resized(ours)


def from_teacher(state: TrainState, params: Params, where: TrainState) -> TrainState:
    """A fresh state that starts from a teacher's parameters, where it has them in the same shape;
    others, such as those of the token of guidance, keep their initial values.

    Args:
      where: the state's shardings.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    known = {path_string(path): leaf for path, leaf in leaves}

    def started(path, own: jax.Array) -> jax.Array:
        leaf = known.get(path_string(path))
        return own if leaf is None or leaf.shape != own.shape else leaf

    # Copies, since the train step donates its state.
    def tree(shardings):
        mapped = jax.tree_util.tree_map_with_path(started, state.params)
        return jax.tree.map(lambda a, s: jax.device_put(a.copy(), s), mapped, shardings)

    return dataclasses.replace(state, params=tree(where.params), ema=tree(where.ema))
