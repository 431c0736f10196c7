"""The video autoencoder equals diffusers' at random weights; chunks equal the whole; names of both
kinds are read and written."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.helpers.autoencoders import randomised
from uvit_jax.autoencoders import causal_video_weights as weights
from uvit_jax.autoencoders.causal_video import (
    build_video_autoencoder,
    decode_in_chunks,
    encode_in_chunks,
)
from uvit_jax.errors import UvitError

CONFIG = dict(widths=(4, 8, 8), temporal=(False, True), num_blocks=1, latent_channels=2)


@pytest.fixture(scope="module")
def pair():
    """Our autoencoder and its params, every one of them random."""
    return randomised(build_video_autoencoder(CONFIG))


def encode(autoencoder, params, video):
    """All at once, compiled."""
    return encode_in_chunks(autoencoder, params, video, chunk=99)


def decode(autoencoder, params, latents):
    return decode_in_chunks(autoencoder, params, latents, chunk=99)


def theirs(autoencoder, params):
    """diffusers' AutoencoderKLWan with the same weights."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    config = autoencoder.config
    model = diffusers.AutoencoderKLWan(
        base_dim=config.widths[0],
        z_dim=config.latent_channels,
        dim_mult=[w // config.widths[0] for w in config.widths],
        num_res_blocks=config.num_blocks,
        temperal_downsample=list(config.temporal),
        latents_mean=[0.0] * config.latent_channels,
        latents_std=[1.0] * config.latent_channels,
    ).eval()
    tensors = weights.export_video_autoencoder(autoencoder, params, naming="diffusers")
    model.load_state_dict({name: torch.tensor(a) for name, a in tensors.items()})
    return model


def video_of(autoencoder, k=2, seed=0):
    f, g = autoencoder.config.factor, autoencoder.config.frame_factor
    shape = (2, 1 + g * k, 2 * f, 3 * f, 3)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def assert_close(ours, other, most):
    assert ours.shape == other.shape
    assert np.abs(ours - other).max() < most * max(1, np.abs(other).max())


def test_encodes_and_decodes_as_diffusers_does(pair):
    torch = pytest.importorskip("torch")
    autoencoder, params = pair
    model, video = theirs(autoencoder, params), video_of(autoencoder)
    with torch.no_grad():
        moments = model.encode(torch.from_numpy(video.transpose(0, 4, 1, 2, 3)))
        wanted = moments.latent_dist.parameters
        latents = wanted[:, :2]
        decoded = model.decode(latents).sample
    wanted, latents, decoded = (
        a.numpy().transpose(0, 2, 3, 4, 1) for a in (wanted, latents, decoded)
    )
    assert_close(encode(autoencoder, params, video), wanted, 1e-4)
    clipped = np.clip(decode(autoencoder, params, latents), -1, 1)  # as theirs is
    assert np.abs(clipped).min() < 1  # so that something is compared
    assert_close(clipped, decoded, 1e-4)


def test_chunks_equal_the_whole_and_no_frame_depends_on_later_ones(pair):
    autoencoder, params = pair
    video = video_of(autoencoder, k=2)
    moments = encode(autoencoder, params, video)
    latents = moments[..., :2]
    decoded = decode(autoencoder, params, latents)
    assert decoded.shape == video.shape
    assert_close(encode_in_chunks(autoencoder, params, video), moments, 1e-5)
    assert_close(decode_in_chunks(autoencoder, params, latents), decoded, 1e-5)
    # An image is a video of one frame.
    assert_close(encode(autoencoder, params, video[:, :1]), moments[:, :1], 1e-5)
    assert_close(decode(autoencoder, params, latents[:, :1]), decoded[:, :1], 1e-5)


def test_convolutions_over_frames_give_the_same(pair):
    autoencoder, params = pair
    other = build_video_autoencoder(CONFIG | dict(convolutions="2d"))
    video = video_of(autoencoder)
    moments = encode(autoencoder, params, video)
    assert_close(encode(other, params, video), moments, 1e-5)


def test_kernels_of_one_frame_are_described_by_their_tensors():
    config = CONFIG | dict(kernel_frames=1)
    autoencoder, params = randomised(build_video_autoencoder(config))
    tensors = weights.export_video_autoencoder(autoencoder, params)
    assert weights.describe(tensors, "file") == autoencoder.config


@pytest.mark.parametrize("naming", weights.NAMINGS)
def test_round_trip_in_both_namings_is_exact(pair, naming, tmp_path):
    autoencoder, params = pair
    tensors = weights.export_video_autoencoder(autoencoder, params, naming=naming)
    safetensors.numpy.save_file(tensors, tmp_path / "vae.safetensors")
    again, read = weights.load_video_autoencoder(tmp_path / "vae.safetensors")
    assert again.config == autoencoder.config
    assert jax.tree.all(jax.tree.map(np.array_equal, params, read))


def test_official_names_mean_what_diffusers_takes_them_for():
    tools = pytest.importorskip("diffusers.loaders.single_file_utils")
    torch = pytest.importorskip("torch")
    # Their converter knows Wan's proportions alone.
    config = dict(widths=(2, 4, 8, 8), num_blocks=2, latent_channels=2)
    autoencoder, params = randomised(build_video_autoencoder(config))
    original = weights.export_video_autoencoder(autoencoder, params)
    converted = tools.convert_wan_vae_to_diffusers(
        {name: torch.tensor(a) for name, a in original.items()}
    )
    wanted = weights.export_video_autoencoder(autoencoder, params, naming="diffusers")
    assert converted.keys() == wanted.keys()
    assert all(np.array_equal(converted[name].numpy(), wanted[name]) for name in wanted)


def test_the_default_is_the_size_of_wans_with_its_statistics():
    autoencoder = build_video_autoencoder()
    assert 126e6 < autoencoder.num_params < 128e6
    assert autoencoder.config.factor == 8 and autoencoder.config.frame_factor == 4
    assert autoencoder.latent_shape((81, 480, 832, 3)) == (21, 60, 104, 16)
    zeros = jax.tree.map(
        lambda a: np.broadcast_to(np.float32(0), a.shape), autoencoder.abstract_params
    )
    tensors = weights.export_video_autoencoder(autoencoder, zeros)
    assert weights.describe(tensors, "x") == autoencoder.config
    assert tensors["decoder.upsamples.14.residual.2.weight"].shape == (96, 96, 3, 3, 3)


def test_latents_have_their_mean_and_deviation_taken_out():
    config = dict(widths=(4,), temporal=(), num_blocks=1, latent_channels=2, patch_size=2)
    plain, params = randomised(build_video_autoencoder(config))
    scaled = build_video_autoencoder(config | dict(latent_mean=(1.0, 2.0), latent_std=(3.0, 0.5)))
    video = np.random.default_rng(0).uniform(-1, 1, (1, 3, 4, 4, 3)).astype(np.float32)
    raw, own = encode(plain, params, video), encode(scaled, params, video)
    own, raw = own[..., :2], raw[..., :2]
    assert np.allclose(own * np.float32([3, 0.5]) + np.float32([1, 2]), raw, atol=1e-5)
    assert np.allclose(decode(scaled, params, own), decode(plain, params, raw), atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 16, 16, 3), r"1 \+ 4k frames, not 4; use 1 or 5"),
        ((5, 10, 16, 3), "multiples of 4"),
        ((5, 16, 16, 1), "3 channels, not 1"),
    ],
)
def test_a_wrong_video_is_refused(shape, message):
    autoencoder = build_video_autoencoder(CONFIG | dict(temporal=(True, True)))
    with pytest.raises(UvitError, match=message):
        autoencoder.latent_shape(shape)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(temporal=(True,)), "temporal must have"),
        (dict(widths=(8, 7), temporal=(True,)), "all but the first even"),
        (dict(latent_std=(1.0,)), "latent_std must have"),
        (dict(witdhs=(8,)), "widths"),
    ],
)
def test_config_errors_name_the_key(wrong, message):
    with pytest.raises(UvitError, match=message):
        build_video_autoencoder(wrong)
