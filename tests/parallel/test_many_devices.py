"""Two processes of four devices have one device's losses, also after a kill or on another mesh.

Meshes within one process are in test_losses.py.
"""

import json
import math
import re
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from tests.helpers.running import TINY, finish, losses, start, start_together, train, wait_for_step


def close(a, b):
    return a.keys() == b.keys() and all(math.isclose(a[k], b[k], rel_tol=1e-5) for k in a)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    return workdir, train(workdir)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of two processes × four devices, one of which is killed, and then resumed: its workdir,
    and (status, stdout, stderr) of the process that survived."""
    workdir = tmp_path_factory.mktemp("two")
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=4")
    args = (f"--workdir={workdir}", *mesh, "--distributed_timeout=30")
    survivor, victim = start_together(*args, devices=4)
    wait_for_step(workdir, 7, survivor)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    result = finish(survivor, timeout=90)
    assert max(losses(workdir)) < 20
    for process in start_together(*args, devices=4):
        status, _, err = finish(process)
        assert status == 0, err
    return workdir, result


def test_the_survivor_ends_and_names_the_remedy(killed):
    status, _, err = killed[1]
    assert status != 0
    assert re.search(r"error: process 0 of 2 .*lost.*same command", err), err


def test_after_a_kill_the_losses_equal_those_of_one_device(killed, one_device):
    workdir, _ = killed
    assert close(losses(workdir), one_device[1])
    # Only process 0 logs, and each step once.
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 21))


def test_four_samples_on_eight_devices_equal_those_of_one(killed, one_device):
    theirs, ours = (
        np.asarray(Image.open(path / "samples" / "00000020.png"), np.int32)
        for path in (killed[0], one_device[0])
    )
    assert np.abs(theirs - ours).max() <= 2


@pytest.mark.parametrize("devices", [1, 2])
def test_a_checkpoint_of_two_processes_resumes_on_fewer_devices(
    killed, one_device, tmp_path, devices
):
    workdir = tmp_path / "moved"
    shutil.copytree(killed[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "20")
    mesh = ("--config.mesh.data=1", f"--config.mesh.fsdp={devices}")
    assert close(train(workdir, *mesh, devices=devices), one_device[1])


def test_context_parallelism_across_processes(one_device, tmp_path):
    """Both processes load every row, of which each holds half of the tokens."""
    mesh = ("--config.mesh.data=1", "--config.mesh.context=2")
    args = (f"--workdir={tmp_path / 'run'}", "--config.train.steps=3", *mesh)
    for process in start_together(*args, "--config.model.backbone.attention=ring"):
        status, _, err = finish(process)
        assert status == 0, err
    results = losses(tmp_path / "run")
    assert close(results, {step: one_device[1][step] for step in (1, 2, 3)})


def test_a_batch_that_the_mesh_does_not_divide_is_one_error(tmp_path):
    args = (f"--config={TINY}", f"--workdir={tmp_path / 'run'}", "--config.train.batch_size=12")
    status, _, err = finish(start("experiments.train", *args, devices=8))
    assert status == 2
    assert "batch_size=12" in err and "data×fsdp = 8" in err and "8 and 16" in err
    assert not (tmp_path / "run").exists()
