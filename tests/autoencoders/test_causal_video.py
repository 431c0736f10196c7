"""The video autoencoder equals diffusers' at random weights; chunks equal the whole; names of both
kinds are read and written."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.helpers.autoencoders import randomised
from uvit_jax.autoencoders import causal_video_weights as weights
from uvit_jax.autoencoders.causal_video import (
    VideoAutoencoderConfig,
    build_video_autoencoder,
    decode_in_chunks,
    encode_in_chunks,
)
from uvit_jax.errors import UvitError

CONFIGS = {
    "Wan's levels": dict(widths=(8, 16, 16, 16), num_blocks=1, latent_channels=4),
    "two levels": dict(widths=(8, 12), temporal=(True,), num_blocks=2, latent_channels=3),
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def pair(request):
    """Our autoencoder and its params, every one of them random."""
    return randomised(build_video_autoencoder(request.param))


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


@pytest.mark.parametrize("k", [0, 2])
def test_encodes_and_decodes_as_diffusers_does(k):
    torch = pytest.importorskip("torch")
    autoencoder, params = randomised(build_video_autoencoder(CONFIGS["Wan's levels"]))
    model, video = theirs(autoencoder, params), video_of(autoencoder, k)
    latents = np.random.default_rng(1).normal(size=(2, 1 + k, 2, 3, 4)).astype(np.float32)
    with torch.no_grad():
        moments = model.encode(torch.from_numpy(video.transpose(0, 4, 1, 2, 3)))
        decoded = model.decode(torch.from_numpy(latents.transpose(0, 4, 1, 2, 3))).sample
    wanted = moments.latent_dist.parameters.numpy().transpose(0, 2, 3, 4, 1)
    assert_close(np.asarray(autoencoder.encode(params, video)), wanted, 1e-4)
    clipped = np.clip(np.asarray(autoencoder.decode(params, latents)), -1, 1)  # as theirs is
    assert_close(clipped, decoded.numpy().transpose(0, 2, 3, 4, 1), 1e-4)


def test_chunks_equal_the_whole(pair):
    autoencoder, params = pair
    video = video_of(autoencoder, k=3)
    moments = np.asarray(autoencoder.encode(params, video))
    latents = moments[..., : autoencoder.config.latent_channels]
    decoded = np.asarray(autoencoder.decode(params, latents))
    assert decoded.shape == video.shape
    for chunk in (1, 2):
        parts = encode_in_chunks(autoencoder, params, video, chunk=chunk)
        assert_close(parts, moments, 1e-5)
        assert_close(decode_in_chunks(autoencoder, params, latents, chunk=chunk), decoded, 1e-5)


def test_no_frame_depends_on_later_ones(pair):
    """So an image is a video of one frame."""
    autoencoder, params = pair
    video = video_of(autoencoder)
    moments = autoencoder.encode(params, video)
    assert_close(np.asarray(autoencoder.encode(params, video[:, :1])), moments[:, :1], 1e-5)
    latents = moments[..., : autoencoder.config.latent_channels]
    first = autoencoder.decode(params, latents[:, :1])
    assert_close(np.asarray(first), autoencoder.decode(params, latents)[:, :1], 1e-5)


def test_convolutions_over_frames_give_the_same(pair):
    autoencoder, params = pair
    other = build_video_autoencoder(
        VideoAutoencoderConfig(**vars(autoencoder.config) | dict(convolutions="2d"))
    )
    video = video_of(autoencoder)
    a, b = (np.asarray(one.encode(params, video)) for one in (autoencoder, other))
    assert_close(a, b, 1e-5)
    latents = a[..., : autoencoder.config.latent_channels]
    assert_close(*(np.asarray(o.decode(params, latents)) for o in (autoencoder, other)), 1e-5)


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
    # Their converter knows Wan's number of blocks alone.
    config = dict(widths=(2, 4, 4, 4), num_blocks=2, latent_channels=2)
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
    assert tensors["decoder.upsamples.15.residual.2.weight"].shape == (96, 192 // 2, 3, 3, 3)


def test_latents_have_their_mean_and_deviation_taken_out():
    config = dict(widths=(4,), temporal=(), num_blocks=1, latent_channels=2, patch_size=2)
    plain, params = randomised(build_video_autoencoder(config))
    scaled = build_video_autoencoder(config | dict(latent_mean=(1.0, 2.0), latent_std=(3.0, 0.5)))
    video = np.random.default_rng(0).uniform(-1, 1, (1, 3, 4, 4, 3)).astype(np.float32)
    raw, own = plain.encode(params, video), scaled.encode(params, video)
    own, raw = own[..., :2], raw[..., :2]
    assert np.allclose(own * np.float32([3, 0.5]) + np.float32([1, 2]), raw, atol=1e-5)
    assert np.allclose(scaled.decode(params, own), plain.decode(params, raw), atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 16, 16, 3), r"1 \+ 4k frames, not 4; use 1 or 5"),
        ((5, 12, 16, 3), "multiples of 8"),
        ((5, 16, 16, 1), "3 channels, not 1"),
    ],
)
def test_a_wrong_video_is_refused(shape, message):
    autoencoder = build_video_autoencoder(CONFIGS["Wan's levels"])
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
