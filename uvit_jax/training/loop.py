"""The training loop around the pure step: data in; checkpoints, metrics and samples out.

All side effects are here; `step.py` has the computation. A run that is killed and restarted gives
the losses of an undisturbed one.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from uvit_jax.autoencoders.encoded_dataset import EncodedDataset, open_data
from uvit_jax.config import to_dict
from uvit_jax.data import pipeline
from uvit_jax.data.batches import batches
from uvit_jax.data.buckets import BucketOrder
from uvit_jax.data.dataset import Dataset
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.models.cost import forward_cost
from uvit_jax.models.model import Model, Params, build
from uvit_jax.parallel import cpu, distributed
from uvit_jax.parallel.attention.implementations import check_platform
from uvit_jax.parallel.distributed import StopSignal
from uvit_jax.parallel.mesh import make_mesh
from uvit_jax.parallel.rows import global_array, local_rows
from uvit_jax.training.binding_probe import make_probe
from uvit_jax.training.check_data import sized_models
from uvit_jax.training.checkpoint import Checkpointer
from uvit_jax.training.clock import Clock
from uvit_jax.training.initial import initialised, read_initial, with_words
from uvit_jax.training.metrics_writer import MetricsWriter, read_metrics
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.profile import Profiler
from uvit_jax.training.run_config import (
    RunConfig,
    TrainConfig,
    check_memory,
    check_mesh,
    pretraining_data,
)
from uvit_jax.training.sample_grid import SampleGrid
from uvit_jax.training.state import TrainState, init_state
from uvit_jax.training.step import jit_step, make_step
from uvit_jax.training.teacher import from_teacher, load_teacher, resized_as
from uvit_jax.training.text_pretraining import pretrained, with_encoder
from uvit_jax.training.validation import make_validations
from uvit_jax.training.wandb_writer import WandbWriter
from uvit_jax.training.workdir import Workdir

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of a run.

    Attributes:
      step, loss: the last step and its loss.
      stopped: whether it was stopped by a signal, with a checkpoint.
      seconds, seconds_by_place: wall time, and its parts (see `Clock`).
      samples: path of the last grid of samples; empty if there is none.
    """

    step: int
    loss: float
    stopped: bool
    seconds: float
    seconds_by_place: dict[str, float]
    samples: str


def train(run: RunConfig, workdir: str | os.PathLike) -> Summary:
    """Trains until `run.train.steps`, resuming from the newest checkpoint in `workdir`.

    Args:
      run: the parsed config.
      workdir: a new or empty folder, or the run directory of the same config.

    Returns:
      A `Summary`; it has `stopped=True` after SIGTERM, SIGINT or SIGHUP, with a checkpoint
      saved.

    Raises:
      UvitError: if config, data, mesh and workdir do not fit each other (nothing is overwritten),
        or a loss is not finite (the last good checkpoint stays).
    """
    clock, train = Clock(), run.train
    config = json.loads(json.dumps(to_dict(run)))
    with contextlib.ExitStack() as stack:
        # Open: everything that can be wrong is found before anything is written or compiled.
        folder = stack.enter_context(contextlib.closing(Workdir(workdir)))
        folder.check(config)
        cpu.keep_freed_memory()
        mesh = make_mesh(run.mesh)
        check_mesh(run, mesh)
        check_platform(run.model.backbone.attention, mesh.devices.flat[0].platform)
        model = build(run.model)
        dataset = open_data(run.data)
        initial = None
        if train.init_from and not folder.steps:
            initial = read_initial(run, model)
        if train.init_from:
            stored = initial.vocabulary if initial else folder.read_vocabulary()
            dataset = with_words(dataset, run, stored)
        models = sized_models(model, dataset)
        for sized in models.values():
            check_memory(run, sized, mesh)
        vocabulary = Vocabulary(dataset.class_names, dataset.tokenizer, dataset.features)
        teacher = load_teacher(run, model, vocabulary, mesh) if train.teacher else None
        measures = _measures(run, model, dataset, mesh)
        first = dataset.one_size(dataset.sizes[0])
        sample_grid = SampleGrid(model, run, first, vocabulary, mesh, folder)
        main = jax.process_index() == 0
        if main:
            folder.create(config, vocabulary)
            logger.info("%s: checkpoints, metrics, and images in samples/", folder.path)
            _log_buckets(run, dataset)

        # Restore or initialise.
        stack.enter_context(jax.set_mesh(mesh))
        optimizer, learning_rate = make_optimizer(run.optimizer, train)
        state, shardings = init_state(model, optimizer, jax.random.key(run.seed), mesh)
        stop = StopSignal()
        stack.callback(stop.close)  # after all that saves has been closed
        checkpointer = Checkpointer(folder.path, train.keep_checkpoints)
        stack.callback(clock.timed("checkpoint", checkpointer.close))
        restored = checkpointer.restore(state, shardings)
        state, position = restored or (state, 0)
        start = int(state.step)
        if not restored and train.init_from:
            initial = initial or read_initial(run, model)  # no checkpoint was complete
            state = initialised(state, shardings, run, model, initial)
            del initial
        if not restored and run.text_pretraining.steps:
            state = _with_text_encoder(run, state, shardings)
        if main:
            logger.info(
                "%s on %d %s device(s), %s at step %d",
                model,
                mesh.size,
                mesh.devices.flat[0].platform,
                "resuming" if restored else "starting",
                start,
            )

        if teacher and not restored:
            state = from_teacher(state, teacher[1], shardings)
        steps = {}
        for size, sized in models.items():
            guide = teacher and (resized_as(sized, teacher[0]), *teacher[1:])
            step = make_step(sized, run, optimizer, learning_rate, vocabulary, guide)
            steps[size] = jit_step(step, shardings, mesh)
        compiled: dict[tuple[int, int], jax.stages.Compiled] = {}
        loader = Batches(run, model, dataset, mesh, position)
        stack.callback(loader.close)
        profiler = Profiler(train.profile_steps, folder.profile, start)
        stack.callback(profiler.close)
        flops = 6 * _forward_cost(run, dataset, models)
        if isinstance(dataset, EncodedDataset):
            flops += 2 * dataset.macs
        writer = _writer(run, folder, 1e-12 * flops / mesh.size, start) if main else None
        monitor = Monitor(train, writer, clock, dataset)
        stack.callback(monitor.close)
        stack.enter_context(_lost_processes())
        clock.started()

        def save() -> None:
            monitor.flush()
            with clock.at("checkpoint"):
                checkpointer.save(state, loader.position)
                folder.upload()

        def sample(step: int) -> None:
            with clock.at("sample"):
                sample_grid(state.ema, step)
                monitor.images(step, sample_grid.files)

        # Train. A step's metrics are read only once the next step has been dispatched, so that the
        # devices never wait for the host; a state is saved only after its own have been checked.
        stopped = False
        for step in range(start + 1, train.steps + 1):
            profiler.before(step, state)
            with profiler.step(step):
                try:
                    with clock.at("input"):
                        batch, indices, size = next(loader)
                except UvitError as error:  # such as an image that cannot be decoded
                    # Several processes cannot save: the others wait in the step for this one.
                    if step == start + 1 or jax.process_count() > 1:
                        raise
                    save()
                    raise UvitError(
                        f"{error}. Step {step - 1} is saved: run the same command to resume"
                    ) from None
                if size not in compiled:
                    with clock.at("compile"):
                        compiled[size] = steps[size].lower(state, batch).compile()
                if step == start + 1:
                    stop.listen()  # before the first step there is nothing to save
                state, metrics = compiled[size](state, batch)
            profiler.after(step, state)
            for every, measure in measures:
                if step % every == 0 or step == train.steps:
                    with clock.at("sample"):
                        metrics |= measure(state.ema)
            monitor.add(step, metrics, indices, wait=step == start + 1)

            last, stopping = step == train.steps, stop.requested(step)
            if last or stopping or step % train.checkpoint_every == 0:
                save()
            if stopping:
                stopped = True
                break
            if last or (train.sample_every and step % train.sample_every == 0):
                monitor.flush()
                sample(step)

        step, loss = int(state.step), monitor.loss
        if start >= train.steps:  # nothing was left to do
            loss = _last_loss(folder) if main else loss
            if sample_grid.last_step != step:
                sample(step)
    seconds = clock.total()
    last_grid = folder.address(sample_grid.last) if sample_grid.last else ""
    return Summary(step, loss, stopped, sum(seconds.values()), seconds, last_grid)


class Monitor:
    """Checks and logs the metrics of steps, one step late.

    Args:
      writer: of process 0, None on others.
      dataset: of the batches, to tell data that are not finite from a diverging run.
    """

    def __init__(
        self, train: TrainConfig, writer: MetricsWriter | None, clock: Clock, dataset: Dataset
    ):
        self.loss = math.nan
        self._dataset = dataset
        self._train, self._writer, self._clock = train, writer, clock
        self._pending: list[tuple[int, Any, list[int]]] = []

    def add(self, step: int, metrics: Any, indices: list[int], *, wait: bool = False) -> None:
        """Takes a step's metrics and processes those of the step before; with `wait` its own too.

        Raises:
          UvitError: if a loss or gradient norm is not finite, naming the step and its records.
        """
        self._pending.append((step, metrics, indices))
        self._process(keep=0 if wait else 1)

    def flush(self) -> None:
        """Processes all metrics; raises as `add` does."""
        self._process(keep=0)

    def images(self, step: int, files: Mapping[str, Path]) -> None:
        """Logs grids of samples, by segment."""
        if self._writer is not None:
            for name, file in files.items():
                self._writer.image(step, f"samples/{name}", file)

    def close(self) -> None:
        """Closes the writer."""
        if self._writer is not None:
            self._writer.close()

    def _process(self, keep: int) -> None:
        while len(self._pending) > keep:
            step, metrics, indices = self._pending.pop(0)
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            self.loss = values["loss"]
            if not (math.isfinite(self.loss) and math.isfinite(values["grad_norm"])):
                raise UvitError(
                    f"the loss of step {step} is {self.loss} and its gradient norm "
                    f"{values['grad_norm']}; the batch had the records {indices}. Checkpoints are "
                    f"of good steps before; {self._remedy(indices)}"
                )
            if self._writer is not None:
                self._writer.advance(step)
                if step % self._train.log_every == 0 or step in (1, self._train.steps):
                    self._writer.write(step, values, self._clock.lap())

    def _remedy(self, indices: list[int]) -> str:
        """What to do about a loss that is not finite, after a look at the data of its batch."""
        for name, value in self._dataset.batch(indices).items():
            if not np.issubdtype(np.asarray(value).dtype, np.floating):
                continue
            finite = np.isfinite(value).reshape(len(indices), -1).all(axis=1)
            if not finite.all():
                broken = [i for i, good in zip(indices, finite, strict=True) if not good]
                return (
                    f"{name!r} of the records {broken} is not finite: repair or remove them in "
                    "the data, and rerun the same command to resume"
                )
        return "lower config.optimizer.learning_rate or set config.optimizer.clip_norm"


class Batches:
    """Global batches of a model's inputs, on the devices, with the indices of their records and the
    size (H, W) of their images."""

    def __init__(self, run: RunConfig, model: Model, dataset: Dataset, mesh: Mesh, position: int):
        self._layout, self._dataset = model.layout, dataset
        self._mesh, self._batch_size = mesh, run.train.batch_size
        self._rows = local_rows(mesh, run.train.batch_size)
        self._iterator = batches(
            dataset,
            batch_size=run.train.batch_size,
            seed=run.seed,
            rows=self._rows,
            start=position,
        )

    @property
    def position(self) -> int:
        """The number of global batches taken so far."""
        return self._iterator.position

    def close(self) -> None:
        """Stops the workers."""
        self._iterator.close()

    def __next__(self) -> tuple[dict[str, jax.Array], list[int], tuple[int, int]]:
        local = next(self._iterator)
        records = np.asarray(local["index"]).tolist()
        try:
            self._layout.check_ids(local)
        except UvitError as error:
            raise UvitError(f"in the batch of the records {records}, {error}") from None
        batch = {
            name: global_array(local[name], self._rows, self._batch_size, self._mesh)
            for name in self._layout.inputs_in(local)
        }
        return batch, records, self._dataset.size_of(records[0])


def _with_text_encoder(run: RunConfig, state: TrainState, shardings: TrainState) -> TrainState:
    """A fresh state with the pretrained encoder in its parameters and their average."""
    config = run.text_pretraining
    segment = run.model.segments[config.segment]
    began = time.perf_counter()
    dataset = pipeline.dataset(pretraining_data(run))
    encoder, loss = pretrained(config, segment, dataset, seed=run.seed)
    logger.info(
        "text encoder: %d steps on captions, loss %.4f, %.0f s",
        config.steps,
        loss,
        time.perf_counter() - began,
    )
    trees = {
        key: jax.device_put(
            with_encoder(getattr(state, key), segment.name, encoder), getattr(shardings, key)
        )
        for key in ("params", "ema")
    }
    return dataclasses.replace(state, **trees)


def _measures(
    run: RunConfig, model: Model, dataset: Dataset, mesh: Mesh
) -> list[tuple[int, Callable[[Params], dict[str, float]]]]:
    """The functions from averaged parameters to metrics, each with its interval in steps."""
    measures = []
    if run.train.probe_every:
        measures.append((run.train.probe_every, make_probe(run, model, mesh, dataset.tokenizer)))
    if run.validation.every:
        measures.append((run.validation.every, make_validations(run, model, dataset, mesh)))
    return measures


def _log_buckets(run: RunConfig, dataset: Dataset) -> None:
    if dataset.buckets is None:
        return
    sizes = [f"{'×'.join(map(str, size))}: {n}" for size, n in dataset.counts().items()]
    order = BucketOrder(dataset.buckets, batch_size=run.train.batch_size, seed=0)
    batches = order.batches_before(1)
    logger.info(
        "examples by size: %s; %d batches in the first epoch, and %d examples that wait for more "
        "of their size in the second",
        ", ".join(sizes),
        batches,
        len(dataset) - batches * run.train.batch_size,
    )


def _forward_cost(
    run: RunConfig, dataset: Dataset, models: Mapping[tuple[int, int], Model]
) -> float:
    """The operations of a model for an example, on average over the sizes."""
    counts = dataset.counts()
    costs = [
        forward_cost(sized, draws=run.train.draws).total * counts[size]
        for size, sized in models.items()
    ]
    return sum(costs) / len(dataset)


def _writer(run: RunConfig, folder: Workdir, tflops: float, start: int) -> MetricsWriter:
    sinks = []
    if run.train.wandb:
        sinks.append(WandbWriter(run.train.wandb, folder.outputs, to_dict(run)))
    return MetricsWriter(
        folder.metrics,
        start=start,
        steps=run.train.steps,
        batch_size=run.train.batch_size,
        tflops=tflops,
        sinks=sinks,
    )


@contextlib.contextmanager
def _lost_processes():
    """Ends this process with one line if an error says that another process was lost."""
    try:
        yield
    except Exception as error:
        distributed.end_if_lost(error)
        raise


def _last_loss(folder: Workdir) -> float:
    rows = read_metrics(folder.metrics) if folder.metrics.exists() else []
    return rows[-1]["loss"] if rows else math.nan
