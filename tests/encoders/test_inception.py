"""The FID Inception against PyTorch's, and what a file of weights may do."""

import importlib
import importlib.util
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.helpers.frozen import pictures, random_params
from uvit_jax.encoders import convolutional, inception
from uvit_jax.encoders.image_encoder import encoder
from uvit_jax.errors import UvitError
from uvit_jax.interop.mapping import exported


@pytest.fixture(scope="module")
def params():
    return random_params(inception.abstract_params())


@pytest.fixture(scope="module")
def tensors(params):
    return exported(inception.entries(), params)


def torch_fidelity():
    """torch-fidelity's network, without the package around it, which wants torchvision."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("pip install --no-deps torch-fidelity==0.4.0")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules.setdefault("torch_fidelity", package)
    return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")


def close(ours, theirs, tolerance=1e-4):
    theirs = np.asarray(theirs)
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error < tolerance, error


def test_features_and_logits_are_those_of_torch_fidelity(tensors, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    module = torch_fidelity()
    path = tmp_path / "weights.pth"
    torch.save({k: torch.tensor(v) for k, v in tensors.items()}, path)
    # Its load_state_dict is strict: the names and shapes are theirs.
    theirs = module.FeatureExtractorInceptionV3(
        "x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
    )
    images = pictures(2, 64)
    with torch.no_grad():
        pool, logits = theirs(torch.tensor(images.transpose(0, 3, 1, 2)))
    assert pool.std(dim=0).mean() > 0.01  # the images are distinguished
    ours = encoder("inception_tf", path).features(images)
    close(ours["pool"], pool)
    close(ours["logits"], logits)


@pytest.mark.parametrize("before", [32, 299, 400])
def test_images_are_prepared_as_pytorch_fid_does(before):
    torch = pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    images = pictures(2, before)
    x = torch.tensor(images.transpose(0, 3, 1, 2)).float() / 255
    x = torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
    ours = inception.prepare(images.astype(np.float32))
    close(ours, (2 * x - 1).permute(0, 2, 3, 1), 2e-6)


def test_average_pools_leave_padding_out():
    pooled = np.asarray(convolutional.average_pool(np.ones((1, 5, 4, 2), np.float32)))
    assert np.allclose(pooled, 1)
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    pooled = np.asarray(convolutional.average_pool(x))[0, ..., 0]
    assert pooled[0, 0] == np.mean([0, 1, 4, 5]) and pooled[1, 1] == np.mean(x[0, :3, :3])


def test_its_size_is_that_of_the_official_file(tensors):
    # 95,628,359 bytes of float32 and some names.
    numbers = sum(v.size for v in tensors.values())
    assert 0 < 95_628_359 - 4 * numbers < 200_000
    assert tensors["fc.weight"].shape == (1008, 2048)


def test_weights_come_from_other_kinds_of_files_too(params, tensors, tmp_path):
    np.savez(tmp_path / "weights.npz", **tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "weights.safetensors")
    found = [encoder("inception", tmp_path / f"weights.{s}") for s in ("npz", "safetensors")]
    for each in found:
        assert jax.tree.all(jax.tree.map(np.array_equal, each._params, params))
    assert found[0].version != found[1].version and not found[0].official


def test_mismatched_weights_raise(tensors, tmp_path):
    path = tmp_path / "weights.npz"

    def load(changed):
        np.savez(path, **changed)
        return encoder("inception", path)

    with pytest.raises(UvitError, match=r"missing: Mixed_7a\.branch3x3_1\.bn\.bias"):
        load({k: v for k, v in tensors.items() if k != "Mixed_7a.branch3x3_1.bn.bias"})
    with pytest.raises(UvitError, match=r"unexpected: AuxLogits\.fc\.weight"):
        load(tensors | {"AuxLogits.fc.weight": np.zeros(3)})
    with pytest.raises(UvitError, match=r"fc\.weight has shape \(1000, 2048\)"):
        load(tensors | {"fc.weight": tensors["fc.weight"][:1000]})
    np.savez(path, weights=np.array([{}], dtype=object))
    with pytest.raises(UvitError, match="not an npz of plain arrays"):
        encoder("inception", path)
    path.write_bytes(b"PK not a zip")
    with pytest.raises(UvitError, match="not an npz of plain arrays"):
        encoder("inception", path)
    with pytest.raises(UvitError, match="does not exist"):
        encoder("inception", tmp_path / "nowhere.npz")
    with pytest.raises(UvitError, match=r"needs its weights.*pytorch-fid"):
        encoder("inception")
