"""Where a run's numbers go: `metrics.jsonl`, TensorBoard, and a progress bar. Process 0 only."""

import json
import sys
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

from uvit_jax.errors import UvitError
from uvit_jax.io import write_text


class MetricsWriter:
    """Writes one object a logged step to `metrics.jsonl` and TensorBoard, and moves the bar.

    Args:
      path: of `metrics.jsonl`; TensorBoard's events go to its folder.
      start: the step that the run goes on from. What a killed run wrote after it is dropped, since
        those steps come again.
      steps: of the whole run, for the bar.
      batch_size: examples a step, for images/s.
      tflops: 10^12 model FLOPs that an example costs each device in training: three forward passes,
        counted by `models.cost`, two FLOPs a multiply-add. What remat computes again is no part.
    """

    def __init__(self, path: Path, *, start: int, steps: int, batch_size: int, tflops: float):
        _forget_after(path, start)
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
        """Logs `values` of optimizer step `step` (the first is 1), and how fast it went.

        Args:
          seconds: wall time since the row before, by the places of `Clock`; they become
            `seconds/PLACE`. `images_per_second`, and `model_tflops_per_second` of each device, are
            over the seconds of steps and input alone.
        """
        training = seconds["step"] + seconds["input"]
        rate = (step - self._last_step) * self._batch_size / max(training, 1e-9)
        self._last_step = step
        row = {
            "step": step,
            **values,
            "images_per_second": rate,
            "model_tflops_per_second": rate * self._tflops,
            **{f"seconds/{place}": value for place, value in seconds.items()},
        }
        self._file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(name, value, step)
        told = f"loss {values['loss']:.4f}, {rate:.0f} images/s"
        if seconds["input"] > 0.1 * training:
            told += f", {seconds['input'] / training:.0%} waiting for data"
        self._bar.set_postfix_str(told, refresh=False)

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Closes the files and leaves the bar where it is."""
        self._file.close()
        self._events.close()
        self._bar.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`, without a last line that a killed run left unfinished.

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
                f"line {number} of {path} is damaged; mend it or move the file away"
            ) from None
        rows.append(row)
    return rows


def _forget_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
