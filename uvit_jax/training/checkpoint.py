"""Checkpoints, through Orbax: asynchronous, atomic, restored onto any mesh. All of Orbax is here.

A checkpoint holds the train state and the data's position, in batches, so that a resumed run
sees the examples it would have seen, also on another number of hosts.
"""

import functools
import gc
import logging
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from uvit_jax.errors import UvitError
from uvit_jax.models.model import Model, Params, build
from uvit_jax.models.model_config import parse_model
from uvit_jax.training.state import TrainState
from uvit_jax.training.workdir import Workdir

logger = logging.getLogger(__name__)


class Checkpointer:
    """The checkpoints of a workdir.

    Args:
      workdir: they live in its folder `checkpoints`, one folder a step.
      keep: how many of the newest stay.
    """

    def __init__(self, workdir: Path, keep: int):
        self._workdir = Workdir(workdir)
        self._orbax = ocp.training.Checkpointer(
            self._workdir.checkpoints.absolute(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def save(self, state: TrainState, position: int) -> None:
        """Starts saving; the state may be donated to the next step as soon as this returns."""
        step = int(state.step)
        if any(c.step == step for c in self._orbax.checkpoints):
            return
        items = dict(state=_as_dict(state), data={"position": position})
        self._orbax.save_checkpointables_async(step, items, force=True)

    def restore(self, like: TrainState, where: TrainState) -> tuple[TrainState, int] | None:
        """The newest whole checkpoint as (state, data position), or None if there is none.

        One that cannot be read is reported, moved to the workdir's `broken_checkpoints`, and the
        one before it is taken.

        Args:
          like: a state of the same shapes. where: the shardings to restore onto.
        """
        abstract = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), like, where
        )
        broken: list[tuple[int, Exception | None]] = []
        for checkpoint in reversed(self._orbax.checkpoints):
            items = dict(state=_as_dict(abstract), data=None)
            loaded, problem = _attempt(
                functools.partial(self._orbax.load_checkpointables, checkpoint.step, items)
            )
            if _all_processes(problem is None):
                for step, reason in broken:
                    self._put_aside(step, reason, checkpoint.step)
                return TrainState(**loaded["state"]), int(loaded["data"]["position"])
            broken.append((checkpoint.step, problem))
        if broken:
            step, problem = broken[0]
            raise UvitError(
                f"no checkpoint in {self._workdir.checkpoints} can be read "
                f"({len(broken)} tried; {step}: {_first_line(problem)}); "
                "give another --workdir to start afresh"
            )
        return None

    def close(self) -> None:
        """Waits for the last save."""
        self._orbax.close()

    def _put_aside(self, step: int, problem: Exception | None, instead: int) -> None:
        target = self._workdir.path / "broken_checkpoints" / str(step)
        while target.exists():
            target = target.with_name(target.name + "_")
        logger.warning(
            "checkpoint %d cannot be read (%s); going on from %d. The broken one is now %s",
            step,
            _first_line(problem),
            instead,
            target,
        )
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            shutil.move(self._workdir.checkpoints / str(step), target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("a broken checkpoint is put aside")
        self._orbax.reload()


def load_workdir(path: Path, *, step: int | None, ema: bool) -> tuple[Model, Params]:
    """A workdir's model and parameters, as numpy arrays; see `uvit_jax.load`."""
    workdir = Workdir(path)
    config = workdir.read_config()
    model = build(parse_model(config["model"], f"{path / 'config.json'}: model"))
    folder, steps = workdir.checkpoints, workdir.steps
    if step is not None:
        if step not in steps:
            raise UvitError(f"{folder} has no checkpoint {step}; it has {steps}")
        steps = [step]
    name = "ema" if ema else "params"
    cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=cpu), model.abstract_params
    )
    for candidate in reversed(steps):
        where = os.fspath((folder / str(candidate)).absolute())

        def load_one(where: str = where) -> Params:
            stored = ocp.checkpointables_metadata(where).metadata["state"]
            partial = jax.tree.map(lambda _: ocp.PLACEHOLDER, stored) | {name: abstract}
            loaded = ocp.load_checkpointables(where, dict(state=partial))
            return jax.tree.map(np.asarray, loaded["state"][name])

        params, problem = _attempt(load_one)
        if problem is None:
            return model, params
        if step is None:
            logger.warning("checkpoint %d cannot be read (%s)", candidate, _first_line(problem))
    if not steps:
        raise UvitError(f"{folder} holds no checkpoint yet")
    raise UvitError(f"no checkpoint in {folder} can be read: {_first_line(problem)}")


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in TrainState.__dataclass_fields__}


def _all_processes(ok: bool) -> bool:
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(np.asarray(ok)).all())


def _first_line(problem: Exception | None) -> str:
    if problem is None:
        return "on another process"
    while problem.__cause__ is not None:  # the deepest cause names the file
        problem = problem.__cause__
    text = str(problem).strip() or type(problem).__name__
    return text.splitlines()[0][:200]


def _attempt(load: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """(what `load` returns, None), or (None, what went wrong).

    Orbax tells of a broken file in pages of logs, and in tracebacks from threads that it leaves
    behind; the caller tells it in a sentence, so all that is kept from the screen.
    """
    loggers = [logging.getLogger(name) for name in ("asyncio", "absl", "orbax")]
    levels = [each.level for each in loggers]
    hooks = (sys.excepthook, sys.unraisablehook, threading.excepthook)
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    sys.excepthook = sys.unraisablehook = threading.excepthook = lambda *_: None
    try:
        with warnings.catch_warnings(action="ignore"):
            try:
                return load(), None
            except Exception as error:  # whatever the damage provokes
                problem = error
            # What is left behind complains a moment later, when it is collected; tracebacks would
            # keep it alive until hooks are back.
            time.sleep(0.5)
            each_problem: BaseException | None = problem
            while each_problem is not None:
                each_problem.__traceback__ = None
                each_problem = each_problem.__cause__ or each_problem.__context__
            gc.collect()
            return None, problem
    finally:
        sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
