"""Runs in one file: of export_checkpoint, and the networks of the package."""

import hashlib

import jax
import ml_dtypes
import numpy as np
import pytest

import uvit_jax
from experiments import evaluate, finetune_lora, sample
from tests.helpers.stored import write_run
from tests.helpers.weights import equal
from tools import pack_network
from uvit_jax.errors import UvitError
from uvit_jax.interop.exporting import export
from uvit_jax.shipped import shipped_networks
from uvit_jax.training.importing import import_checkpoint
from uvit_jax.training.stored_run import open_run


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(a file, its run, its parameters)."""
    path = tmp_path_factory.mktemp("stored") / "tiny.safetensors"
    return path, *write_run(path)


@pytest.fixture(scope="module")
def workdir(stored):
    target = stored[0].parent / "run"
    import_checkpoint(stored[0], target, {}, chosen=False)
    return target


def test_shipped_networks_are_those_of_the_manifest():
    listed = shipped_networks.manifest()
    files = {file.stem: file for file in shipped_networks.FOLDER.glob("*.safetensors")}
    assert files.keys() == listed.keys()
    assert sum(file.stat().st_size for file in files.values()) < shipped_networks.LIMIT
    for name, entry in listed.items():
        content = files[name].read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["bytes"] == len(content)
        assert entry["about"] and entry["command"].startswith("python -m experiments.")
        assert entry["metrics"] and entry["step"] > 0


def test_a_shipped_network_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in shipped_networks.manifest():
        model, params = uvit_jax.load(name)
        assert model.num_params == shipped_networks.manifest()[name]["parameters"]
        assert equal(params, uvit_jax.load(f"shipped:{name}")[1])
        run = open_run(f"shipped:{name}")
        assert run.read_run().model == model.config
        assert run.read_vocabulary().tokenizer is not None
    with pytest.raises(UvitError, match=r"shipped:totem: .*did you mean 'totems'"):
        uvit_jax.load("shipped:totem")
    (tmp_path / "totems").mkdir()  # a folder of one's own comes first
    with pytest.raises(UvitError, match=r"totems is not a workdir"):
        uvit_jax.load("totems")


def test_metrics_of_modes_are_listed_by_their_names(workdir, tmp_path):
    entry = pack_network.pack(
        workdir, "tiny", command="python -m x", about="tiny", folder=tmp_path,
        metrics={"metrics": {"joint": {"fid": 1.234567}, "real": {"match": 0.5}}, "count": 8},
    )  # fmt: skip
    assert entry["metrics"] == {"joint/fid": 1.23457, "real/match": 0.5, "samples": 8}


def test_a_packed_network_is_the_average_in_bfloat16(workdir, stored, tmp_path, monkeypatch):
    entry = pack_network.pack(
        workdir, "tiny", command="python -m x", about="tiny", folder=tmp_path,
        metrics={"metrics": {"fid": 1.0}, "samples": {"count": 8}},
    )  # fmt: skip
    monkeypatch.setattr(shipped_networks, "FOLDER", tmp_path)
    assert shipped_networks.manifest(tmp_path)["tiny"] == entry
    assert entry["metrics"] == {"fid": 1.0, "samples": 8} and entry["step"] == 0
    expected = jax.tree.map(lambda a: a.astype(ml_dtypes.bfloat16).astype(np.float32), stored[2])
    assert equal(uvit_jax.load(tmp_path / "tiny.safetensors")[1], expected)
    monkeypatch.setattr(shipped_networks, "LIMIT", 1000)
    with pytest.raises(UvitError, match=r"tiny would have .* smaller network"):
        pack_network.pack(workdir, "tiny", command="", about="", folder=tmp_path)
    assert shipped_networks.manifest(tmp_path)["tiny"] == entry


def test_commands_take_a_file_as_they_take_its_workdir(workdir, stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = {}
    for name, run in (("workdir", workdir), ("file", stored[0])):
        flags = [f"--workdir={run}", "--label=cat-face", "--steps=2", f"--out={name}.png"]
        sample.main(flags)
        images[name] = np.load(f"{name}.npz")["image"]
    assert np.array_equal(images["workdir"], images["file"])
    assert not list(tmp_path.glob("workdirs"))
    sample.main([f"--workdir={stored[0]}", "--label=cat-face", "--steps=2"])
    assert (stored[0].parent / "tiny/samples/sample_seed0.npz").exists()
    flags = [f"--workdir={stored[0]}", "--raw"]
    for command, more in (
        (sample, []), (evaluate, []), (finetune_lora, ["--images=a", "--out=b", "--label=0"]),
    ):  # fmt: skip
        with pytest.raises(UvitError, match="drop --raw"):
            command.main([*flags, *more])


def test_a_file_without_a_run_says_how_to_get_one(stored, tmp_path):
    bare = tmp_path / "bare.safetensors"
    export(bare, *uvit_jax.load(stored[0]))
    with pytest.raises(UvitError, match=r"import it with experiments.import_checkpoint"):
        open_run(bare)
    with pytest.raises(UvitError, match="does not exist"):
        open_run(tmp_path / "none.safetensors")
