"""Where a run's numbers go: `metrics.jsonl`, TensorBoard, and a progress bar. Process 0 only."""

import json
import sys
import time
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

from uvit_jax.errors import UvitError
from uvit_jax.training.workdir import write_text


class MetricsWriter:
    """Writes one object a logged step to `metrics.jsonl` and TensorBoard, and moves the bar.

    Args:
      path: of `metrics.jsonl`; TensorBoard's events go to its folder.
      start: the step that the run goes on from. What a killed run wrote after it is dropped, since
        those steps come again.
      steps: of the whole run, for the bar.
      batch_size: examples a step, for images/s.
    """

    def __init__(self, path: Path, *, start: int, steps: int, batch_size: int):
        _forget_after(path, start)
        self._file = path.open("a", buffering=1)
        self._events = SummaryWriter(str(path.parent), purge_step=start)
        self._batch_size = batch_size
        self._last = (time.perf_counter(), start)
        interactive = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if interactive else 15.0,
            smoothing=0.1,
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs `values` of optimizer step `step` (the first is 1), with images/s since the last."""
        now = time.perf_counter()
        before, last_step = self._last
        rate = (step - last_step) * self._batch_size / max(now - before, 1e-9)
        self._last = (now, step)
        row = {"step": step, **values, "images_per_second": rate}
        self._file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(name, value, step)
        self._bar.set_postfix_str(f"loss {values['loss']:.4f}, {rate:.0f} images/s", refresh=False)

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(step - self._bar.n)

    def pause(self) -> None:
        """Restarts the clock of images/s, after something that was not training."""
        self._last = (time.perf_counter(), self._last[1])

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
