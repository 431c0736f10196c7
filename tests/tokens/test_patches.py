"""Patches: a strided convolution and its inverse, the convolutions around them, videos."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from uvit_jax.errors import UvitError
from uvit_jax.tokens.modalities.patches import Patches, patchify, unpatchify

D, P = 16, 4


def segment(**options):
    defaults = dict(name="image", role="noisy", shape=(16, 16, 3), patch_size=P)
    return Patches(**defaults | options)


def head(**options):
    """A function of tokens, and the module."""
    own = segment(**options)
    module = own.head(D, dtype=jnp.float32, zero=False, rngs=nnx.Rngs(0))
    return (lambda tokens: module(tokens, own)), module


def delta(channels):
    kernel = np.zeros((3, 3, channels, channels), np.float32)
    kernel[1, 1] = np.eye(channels)
    return jnp.asarray(kernel)


@pytest.mark.parametrize(("where", "channels"), [("after", 3), ("before", D)])
def test_a_final_convolution_that_does_nothing_changes_nothing(where, channels):
    tokens = jax.random.normal(jax.random.key(0), (2, 16, D))
    (plain, source), (convolved, module) = head(final_conv="none"), head(final_conv=where)
    module.proj = source.proj
    assert not np.allclose(convolved(tokens), plain(tokens), atol=1e-3)
    module.conv.kernel[...] = delta(channels)
    module.conv.bias[...] = jnp.zeros(channels)
    np.testing.assert_allclose(convolved(tokens), plain(tokens), atol=1e-6)


def test_the_position_of_the_final_convolution():
    """After the projection it mixes neighbouring pixels, before it neighbouring patches."""
    tokens = jax.random.normal(jax.random.key(0), (1, 16, D))
    changed = tokens.at[0, 5].add(1.0)  # row 1, column 1 of a 4×4 grid

    def touched(where):
        read, _ = head(final_conv=where)
        difference = np.abs(read(changed) - read(tokens))[0].max(axis=-1) > 1e-6
        return np.flatnonzero(difference.any(1)), np.flatnonzero(difference.any(0))

    for where, pixels in (("none", range(4, 8)), ("after", range(3, 9)), ("before", range(12))):
        rows, columns = touched(where)
        np.testing.assert_array_equal(rows, list(pixels))
        np.testing.assert_array_equal(columns, list(pixels))


def test_a_stack_of_convolutions_moves_with_the_image():
    own = segment(patch_embed="conv_stack")
    stack = own.embedding(D, dtype=jnp.float32, rngs=nnx.Rngs(0))
    image = jax.random.normal(jax.random.key(1), (1, 16, 16, 3))
    tokens = stack(image).reshape(4, 4, D)
    moved = stack(jnp.roll(image, P, axis=2)).reshape(4, 4, D)
    # The outermost columns see the border.
    np.testing.assert_allclose(moved[:, 2:3], tokens[:, 1:2], atol=1e-5)
    assert stack(image).shape == (1, 16, D)


def test_a_stack_of_convolutions_needs_a_power_of_two():
    with pytest.raises(UvitError, match=r"patch_embed='conv_stack'.*2, 4, 8.*3"):
        segment(patch_embed="conv_stack", patch_size=3, shape=(12, 12, 3))


def test_patches_are_a_strided_convolution_and_come_back():
    x = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    kernel = jax.random.normal(jax.random.key(1), (4, 4, 3, 7))
    convolved = jax.lax.conv_general_dilated(
        x, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    product = patchify(x, (1, 4, 4)) @ kernel.reshape(-1, 7)
    np.testing.assert_allclose(product, convolved.reshape(2, 6, 7), atol=1e-4)
    patches = patchify(x, (1, 4, 4))
    assert jnp.array_equal(unpatchify(patches, (1, 4, 4), (1, 2, 3))[:, 0], x)


def test_tubelets_are_a_strided_convolution_in_time_too_and_come_back():
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 12, 3))
    kernel = jax.random.normal(jax.random.key(1), (2, 4, 4, 3, 7))
    convolved = jax.lax.conv_general_dilated(
        x, kernel, (2, 4, 4), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    product = patchify(x, (2, 4, 4)) @ kernel.reshape(-1, 7)
    np.testing.assert_allclose(product, convolved.reshape(2, 18, 7), atol=1e-4)
    assert jnp.array_equal(unpatchify(patchify(x, (2, 4, 4)), (2, 4, 4), (3, 2, 3)), x)


def test_an_image_is_a_video_of_one_frame():
    image, video = segment(final_conv="none"), segment(shape=(1, 16, 16, 3), final_conv="none")
    assert image.grid == video.grid and image.fits(video)
    modules = [s.embedding(D, dtype=jnp.float32, rngs=nnx.Rngs(0)) for s in (image, video)]
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    np.testing.assert_array_equal(modules[0](x), modules[1](x[:, None]))
    tokens = jax.random.normal(jax.random.key(0), (2, 16, D))
    for s in (image, video):
        module = s.head(D, dtype=jnp.float32, zero=False, rngs=nnx.Rngs(0))
        assert module(tokens, s).shape == (2, *s.shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(patch_size=3), "patch_size=3 does not divide shape"),
        (dict(shape=(5, 16, 16, 3), patch_size_t=2), "patch_size_t=2 does not divide"),
        (dict(shape=(16, 16)), r"shape must be \(H, W, C\) or \(T, H, W, C\)"),
        (dict(trained_shape=(18, 16, 3)), "patch_size=4 does not divide trained_shape"),
        (dict(trained_shape=(2, 16, 16, 3)), "differ in length"),
        (dict(start=-1), "start"),
        (dict(offset="diagonal"), "offset='diagonal' is for references with position='rope'"),
        (dict(patch_init="xavir"), "patch_init='xavir'.*'xavier'"),
    ],
)
def test_impossible_patches_name_the_field(options, message):
    with pytest.raises(UvitError, match=message):
        segment(**options)
