"""A full disk ends a command with one line that names the path, and leaves no cut file."""

import dataclasses
import errno
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from experiments.subjects import totem_judge
from experiments.subjects.sample_store import SampleStore
from tests.helpers import latent_folders
from tests.helpers.running import TINY, finish, start, train, wait_for_step
from uvit_jax import io
from uvit_jax.data import shards
from uvit_jax.data.latent_shards import LatentReader
from uvit_jax.errors import UvitError
from uvit_jax.interop import files
from uvit_jax.training.metrics_writer import EventFile


def fill(disk):
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 1000):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC


def errors(err):
    assert "Traceback" not in err
    return [line for line in err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("every", [5, 100000], ids=["saving", "rows"])
def test_training_ends_with_one_line_and_resumes(every, small_disk):
    workdir = small_disk / "run"
    args = (f"--config={TINY}", f"--workdir={workdir}", f"--config.train.checkpoint_every={every}")
    many = ("--config.train.steps=100000", "--config.train.keep_checkpoints=1000")
    process = start("experiments.train", *args, *many)
    wait_for_step(workdir, 3, process)
    if every > 5:
        fill(small_disk)
    began = time.monotonic()
    status, _, err = finish(process, 60)
    assert status == 2, err
    (line,) = errors(err)
    assert str(workdir) in line and "No space left" in line and "same command" in line
    if every > 5:
        assert time.monotonic() - began < 20
        (small_disk / "filler").unlink()
        train(workdir, "--config.train.steps=4")


WRITERS = {
    "text": lambda path: io.write_text(path, "x" * 3_000_000),
    "png": lambda path: io.save_png(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (1200, 1200, 3), np.uint8)), path
    ),
    "safetensors": lambda path: files.write_tensors(path, {"a": np.zeros(1_000_000)}),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_files_are_written_whole_or_not_at_all(suffix, small_disk):
    path = small_disk / f"file.{suffix}"
    path.write_bytes(b"before")
    with pytest.raises(UvitError, match=rf"{path} cannot be written.*make space"):
        WRITERS[suffix](path)
    assert [p.name for p in small_disk.iterdir()] == [path.name]
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_error_of_the_system_names_the_path_and_removes_the_partial_file(number, tmp_path):
    path = tmp_path / "a" / "b.json"
    with pytest.raises(UvitError, match=r"b\.json cannot be written"), io.atomic(path) as partial:
        partial.write_text("half")
        raise OSError(number, os.strerror(number))
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("records", [[2_000_000] * 3, [1000] * 5000], ids=["large", "many"])
def test_shards_are_written_whole_or_not_at_all(records, small_disk):
    index = dataclasses.replace(latent_folders.INDEX, count=1, shard_size=1)

    def write(sizes):
        return shards.write_missing_shards(
            small_disk, index, lambda _: (b"\0" * n for n in sizes), reader=LatentReader
        )

    with pytest.raises(UvitError, match=r"latents-00000.* cannot be written.*No space.*make space"):
        write(records)
    assert [p.name for p in small_disk.iterdir()] == [index.plan_name]
    with pytest.raises(KeyError, match="reading"):  # an error of the records is not of the disk
        shards.write_missing_shards(
            small_disk, index, lambda _: iter([{}["reading"]]), reader=LatentReader
        )


def test_an_index_on_a_full_disk_leaves_no_partial_file(small_disk):
    fill(small_disk)
    folder = small_disk / "latents"
    with pytest.raises(UvitError, match=r"latents.* cannot be written.*make space"):
        latent_folders.write(folder)
    assert not list(folder.glob("*")) and not list(folder.glob(".*"))


def test_a_judge_on_a_full_disk_leaves_no_partial_file(small_disk):
    fill(small_disk)
    with pytest.raises(UvitError, match=r"judge\.safetensors cannot be written.*make space"):
        totem_judge.save(
            small_disk / "judge.safetensors", totem_judge.TotemJudgeNetwork(rngs=nnx.Rngs(0))
        )
    assert [p.name for p in small_disk.iterdir()] == ["filler"]


def test_samples_of_a_comparison_are_written_whole_or_not_at_all(small_disk):
    images = np.random.default_rng(0).uniform(-1, 1, (1, 1, 1000, 1000, 3))
    with pytest.raises(UvitError, match=r"single\.npz cannot be written.*make space"):
        SampleStore(small_disk).write("unified", "single", images)
    assert not list((small_disk / "unified").iterdir())


def test_a_full_disk_raises_from_the_event_file_at_once(small_disk):
    events = EventFile(small_disk, 0)
    fill(small_disk)
    with pytest.raises(UvitError, match=r"events\.out.* cannot be written"):
        for step in range(10_000):
            events.write(step, {"loss": 1.0})
    events.close()


def test_links_and_devices_are_not_replaced(tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("before")
    link.symlink_to(target)
    io.write_text(link, "after")
    assert link.is_symlink() and target.read_text() == "after"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    io.write_text(pipe, "through")
    assert reader.communicate(timeout=10)[0] == "through" and pipe.is_fifo()
    io.write_text("/dev/null", "nothing")
    assert Path("/dev/null").is_char_device()
    assert not list(tmp_path.glob("*.partial"))
