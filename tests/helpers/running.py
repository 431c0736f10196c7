"""Runs command lines in processes of their own, as users do, with any number of fake devices."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = "tests/configs/tiny.py"


def environment(devices: int = 1) -> dict[str, str]:
    """Of a fresh process with so many CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_together(*args: object, count: int = 2, devices: int = 1) -> list[subprocess.Popen]:
    """`count` processes of one run of the tiny config, started."""
    address = f"127.0.0.1:{free_port()}"
    args = (f"--config={TINY}", *args)
    return [
        start("experiments.train", *args, f"--distributed={address},{count},{i}", devices=devices)
        for i in range(count)
    ]


def start(module: str, *args: object, devices: int = 1) -> subprocess.Popen:
    """`python -m module args…`, started."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, args)],
        cwd=ROOT,
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = 240) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a started process, which is killed if it takes longer."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


def train(workdir: Path, *args: object, devices: int = 1) -> dict[int, float]:
    """Trains the tiny config to its end and returns the loss at every step; of one device in this
    process, which may have compiled the program already."""
    args = [f"--config={ROOT / TINY}", f"--workdir={workdir}", *map(str, args)]
    if devices == 1:
        from experiments.train import main

        assert main(args) == 0
    else:
        status, out, err = finish(start("experiments.train", *args, devices=devices))
        assert status == 0, err + out
    return losses(workdir)


def wait_for_step(workdir: Path, step: int, process: subprocess.Popen) -> None:
    """Waits until a run has logged `step`."""
    deadline = time.time() + 240
    while time.time() < deadline and process.poll() is None:
        metrics = workdir / "metrics.jsonl"
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} never came: {process.poll()} {finish(process, 5)}")


def losses(workdir: Path) -> dict[int, float]:
    """Every step's loss in a workdir, at full precision."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len({row["step"] for row in rows}) == len(rows)
    return {row["step"]: row["loss"] for row in rows}
