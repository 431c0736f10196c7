"""A run that is killed, stopped or damaged goes on as if nothing had happened."""

import random
import shutil
import signal

import pytest

import uvit_jax
from tests.helpers.running import TINY, finish, losses, start, train, wait_for_step


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, train(workdir)


def test_killed_three_times_the_losses_are_the_same_bit_for_bit(undisturbed, tmp_path):
    rng = random.Random(0)
    workdir = tmp_path / "run"
    for low, high in ((2, 7), (8, 13), (14, 19)):
        process = start("experiments.train", f"--config={TINY}", f"--workdir={workdir}")
        wait_for_step(workdir, rng.randint(low, high), process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert train(workdir) == undisturbed[1]


def test_sigterm_saves_and_the_run_resumes(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    args = (f"--config={TINY}", f"--workdir={workdir}", "--config.train.checkpoint_every=1000")
    process = start("experiments.train", *args)
    wait_for_step(workdir, 7, process)
    process.send_signal(signal.SIGTERM)
    status, out, err = finish(process)
    assert status == 143, err
    assert "saved" in out
    saved = [int(p.name) for p in (workdir / "checkpoints").iterdir()]
    assert saved == [max(losses(workdir))]
    assert train(workdir) == undisturbed[1]


def copy_without_end(source, target):
    """A workdir as if its run had been killed right after the checkpoint of step 15."""
    shutil.copytree(source, target)
    shutil.rmtree(target / "checkpoints" / "20")


def truncate(checkpoint):
    """Cuts the largest file of a checkpoint in half."""
    largest = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def test_truncated_newest_checkpoint_is_reported_and_the_one_before_used(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    copy_without_end(undisturbed[0], workdir)
    truncate(workdir / "checkpoints" / "15")
    args = (f"--config={TINY}", f"--workdir={workdir}")
    status, _, err = finish(start("experiments.train", *args))
    assert status == 0, err
    assert "checkpoint 15 cannot be read" in err and "resuming from 10" in err
    assert "Traceback" not in err
    assert losses(workdir) == undisturbed[1]
    assert (workdir / "broken_checkpoints" / "15").is_dir()  # nothing is thrown away


def test_all_checkpoints_broken_is_an_error_and_changes_nothing(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    for checkpoint in (workdir / "checkpoints").iterdir():
        truncate(checkpoint)
    before = sorted(str(p) for p in workdir.rglob("*"))
    args = (f"--config={TINY}", f"--workdir={workdir}")
    status, _, err = finish(start("experiments.train", *args))
    assert status == 2
    assert "no checkpoint" in err and "--workdir" in err
    assert sorted(str(p) for p in workdir.rglob("*")) == before


def test_a_finished_run_does_nothing_more(undisturbed):
    assert train(undisturbed[0]) == undisturbed[1]


def test_a_run_with_muon_resumes_bit_for_bit(tmp_path):
    """Its state has other leaves than AdamW's."""
    muon = "--config.optimizer.name=muon"
    whole = train(tmp_path / "whole", muon)
    copy_without_end(tmp_path / "whole", tmp_path / "run")
    assert train(tmp_path / "run", muon) == whole
    assert uvit_jax.load(tmp_path / "run")
