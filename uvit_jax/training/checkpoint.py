"""Checkpoints, through Orbax: asynchronous, atomic, restored onto any mesh.

A checkpoint holds the train state and the data's position in batches, so that a resumed run sees
the examples it would have seen, also with another number of hosts. No other file imports Orbax.
When a checkpoint is complete, process 0 adds `checksums.json`, the CRC-32 of each of its files.
A checkpoint without it, of an older version or a run killed right after saving, is not verified.
"""

import contextlib
import functools
import gc
import io
import json
import logging
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from uvit_jax.errors import UvitError
from uvit_jax.io import read_json, write_text
from uvit_jax.models.model import Model, Params, build
from uvit_jax.models.model_config import parse_model
from uvit_jax.remote import is_gs, move_folder
from uvit_jax.training.state import TrainState
from uvit_jax.training.workdir import Workdir

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
"""The file in a checkpoint that maps each other file's relative path to its CRC-32."""


class Checkpointer:
    """The checkpoints of a workdir.

    Args:
      workdir: the run's folder; a checkpoint is its subfolder `checkpoints/STEP`.
      keep: how many of the newest are kept.
    """

    def __init__(self, workdir: Path, keep: int):
        self._workdir = Workdir(workdir)
        self._orbax = ocp.training.Checkpointer(
            _absolute(self._workdir.checkpoints),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )
        self._finishing: threading.Thread | None = None
        self._failed: UvitError | None = None
        # A failed save is raised, in one line; Orbax, asyncio and their threads log it at length.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)

    def save(self, state: TrainState, position: int) -> None:
        """Starts saving; the state may be donated to the next step as soon as this returns."""
        self._wait()
        step = int(state.step)
        with self._one_line():
            self._start(step, state, position)

    def _start(self, step: int, state: TrainState, position: int) -> None:
        if any(c.step == step for c in self._orbax.checkpoints):
            return
        items = dict(state=_as_dict(state), data={"position": position})
        response = self._orbax.save_checkpointables_async(step, items, force=True)

        def finish() -> None:
            with contextlib.suppress(Exception):  # a failed save is raised by Orbax's next call
                response.result()
                write_checksums(self._workdir.checkpoints / str(step))

        # Object stores have checksums of their own.
        if jax.process_index() == 0 and not self._workdir.remote:
            self._finishing = threading.Thread(target=finish)
            self._finishing.start()

    def restore(self, like: TrainState, shardings: TrainState) -> tuple[TrainState, int] | None:
        """The newest readable checkpoint as (state, data position), or None if there is none.

        An unreadable one is reported and moved to the workdir's `broken_checkpoints`, and the one
        before it is restored.

        Args:
          like: a state of the same shapes. shardings: of the restored state.

        Raises:
          UvitError: if there are checkpoints and none can be read; then nothing is moved.
        """
        abstract = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), like, shardings
        )
        broken: list[tuple[int, str]] = []
        for checkpoint in reversed(self._orbax.checkpoints):
            reason = self._damage(checkpoint.step) if jax.process_index() == 0 else ""
            loaded = None
            if _on_all_processes(not reason):  # loading waits for all processes
                items = dict(state=_as_dict(abstract), data=None)
                loaded, reason = _try_load(
                    functools.partial(self._orbax.load_checkpointables, checkpoint.step, items)
                )
            if _on_all_processes(loaded is not None):
                for step, reason in broken:
                    self._put_aside(step, reason, checkpoint.step)
                return TrainState(**loaded["state"]), int(loaded["data"]["position"])
            broken.append((checkpoint.step, reason or "on another process"))
        if broken:
            step, reason = broken[0]
            raise UvitError(
                f"no checkpoint in {self._workdir.checkpoints} can be read ({len(broken)} tried; "
                f"{step}: {reason}); give another --workdir to start from scratch"
            )
        return None

    def close(self) -> None:
        """Waits for the last save."""
        self._wait()
        with self._one_line():
            self._orbax.close()

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        """Raises any error of saving as a UvitError that names the folder and what it has."""
        if self._failed:  # Orbax would raise the error of the last save again
            raise self._failed
        try:
            yield
        except Exception as error:  # of many types
            _silence_threads()
            steps = self._workdir.steps
            self._failed = UvitError(
                f"a checkpoint in {self._workdir.checkpoints} cannot be saved "
                f"({_first_line(error)}); it has those of steps {steps or 'none'}. Make space and "
                "run the same command to resume"
            )
            raise self._failed from None

    def _wait(self) -> None:
        if self._finishing is not None:
            self._finishing.join()
            self._finishing = None

    def _damage(self, step: int) -> str:
        if self._workdir.remote:
            return ""
        try:
            check_checksums(self._workdir.checkpoints / str(step))
        except (ValueError, OSError) as error:
            return str(error)
        return ""

    def _put_aside(self, step: int, reason: str, instead: int) -> None:
        target = self._workdir.path / "broken_checkpoints" / str(step)
        while target.exists():
            target = target.with_name(target.name + "_")
        logger.warning(
            "checkpoint %d cannot be read (%s) and is moved to %s; resuming from %d",
            step,
            reason,
            target,
            instead,
        )
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            move_folder(self._workdir.checkpoints / str(step), target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("broken checkpoint moved")
        self._orbax.reload()


def load_workdir(path: Path, *, step: int | None, ema: bool) -> tuple[Model, Params]:
    """A workdir's model and parameters, as numpy arrays; see `uvit_jax.load`."""
    workdir = Workdir(path)
    config = workdir.read_config()
    model = build(parse_model(config["model"], f"{workdir.config}: model"))
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

    def load(checkpoint: str) -> Params:
        if not workdir.remote:
            check_checksums(Path(checkpoint))
        stored = ocp.checkpointables_metadata(checkpoint).metadata["state"]
        partial = jax.tree.map(lambda _: ocp.PLACEHOLDER, stored) | {name: abstract}
        loaded = ocp.load_checkpointables(checkpoint, dict(state=partial))
        return jax.tree.map(np.asarray, loaded["state"][name])

    for candidate in reversed(steps):
        checkpoint = os.fspath(_absolute(folder / str(candidate)))
        params, reason = _try_load(functools.partial(load, checkpoint))
        if params is not None:
            return model, params
        if step is None:
            logger.warning("checkpoint %d cannot be read (%s)", candidate, reason)
    if not steps:
        raise UvitError(f"{folder} holds no checkpoint yet")
    raise UvitError(f"no checkpoint in {folder} can be read: {reason}")


def _absolute(path: Any) -> Any:
    """A path as Orbax takes it."""
    return path if is_gs(path) else path.absolute()


def write_checksums(checkpoint: Path) -> None:
    """Writes `CHECKSUMS` into a complete checkpoint."""
    checksums = {name: _checksum(file) for name, file in _files(checkpoint).items()}
    write_text(checkpoint / CHECKSUMS, json.dumps(checksums, indent=1) + "\n")


def check_checksums(checkpoint: Path) -> None:
    """Raises ValueError or UvitError if a file is missing or differs from `CHECKSUMS`, if any."""
    if not (checkpoint / CHECKSUMS).exists():
        return
    checksums = read_json(checkpoint / CHECKSUMS)
    if unlisted := sorted(_files(checkpoint).keys() - checksums.keys()):
        raise ValueError(f"{CHECKSUMS} does not list {unlisted[0]}")
    for name, checksum in checksums.items():
        if not (checkpoint / name).is_file():
            raise ValueError(f"{name} is missing")
        if _checksum(checkpoint / name) != checksum:
            raise ValueError(f"{name} differs from its checksum")


def _files(checkpoint: Path) -> dict[str, Path]:
    """The files of a checkpoint without `CHECKSUMS`, by their relative paths, sorted."""
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    return {p.relative_to(checkpoint).as_posix(): p for p in files}


def _checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def _silence_threads() -> None:
    """The threads of a failed save go on and print the same error many times."""
    sys.unraisablehook = lambda *_: None
    threading.excepthook = lambda *_: None


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in TrainState.__dataclass_fields__}


def _on_all_processes(ok: bool) -> bool:
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(np.asarray(ok)).all())


def _try_load(load: Callable[[], Any]) -> tuple[Any, str]:
    """(what `load` returns, ""), or (None, the first line of the error).

    Orbax logs a damaged file at length, and TensorStore's threads go on after the error and print
    up to a thousand tracebacks; none of it reaches the terminal, since the caller reports the line.
    """
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                return load(), ""
            except Exception as error:  # any type, depending on the damage
                reason = _first_line(error)
            time.sleep(0.5)  # until the threads have ended
            gc.collect()  # coroutines that were never awaited warn when they are collected
            return None, reason
    finally:
        logging.disable(logging.NOTSET)


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:  # the deepest cause names the file
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:400]
