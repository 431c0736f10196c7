"""TensorBoard shows each row of metrics.jsonl exactly once, however often a run was resumed."""

import random
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from tests.helpers.running import losses, train
from uvit_jax.training.metrics_writer import EventFile


def shown(folder):
    """{step: values} that TensorBoard shows: a restart hides rows of its step and later."""
    rows = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while len(content) >= 16:
            (size,) = struct.unpack("<Q", content[:8])
            if len(content) < size + 16:
                break  # a cut record
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            if event.session_log.status == SessionLog.START:
                rows = {step: row for step, row in rows.items() if step < event.step}
            if event.summary.value:
                assert event.step not in rows
                rows[event.step] = {v.tag: v.simple_value for v in event.summary.value}
    return rows


def test_resumed_runs_lose_no_row(tmp_path):
    for steps in (3, 7, 7, 11):
        train(tmp_path / "run", f"--config.train.steps={steps}")
    logged = losses(tmp_path / "run")
    rows = shown(tmp_path / "run")
    assert set(rows) == set(logged) == set(range(1, 12))
    for step, row in rows.items():
        assert row["loss"] == pytest.approx(logged[step], rel=1e-6)
        assert {"images_per_second", "seconds/step"} <= set(row)


def test_ten_kills_at_any_row(tmp_path):
    """A killed run closes nothing, and its rows after the checkpoint are written again."""
    rng = random.Random(0)
    start = 0
    for _ in range(10):
        events = EventFile(tmp_path, start)
        end = start + rng.randint(0, 9)
        for step in range(start + 1, end + 1):
            events.write(step, {"loss": float(step)})
        start = rng.randint(start, end)  # the newest checkpoint
    assert sorted(shown(tmp_path)) == list(range(1, end + 1))
