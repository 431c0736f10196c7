"""Every signal ends a run with one line, its status, and a checkpoint if there is one to save."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.running import ROOT, TINY, environment, finish, losses, start, wait_for_step

MANY = ("--config.train.steps=100000", "--config.train.checkpoint_every=100000")


def begin(workdir, *args):
    return start("experiments.train", f"--config={TINY}", f"--workdir={workdir}", *MANY, *args)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_training_saves_and_gives_its_status(number, tmp_path):
    workdir = tmp_path / "run"
    process = begin(workdir)
    wait_for_step(workdir, 3, process)
    process.send_signal(number)
    status, out, err = finish(process, 60)
    assert status == 128 + number, err
    assert "stopped and saved at step" in out and "Traceback" not in err
    assert [int(p.name) for p in (workdir / "checkpoints").iterdir()] == [max(losses(workdir))]


def test_a_second_ctrl_c_in_training_is_one_line_and_130(tmp_path):
    workdir = tmp_path / "run"
    process = begin(workdir)
    wait_for_step(workdir, 3, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process, 60)
    assert status == 130, err
    assert "Traceback" not in err and err.count("interrupted; nothing was saved") <= 1


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("delay", [0.6, 1.5, 3.0, 4.5])
def test_an_early_ctrl_c_is_one_line_and_130(count, delay, tmp_path):
    """While modules are imported, data read, or the step compiled."""
    process = begin(tmp_path / "run", "--config.model.backbone.depth=12")
    time.sleep(delay)
    for _ in range(count):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    status, out, err = finish(process, 60)
    assert status == 130, err
    assert "Traceback" not in err
    assert err.count("interrupted; nothing was saved") == 1 or "stopped and saved" in out


def test_a_swallowed_ctrl_c_still_ends_the_process():
    code = (
        "import time\nfrom experiments import cli\n"
        "def main(argv):\n"
        "    while True:\n"
        "        try:\n"
        "            print('ready', flush=True); time.sleep(60)\n"
        "        except BaseException: pass\n"
        "cli.run(main)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process, 20)
    assert status == 130
    assert err == "interrupted; nothing was saved since the last checkpoint\n"


def test_a_closed_terminal_saves(tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "experiments.train", f"--config={TINY}"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execvpe(command[0], [*command, f"--workdir={workdir}", *MANY], environment())
    deadline = time.time() + 120
    while not (workdir / "metrics.jsonl").exists() or not losses(workdir):
        assert time.time() < deadline
        time.sleep(0.05)
        os.set_blocking(terminal, False)
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 10000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
    assert [int(p.name) for p in (workdir / "checkpoints").iterdir()] == [max(losses(workdir))]


def test_nohup_ignores_a_closed_terminal(tmp_path):
    workdir = tmp_path / "run"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = begin(workdir)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for_step(workdir, 2, process)
    process.send_signal(signal.SIGHUP)
    wait_for_step(workdir, max(losses(workdir)) + 3, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process, 60)[0] == 143
