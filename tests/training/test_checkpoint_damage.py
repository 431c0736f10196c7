"""A checkpoint whose bytes are not those that were saved is never restored."""

import json
import logging
import random
import shutil

import jax
import numpy as np
import pytest

import uvit_jax
from experiments import train as command
from tests.helpers.running import ROOT, TINY, train
from uvit_jax.errors import UvitError
from uvit_jax.training.checkpoint import CHECKSUMS, check_checksums
from uvit_jax.training.workdir import Workdir


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    return workdir, train(workdir, "--config.train.steps=10")


def files(checkpoint):
    return sorted(p for p in checkpoint.rglob("*") if p.is_file())


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def append(path, _):
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path, _):
    path.write_bytes(b"")


def remove(path, _):
    path.unlink()


def swap_halves(path, _):
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[half:] + content[:half])


@pytest.mark.parametrize("damage", [flip, append, empty, swap_halves, remove])
def test_damage_to_any_file_is_found_and_named(trained, tmp_path, damage):
    rng = random.Random(0)
    saved = trained[0] / "checkpoints" / "10"
    check_checksums(saved)
    names = [p.relative_to(saved) for p in files(saved) if p.stat().st_size > 1]
    assert len(names) > 3
    for name in names:
        if damage is remove and name.name == CHECKSUMS:
            continue  # like a checkpoint of an earlier version
        checkpoint = shutil.copytree(saved, tmp_path / "copy")
        damage(checkpoint / name, rng)
        if name.name == CHECKSUMS:
            with pytest.raises(ValueError):
                check_checksums(checkpoint)
        else:
            with pytest.raises(ValueError, match=f"^{name} "):
                check_checksums(checkpoint)
        shutil.rmtree(checkpoint)


def test_a_flipped_bit_resumes_from_the_checkpoint_before(trained, tmp_path, caplog):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    largest = max(files(workdir / "checkpoints" / "10"), key=lambda p: p.stat().st_size)
    flip(largest, random.Random(1))
    caplog.set_level(logging.INFO, "uvit_jax")
    assert train(workdir, "--config.train.steps=10") == trained[1]
    lines = [r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage()]
    assert len(lines) == 1 and largest.name in lines[0] and "resuming from 5" in lines[0]
    assert (workdir / "broken_checkpoints" / "10").is_dir()
    check_checksums(workdir / "checkpoints" / "10")


def test_loading_uses_the_checkpoint_before_or_raises_if_told_which(trained, tmp_path, caplog):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    flip(
        max(files(workdir / "checkpoints" / "10"), key=lambda p: p.stat().st_size), random.Random(2)
    )
    caplog.set_level(logging.INFO, "uvit_jax")
    _, params = uvit_jax.load(workdir)
    _, before = uvit_jax.load(workdir, step=5)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert [r.getMessage().count("checkpoint 10 cannot be read") for r in caplog.records] == [1]
    with pytest.raises(UvitError, match="differs from its checksum"):
        uvit_jax.load(workdir, step=10)


def test_all_damaged_raises_and_moves_nothing(trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    for step in (5, 10):
        flip(files(workdir / "checkpoints" / str(step))[-1], random.Random(step))
    before = files(workdir)
    with pytest.raises(UvitError, match=r"no checkpoint in .*--workdir"):
        command.main([f"--config={ROOT / TINY}", f"--workdir={workdir}"])
    assert files(workdir) == before


def test_a_checkpoint_of_an_earlier_version_loads(trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    for step in (5, 10):
        (workdir / "checkpoints" / str(step) / CHECKSUMS).unlink()
    uvit_jax.load(workdir)
    assert set(train(workdir, "--config.train.steps=11")) == set(range(1, 12))


@pytest.mark.parametrize("content", ["{}", "[]", "[[", "[" * 100_000, "partial"])
def test_checksums_that_do_not_list_every_file_are_damage(trained, tmp_path, content):
    copy = tmp_path / "10"
    shutil.copytree(trained[0] / "checkpoints" / "10", copy)
    listed = json.loads((copy / CHECKSUMS).read_text())
    if content == "partial":
        listed.popitem()
        content = json.dumps(listed)
    (copy / CHECKSUMS).write_text(content)
    with pytest.raises((ValueError, UvitError), match=CHECKSUMS):
        check_checksums(copy)


def test_a_changed_word_of_the_vocabulary_is_named_with_both_remedies(trained, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(trained[0], copy)
    vocabulary = json.loads((copy / "vocabulary.json").read_text())
    vocabulary["classes"][0] = "x" + vocabulary["classes"][0][1:]
    (copy / "vocabulary.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UvitError, match=r"class 0 is 'x.*--workdir; if not, .*rm .*vocabulary"):
        command.main([f"--config={ROOT / TINY}", f"--workdir={copy}", "--config.train.steps=11"])


def test_a_stored_value_that_is_refused_is_found_in_its_file(trained, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(trained[0], copy)
    config = json.loads((copy / "config.json").read_text())
    config["sample"]["clip"] = -1.0
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UvitError, match=rf"clip must be .*{copy}/config\.json: correct it"):
        Workdir(copy).read_run()
