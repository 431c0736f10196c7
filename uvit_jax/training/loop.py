"""The loop around the pure step: data in, checkpoints, metrics and pictures out.

Everything that touches the world outside the program is here; what is learned is decided in
`step.py`. A run that is killed and started again goes on as if nothing had happened.
"""

import collections
import dataclasses
import logging
import math
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from uvit_jax.data import pipeline
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.models.cost import forward_cost
from uvit_jax.models.model import Model, build
from uvit_jax.parallel import cpu, distributed
from uvit_jax.parallel.attention.implementations import check_platform
from uvit_jax.parallel.distributed import StopSignal
from uvit_jax.parallel.mesh import make_mesh
from uvit_jax.parallel.rows import global_array, local_rows
from uvit_jax.sampling.conditions import nulls_of
from uvit_jax.training.check_data import check_data
from uvit_jax.training.checkpoint import Checkpointer
from uvit_jax.training.clock import Clock
from uvit_jax.training.dropping import slot_words
from uvit_jax.training.metrics_writer import MetricsWriter, read_metrics
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.profile import Profiler
from uvit_jax.training.run_config import RunConfig, check_mesh
from uvit_jax.training.sample_grid import Sampler
from uvit_jax.training.state import TrainState, init_state
from uvit_jax.training.step import jit_step, make_step
from uvit_jax.training.workdir import Workdir

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run came to.

    Attributes:
      step, loss: the last step and its loss.
      stopped: whether it was asked to stop before the end, and saved.
      seconds, seconds_by_place: that it took on the clock, and where they went (see `Clock`).
      samples: path of the last grid of samples, empty if there is none.
    """

    step: int
    loss: float
    stopped: bool
    seconds: float
    seconds_by_place: dict[str, float]
    samples: str


def train(run: RunConfig, raw: dict[str, Any], workdir: str | os.PathLike) -> Summary:
    """Trains until `run.train.steps`, going on from the newest whole checkpoint in `workdir`.

    Args:
      run: the parsed config. raw: the same as plain JSON, to be kept in the workdir.
      workdir: a new or empty folder, or one that the same config has made.

    Returns:
      A `Summary`. `stopped` is True if SIGTERM or SIGINT came; a checkpoint was saved then.

    Raises:
      UvitError: if the config, the data, the mesh and the workdir do not fit each other (nothing
        was overwritten), or the loss is not finite (the last good checkpoint stays).
    """
    folder = Workdir(workdir)
    try:
        return _train(run, raw, folder)
    finally:
        folder.close()


def _train(run: RunConfig, raw: dict[str, Any], folder: Workdir) -> Summary:
    clock = Clock()
    folder.check(raw)
    cpu.keep_freed_memory()
    mesh = make_mesh(run.mesh)
    check_mesh(run, mesh)
    check_platform(run.model.backbone.attention, mesh.devices.flat[0].platform)
    model = build(run.model)
    dataset = pipeline.dataset(run.data)
    check_data(model, dataset)
    vocabulary = Vocabulary(dataset.class_names, dataset.tokenizer, dataset.features)
    # Prompts and labels that cannot be drawn are better known now than at the first grid.
    draw = Sampler(model, run, dataset, vocabulary, mesh, folder)
    main = jax.process_index() == 0
    if main:
        folder.create(raw, vocabulary)

    optimizer, learning_rate = make_optimizer(run.optimizer, run.train)
    with jax.set_mesh(mesh):
        state, where = init_state(model, optimizer, jax.random.key(run.seed), mesh)
        checkpointer = Checkpointer(folder.path, run.train.keep_checkpoints)
        restored = checkpointer.restore(state, where)
        position = 0
        if restored is not None:
            state, position = restored
        start = int(state.step)
        if main:
            logger.info(
                "%s on %d %s device(s), %s at step %d",
                model,
                mesh.size,
                mesh.devices.flat[0].platform,
                "starting" if restored is None else "resuming",
                start,
            )
        nulls = nulls_of(model.layout, vocabulary)
        words = slot_words(model.layout, vocabulary.tokenizer) if run.train.permute_slots else {}
        step = make_step(model, run, optimizer, learning_rate, nulls, words)
        step_function = jit_step(step, where, mesh)
        batches = _Batches(run, model, dataset, mesh, position)
        writer = None
        if main:
            writer = MetricsWriter(
                folder.metrics,
                start=start,
                steps=run.train.steps,
                batch_size=run.train.batch_size,
                tflops=6e-12 * forward_cost(run.model).total / mesh.size,
            )
        profiler = Profiler(run.train.profile_steps, folder.profile, start)
        clock.started()
        try:
            with StopSignal() as stop:
                state, loss, stopped = _loop(
                    run,
                    state,
                    step_function,
                    batches,
                    checkpointer,
                    writer,
                    draw,
                    stop,
                    profiler,
                    clock,
                )
        except Exception as error:
            distributed.end_if_lost(error)
            raise
        finally:
            profiler.close()
            with clock.at("checkpoint"):
                checkpointer.close()
            if writer is not None:
                writer.close()
        step = int(state.step)
        if start >= run.train.steps and main:  # there was nothing left to do
            rows = read_metrics(folder.metrics) if folder.metrics.exists() else []
            loss = rows[-1]["loss"] if rows else loss
        if not stopped and draw.last_step != step:
            with clock.at("sample"):
                draw(state.ema, step)
    seconds = clock.total()
    return Summary(step, loss, stopped, sum(seconds.values()), seconds, str(draw.last or ""))


def _loop(
    run: RunConfig,
    state: TrainState,
    step_function: Any,
    batches: "_Batches",
    checkpointer: Checkpointer,
    writer: MetricsWriter | None,
    draw: Sampler,
    stop: StopSignal,
    profiler: Profiler,
    clock: Clock,
) -> tuple[TrainState, float, bool]:
    """Runs the steps. A step's numbers are looked at only once the next one is under way, so that
    the devices never wait for the host; what is saved has been looked at first."""
    train = run.train
    pending: collections.deque = collections.deque()
    loss = math.nan

    def look(keep: int) -> None:
        """Looks at all but the `keep` newest steps' numbers."""
        nonlocal loss
        while len(pending) > keep:
            step, metrics, indices = pending.popleft()
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            loss = values["loss"]
            if not (math.isfinite(loss) and math.isfinite(values["grad_norm"])):
                raise UvitError(
                    f"the loss of step {step} is {loss} and its gradient's norm "
                    f"{values['grad_norm']}; the batch held the records {indices}. Checkpoints "
                    "are of good steps before; lower config.optimizer.learning_rate or set "
                    "config.optimizer.clip_norm"
                )
            if writer is not None:
                writer.advance(step)
                if step % train.log_every == 0 or step in (1, train.steps):
                    writer.write(step, values, clock.lap())

    start = int(state.step)
    for step in range(start + 1, train.steps + 1):
        profiler.before(step, state)
        with profiler.step(step):
            with clock.at("input"):
                batch, indices = next(batches)
            if step == start + 1:
                with clock.at("compile"):
                    step_function = step_function.lower(state, batch).compile()
            state, metrics = step_function(state, batch)
        profiler.after(step, state)
        pending.append((step, metrics, indices))
        look(keep=0 if step == start + 1 else 1)
        stopping = stop.requested(step)
        last = step == train.steps
        sampling = bool(train.sample_every) and step % train.sample_every == 0
        if stopping or last or step % train.checkpoint_every == 0:
            look(keep=0)
            with clock.at("checkpoint"):
                checkpointer.save(state, batches.position)
        if stopping and not last:
            return state, loss, True
        if sampling or last:
            look(keep=0)
            with clock.at("sample"):
                draw(state.ema, step)
    look(keep=0)
    return state, loss, False


class _Batches:
    """Global batches of the model's inputs on the devices, and where in the data they stand."""

    def __init__(
        self, run: RunConfig, model: Model, dataset: pipeline.Dataset, mesh: Mesh, position: int
    ):
        self._layout = model.layout
        self._mesh, self._batch_size = mesh, run.train.batch_size
        self._rows = local_rows(mesh, run.train.batch_size)
        self._iterator = pipeline.batches(
            dataset,
            batch_size=run.train.batch_size,
            seed=run.seed,
            rows=self._rows,
            start=position,
        )
        self.position = position

    def __next__(self) -> tuple[dict[str, jax.Array], list[int]]:
        local = next(self._iterator)
        self.position += 1
        missing = [name for name in self._layout.input_shapes if name not in local]
        if missing:
            raise UvitError(
                f"the data bring no {missing[0]!r}, which the model needs; they bring "
                f"{', '.join(sorted(local))}"
            )
        batch = {
            name: global_array(local[name], self._rows, self._batch_size, self._mesh)
            for name in self._layout.inputs_in(local)
        }
        return batch, np.asarray(local["index"]).tolist()
