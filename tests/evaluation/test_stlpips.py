"""The distance is the package's own, and behaves as one."""

import sys
import types

import numpy as np
import pytest

from tests.helpers.frozen import pictures
from uvit_jax.errors import UvitError

pytest.importorskip("torch")
pytest.importorskip("stlpips_pytorch")

from uvit_jax.evaluation.consistency import diversity
from uvit_jax.evaluation.stlpips import stlpips


@pytest.fixture(scope="module")
def distance():
    return stlpips()


def floats(count, size, seed=0):
    return pictures(count, size, seed).astype(np.float32) / 127.5 - 1


@pytest.fixture
def original(monkeypatch):
    """The package's network; what it imports and does not use is left out."""
    for name, members in (
        ("IPython", ("embed",)),
        ("torchvision", ("models",)),
        ("torchvision.models", ()),
        ("torchsummary", ("summary",)),
    ):
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member, types.ModuleType(member))
        monkeypatch.setitem(sys.modules, name, module)
    from stlpips_pytorch import stlpips as package

    return package.LPIPS(net="alex", variant="shift_tolerant", verbose=False)


@pytest.mark.parametrize("size", [32, 41])
def test_distances_are_the_packages(distance, original, size):
    import torch

    a, b = floats(3, size), floats(3, size, seed=1)
    with torch.no_grad():
        theirs = original(*(torch.tensor(x.transpose(0, 3, 1, 2)) for x in (a, b)))
    np.testing.assert_allclose(distance(a, b), theirs.numpy().ravel(), rtol=1e-4)


def test_it_is_a_distance(distance):
    a, b = floats(3, 32), floats(3, 32, seed=1)
    assert np.array_equal(distance(a, a), np.zeros(3))
    assert np.allclose(distance(a, b), distance(b, a), rtol=1e-5) and (distance(a, b) > 0).all()
    noise = np.random.default_rng(0).normal(size=a.shape).astype(np.float32)
    steps = [distance(a, np.clip(a + s * noise, -1, 1)).mean() for s in (0.1, 0.3, 0.9)]
    assert steps == sorted(steps)
    table = distance.pairwise(np.concatenate([a, b[:1]]))
    assert np.allclose(table[0, 3], distance(a[:1], b[:1])[0], rtol=1e-5)
    assert diversity(table) > 0 == diversity(distance.pairwise(np.repeat(a[:1], 3, axis=0)))


def test_other_pictures_are_refused(distance):
    with pytest.raises(UvitError, match="at least 24"):
        distance(floats(1, 16), floats(1, 16))
    with pytest.raises(UvitError, match="one shape"):
        distance(floats(1, 32), floats(1, 40))
