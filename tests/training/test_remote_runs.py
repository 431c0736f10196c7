"""Runs, data and weights in `gs://`: a stand-in that etils, Orbax and TensorStore access."""

import json

import fsspec
import numpy as np
import pytest
from orbax.checkpoint._src.path import gcs_utils

import uvit_jax
from experiments import sample, train
from tests.helpers import object_store, running
from tests.helpers.running import ROOT, TINY
from tests.helpers.stored import write_run
from tests.helpers.weights import equal
from uvit_jax import io, remote
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.pipeline import dataset
from uvit_jax.errors import UvitError
from uvit_jax.io import read_json
from uvit_jax.training.importing import import_checkpoint
from uvit_jax.training.workdir import Workdir


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The objects of all buckets, by BUCKET/NAME."""
    with pytest.MonkeyPatch.context() as patch:
        server, address = object_store.serve(object_store.Handler)
        for name in ("gs", "gcs"):
            fsspec.register_implementation(name, object_store.ObjectStore, clobber=True)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "x")
        patch.setenv("UVIT_JAX_DATA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
        object_store.OBJECTS.clear()
        yield object_store.OBJECTS
        server.shutdown()


def test_a_run_is_read_from_a_bucket(bucket, tmp_path):
    _, params = write_run(tmp_path / "tiny.safetensors")
    import_checkpoint(tmp_path / "tiny.safetensors", tmp_path / "run", {}, chosen=False)
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file():
            name = file.relative_to(tmp_path / "run").as_posix()
            bucket[f"bucket/runs/imported/{name}"] = file.read_bytes()
    assert equal(uvit_jax.load("gs://bucket/runs/imported")[1], params)
    run, local = Workdir("gs://bucket/runs/imported"), Workdir(tmp_path / "run")
    assert run.read_run() == local.read_run()
    assert run.read_vocabulary() == local.read_vocabulary()
    (run.outputs / "new.txt").write_text("new")
    run.upload()
    assert bucket["bucket/runs/imported/new.txt"] == b"new"
    remote.move_folder(run.checkpoints / "0", run.path / "broken_checkpoints" / "0")
    with pytest.raises(UvitError, match="holds no checkpoint yet"):
        uvit_jax.load("gs://bucket/runs/imported")
    local.close()


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_in_a_folder(bucket, tmp_path):
    flags = [f"--config={ROOT / TINY}", "--config.train.checkpoint_every=2"]
    flags += ["--config.sample.sampler.steps=1"]
    expected = running.train(tmp_path / "run", "--config.train.steps=3", *flags[1:])
    for steps in (2, 3):  # the second resumes
        remote_flags = ["--workdir=gs://bucket/runs/run", f"--config.train.steps={steps}"]
        train.main([*flags, *remote_flags, f"--json={tmp_path / 'result.json'}"])
    assert read_json(tmp_path / "result.json")["samples"].startswith("gs://bucket/runs/run/")
    rows = bucket["bucket/runs/run/metrics.jsonl"].splitlines()
    assert [json.loads(row)["loss"] for row in rows] == list(expected.values())
    assert equal(uvit_jax.load("gs://bucket/runs/run")[1], uvit_jax.load(tmp_path / "run")[1])
    names = {name.removeprefix("bucket/runs/run/") for name in bucket}
    assert {"config.json", "vocabulary.json", "samples/00000003.png"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert "lock" not in names and not any(".partial" in name for name in names)
    sample.main(["--workdir=gs://bucket/runs/run", "--count=2", "--steps=1"])
    assert "bucket/runs/run/samples/sample_seed0.npz" in bucket
    with pytest.raises(UvitError, match="another config; it differs in model"):
        train.main([*flags, *remote_flags, "--config.model.backbone.width=64"])


def test_weights_and_data_are_copied_to_the_cache_once(bucket, tmp_path):
    _, params = write_run(tmp_path / "tiny.safetensors")
    bucket["bucket/tiny.safetensors"] = (tmp_path / "tiny.safetensors").read_bytes()
    for _ in range(2):
        assert equal(uvit_jax.load("gs://bucket/tiny.safetensors")[1], params)
    for name, value in (("cat/a", 0.5), ("dog/b", -0.5)):
        with io.atomic(f"gs://bucket/photos/{name}.png") as file:
            io.grid(np.full((1, 8, 8, 3), value, np.float32), cell=8).save(file, format="PNG")
    data = dataset(
        DataConfig(name="folder", path="gs://bucket/photos", image_size=8, labels="label")
    )
    assert data.class_names == ("cat", "dog") and len(data) == 2
    copy = remote.fetched("gs://bucket/photos/cat/a.png")
    bucket["bucket/photos/cat/a.png"] = b"x" * len(bucket["bucket/photos/cat/a.png"])
    assert set(remote.fetched("gs://bucket/photos/cat/a.png").read_bytes()) == {ord("x")}
    assert copy.parent.parent == remote.fetched("gs://bucket/photos")
    with pytest.raises(UvitError, match=r"gs://bucket/no.safetensors does not exist"):
        uvit_jax.load("gs://bucket/no.safetensors")


def test_what_cannot_be_accessed_is_one_line(bucket, monkeypatch):
    def refused(*_, **__):
        raise PermissionError("Forbidden, https://storage/x?token=SECRET\nmore")

    monkeypatch.setattr(object_store.ObjectStore, "info", refused)
    with pytest.raises(UvitError, match="credentials") as caught:
        Workdir("gs://bucket/run")
    assert "SECRET" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UvitError, match="no bucket"):
        Workdir("gs://")
