"""Logs a run's metrics to `metrics.jsonl`, TensorBoard and a progress bar, on process 0."""

import json
import sys
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

from uvit_jax.errors import UvitError
from uvit_jax.io import write_text


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
    """

    def __init__(self, path: Path, *, start: int, steps: int, batch_size: int, tflops: float):
        _delete_after(path, start)
        self._file = path.open("a", buffering=1)
        self._events = SummaryWriter(str(path.parent), purge_step=start)
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
        self._file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(name, value, step)
        text = f"loss {values['loss']:.4f}, {rate:.0f} images/s"
        if seconds["input"] > 0.1 * training:
            text += f", {seconds['input'] / training:.0%} waiting for data"
        self._bar.set_postfix_str(text, refresh=False)

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step`."""
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Closes the files and the progress bar."""
        self._file.close()
        self._events.close()
        self._bar.close()


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
            row["step"], row["loss"]
        except (ValueError, TypeError, KeyError):
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
