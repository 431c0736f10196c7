"""Logs a run's metrics to `metrics.jsonl`, TensorBoard, a progress bar and Weights & Biases."""

import io
import json
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter
from tqdm import tqdm

from uvit_jax.errors import UvitError
from uvit_jax.io import named_errors, write_text


class Sink(Protocol):
    """Where metrics and samples are logged besides `metrics.jsonl`."""

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def image(self, step: int, name: str, file: Path) -> None: ...

    def close(self) -> None: ...


class MetricsWriter:
    """Writes one JSON object per logged step to `metrics.jsonl`, and its values to TensorBoard.

    Args:
      path: of `metrics.jsonl`; TensorBoard's events are in its folder.
      start: the step that the run starts or resumes from. Rows of later steps, written by a run
        that was killed, are deleted, since these steps run again.
      steps: of the full run, for the progress bar.
      batch_size: examples per step, for images/s.
      tflops: 10^12 model FLOPs per example and device: three forward passes, counted by
        `models.cost` as two FLOPs per multiply-add, without recomputation by remat.
      sinks: what gets the values as well.
    """

    def __init__(
        self,
        path: Path,
        *,
        start: int,
        steps: int,
        batch_size: int,
        tflops: float,
        sinks: Sequence[Sink] = (),
    ):
        _delete_after(path, start)
        self._path = path
        with named_errors(path):
            self._file = path.open("ab", buffering=0)
        self._sinks: tuple[Sink, ...] = (EventFile(path.parent, start), *sinks)
        self._batch_size, self._tflops = batch_size, tflops
        self._last_step = start
        interactive = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if interactive else 15.0,
            smoothing=0.1,
        )

    def write(self, step: int, values: dict[str, float], seconds: dict[str, float]) -> None:
        """Logs optimizer step `step`, the first of which is 1.

        Args:
          step: the step. values: its metrics, with the key `loss`.
          seconds: wall time since the last row, by the activities of `Clock`; logged as
            `seconds/ACTIVITY`. `images_per_second`, and `model_tflops_per_second` per device, are
            relative to the seconds of steps and input only.
        """
        training = seconds["step"] + seconds["input"]
        rate = (step - self._last_step) * self._batch_size / max(training, 1e-9)
        self._last_step = step
        row = {
            "step": step,
            **values,
            "images_per_second": rate,
            "model_tflops_per_second": rate * self._tflops,
            **{f"seconds/{activity}": value for activity, value in seconds.items()},
        }
        # First, so that TensorBoard misses no row that a killed run has in metrics.jsonl.
        for sink in self._sinks:
            sink.write(step, {name: value for name, value in row.items() if name != "step"})
        with named_errors(self._path):
            _write_all(self._file, (json.dumps(row) + "\n").encode())
        text = f"loss {values['loss']:.4f}, {rate:.0f} images/s"
        if seconds["input"] > 0.1 * training:
            text += f", {seconds['input'] / training:.0%} waiting for data"
        self._bar.set_postfix_str(text, refresh=False)

    def image(self, step: int, name: str, file: Path) -> None:
        """Logs an image file, such as a grid of samples, to the sinks."""
        for sink in self._sinks:
            sink.image(step, name, file)

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step`."""
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Closes the files and the progress bar."""
        self._file.close()
        for sink in self._sinks:
            sink.close()
        self._bar.close()


class EventFile:
    """A new file of TensorBoard events in `folder`; each row is in the file when `write` returns.

    Args:
      start: rows of later steps in earlier files are hidden.

    Raises:
      UvitError: if it cannot be written; `write` too.
    """

    def __init__(self, folder: Path, start: int):
        # TensorBoard reads the files in the order of their names.
        now = f"{time.time():.6f}"
        self._path = folder / f"events.out.tfevents.{now}.{socket.gethostname()}"
        with named_errors(self._path):
            self._file = self._path.open("xb", buffering=0)
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds the scalars of one step."""
        scalars = [summary.scalar(name, value).value[0] for name, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=scalars)))

    def image(self, step: int, name: str, file: Path) -> None:
        """Adds a PNG."""
        with Image.open(file) as image:
            width, height = image.size
        png = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=file.read_bytes()
        )
        self._add(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=png)])))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        writer = RecordWriter.__new__(RecordWriter)  # its __init__ would open a file
        writer._writer = record
        writer.write(event.SerializeToString())
        with named_errors(self._path):
            _write_all(self._file, record.getvalue())


def _write_all(file: io.RawIOBase, content: bytes) -> None:
    """Writes to an unbuffered file, which may take less than all at a time."""
    while content:
        content = content[file.write(content) :]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`, without an incomplete last line, which a killed run may leave.

    Raises:
      UvitError: if another line is damaged.
    """
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            if type(row["step"]) is not int or type(row["loss"]) not in (int, float):
                raise TypeError
            float(row["loss"])
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            raise UvitError(
                f"line {number} of {path} is damaged; repair it or move the file away"
            ) from None
        rows.append(row)
    return rows


def _delete_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
