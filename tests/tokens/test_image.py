"""The convolutions that may stand around the patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from uvit_jax.errors import UvitError
from uvit_jax.tokens.image import Image
from uvit_jax.tokens.layout import Layout
from uvit_jax.tokens.segment import Segment

D, P = 16, 4


def segment(**options):
    defaults = dict(name="image", modality="image", role="noisy", shape=(16, 16, 3), patch_size=P)
    return Segment(**defaults | options)


def make(module, **options):
    return module(segment(**options), D, dtype=jnp.float32, rngs=nnx.Rngs(0))


def head(**options):
    return Image.Head(segment(**options), D, dtype=jnp.float32, zero=False, rngs=nnx.Rngs(0))


def delta(channels):
    kernel = np.zeros((3, 3, channels, channels), np.float32)
    kernel[1, 1] = np.eye(channels)
    return jnp.asarray(kernel)


@pytest.mark.parametrize(("where", "channels"), [("after", 3), ("before", D)])
def test_a_final_convolution_that_does_nothing_changes_nothing(where, channels):
    tokens = jax.random.normal(jax.random.key(0), (2, 16, D))
    plain, convolved = head(final_conv="none"), head(final_conv=where)
    convolved.proj = plain.proj
    assert not np.allclose(convolved(tokens), plain(tokens), atol=1e-3)
    convolved.conv.kernel[...] = delta(channels)
    convolved.conv.bias[...] = jnp.zeros(channels)
    np.testing.assert_allclose(convolved(tokens), plain(tokens), atol=1e-6)


def test_where_the_final_convolution_stands():
    """After the projection it mixes neighbouring pixels, before it neighbouring patches."""
    tokens = jax.random.normal(jax.random.key(0), (1, 16, D))
    changed = tokens.at[0, 5].add(1.0)  # row 1, column 1 of a 4×4 grid

    def touched(where):
        module = head(final_conv=where)
        difference = np.abs(module(changed) - module(tokens))[0].max(axis=-1) > 1e-6
        return np.flatnonzero(difference.any(1)), np.flatnonzero(difference.any(0))

    for where, pixels in (("none", range(4, 8)), ("after", range(3, 9)), ("before", range(12))):
        rows, columns = touched(where)
        np.testing.assert_array_equal(rows, list(pixels))
        np.testing.assert_array_equal(columns, list(pixels))


def test_a_stack_of_convolutions_moves_with_the_picture():
    stack = make(Image, patch_embed="conv_stack")
    image = jax.random.normal(jax.random.key(1), (1, 16, 16, 3))
    tokens = stack(image).reshape(4, 4, D)
    moved = stack(jnp.roll(image, P, axis=2)).reshape(4, 4, D)
    # The outermost columns see the border.
    np.testing.assert_allclose(moved[:, 2:3], tokens[:, 1:2], atol=1e-5)
    assert stack(image).shape == (1, 16, D)


def test_a_stack_of_convolutions_halves_the_picture():
    with pytest.raises(UvitError, match=r"patch_size=3 must be 2, 4, 8"):
        Layout([segment(patch_embed="conv_stack", patch_size=3, shape=(12, 12, 3))])
