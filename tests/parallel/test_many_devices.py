"""One device, eight, or two processes: the same losses, also across a change of mesh."""

import math
import shutil
import socket

import pytest

from tests.running import TINY, finish, losses, start, train

STEPS = "--config.train.steps=20"


def close(a, b):
    return a.keys() == b.keys() and all(math.isclose(a[k], b[k], rel_tol=1e-5) for k in a)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    return workdir, train(workdir, STEPS)


def test_eight_devices_give_the_losses_of_one(one_device, tmp_path):
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=4")
    assert close(train(tmp_path / "eight", STEPS, *mesh, devices=8), one_device[1])


def test_two_processes_give_the_losses_of_one(one_device, tmp_path):
    workdir = tmp_path / "two"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        start(
            "experiments.train",
            f"--config={TINY}",
            f"--workdir={workdir}",
            STEPS,
            f"--distributed=127.0.0.1:{port},2,{index}",
            "--config.mesh.data=2",
            "--config.mesh.fsdp=2",
            devices=2,
        )
        for index in range(2)
    ]
    for process in processes:
        status, _, err = finish(process)
        assert status == 0, err
    assert close(losses(workdir), one_device[1])
    assert list((workdir / "samples").glob("*.png"))


def test_a_checkpoint_of_one_device_goes_on_on_eight(one_device, tmp_path):
    workdir = tmp_path / "moved"
    shutil.copytree(one_device[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "20")
    moved = train(workdir, STEPS, "--config.mesh.fsdp=8", "--config.mesh.data=1", devices=8)
    assert close(moved, one_device[1])


def test_a_batch_that_the_mesh_does_not_divide(tmp_path):
    args = (f"--config={TINY}", f"--workdir={tmp_path / 'run'}", "--config.train.batch_size=12")
    status, _, err = finish(start("experiments.train", *args, devices=8))
    assert status == 2
    assert "batch_size=12 is not divisible by data×fsdp = 8 devices" in err and "8 and 16" in err
    assert not (tmp_path / "run").exists()
