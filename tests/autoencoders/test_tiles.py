"""Tiles cover everything once, and are blended where they overlap."""

import jax
import numpy as np
import pytest

from tests.helpers.autoencoders import randomised
from uvit_jax.autoencoders.causal_video import (
    build_video_autoencoder,
    decode_in_chunks,
    encode_in_chunks,
)
from uvit_jax.autoencoders.kl import build_autoencoder
from uvit_jax.autoencoders.tiles import in_tiles
from uvit_jax.errors import UvitError
from uvit_jax.sampling.decoding import Decoder

LOCAL = dict(widths=(4, 4), temporal=(True,), num_blocks=1, latent_channels=2, mid_attention=False)


def doubled(x):
    return 2 * x.repeat(2, axis=-3).repeat(2, axis=-2)


@pytest.mark.parametrize("shape", [(1, 7, 9, 2), (2, 3, 16, 5, 1), (1, 4, 4, 1)])
@pytest.mark.parametrize("tile,overlap", [(4, 0), (4, 1), (4, 3), (5, 2), (20, 4)])
def test_what_does_not_look_around_is_the_same_in_tiles(shape, tile, overlap):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    seen = set()

    def function(part):
        seen.add(part.shape)
        return doubled(part)

    np.testing.assert_allclose(
        in_tiles(function, x, tile=tile, overlap=overlap), doubled(x), rtol=1e-6
    )
    assert len(seen) == 1 and max(next(iter(seen))[-3:-1]) <= tile


def test_a_seam_becomes_a_ramp():
    x, count = np.zeros((1, 4, 12, 1), np.float32), iter(range(9))
    y = in_tiles(lambda part: part + next(count), x, tile=8, overlap=4)
    np.testing.assert_allclose(y[0, 0, :, 0], [0] * 4 + [0.2, 0.4, 0.6, 0.8] + [1] * 4, atol=1e-6)


def test_far_from_the_seams_a_convolutional_autoencoder_decodes_and_encodes_as_a_whole():
    autoencoder, params = randomised(build_video_autoencoder(LOCAL))
    latents = np.asarray(jax.random.normal(jax.random.key(0), (1, 2, 12, 40, 2)))
    whole = decode_in_chunks(autoencoder, params, latents)
    tiled = decode_in_chunks(autoencoder, params, latents, tile=24)  # at 0 and 16: overlap 8
    assert tiled.shape == whole.shape
    assert np.abs(tiled - whole)[..., :20, :].max() < 1e-4 * np.abs(whole).max()
    assert np.abs(tiled - whole)[..., -20:, :].max() < 1e-4 * np.abs(whole).max()
    moments = encode_in_chunks(autoencoder, params, whole)
    tiled = encode_in_chunks(autoencoder, params, whole, tile=24)
    assert tiled.shape == moments.shape
    assert np.abs(tiled - moments)[..., :10, :].max() < 1e-4 * np.abs(moments).max()


def test_a_decoder_decodes_images_in_tiles():
    autoencoder, params = randomised(
        build_autoencoder(dict(widths=(4, 4), num_blocks=1, num_groups=2, mid_attention=False))
    )
    latents = np.random.default_rng(0).normal(size=(2, 6, 30, 4)).astype(np.float32)
    whole = Decoder(autoencoder, params, 0.5)(latents)
    tiled = Decoder(autoencoder, params, 0.5, tile=18)(latents)
    assert tiled.shape == whole.shape == (2, 12, 60, 3)
    assert 0 < np.abs(tiled - whole).max() < np.ptp(whole)


@pytest.mark.parametrize("tile,overlap", [(4, 4), (4, -1), (0, 0)])
def test_overlaps_that_leave_no_tile_raise(tile, overlap):
    with pytest.raises(UvitError, match=r"overlap must be .* less than tile"):
        in_tiles(doubled, np.zeros((1, 8, 8, 1)), tile=tile, overlap=overlap)
