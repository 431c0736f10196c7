"""The autoencoder equals diffusers' at random weights; its checkpoints go in and out unchanged."""

import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.helpers.autoencoders import randomised
from uvit_jax.autoencoders import kl_weights as interop
from uvit_jax.autoencoders.kl import (
    LOGVAR_RANGE,
    build_autoencoder,
    decode_in_batches,
    decode_in_parts,
    encode_in_batches,
    sample_moments,
)
from uvit_jax.errors import UvitError

SMALL = dict(widths=(32, 64), num_blocks=1, num_groups=8)
TINY = dict(widths=(8, 8), num_blocks=1, num_groups=4)
CONFIGS = {
    "two levels": SMALL,
    "four levels": dict(widths=(8, 16, 32, 32), num_blocks=2, num_groups=4, latent_channels=3),
    "no attention": {**TINY, "mid_attention": False},
    "16 channels, no 1×1 convolutions": dict(
        widths=(16, 16, 8),
        num_groups=8,
        latent_channels=16,
        quant_conv=False,
        post_quant_conv=False,
    ),
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def pair(request):
    """Our autoencoder and its params, every one of them random, and the tensors for theirs."""
    return randomised(build_autoencoder(request.param))


def theirs(config):
    """diffusers' AutoencoderKL of one of our configs."""
    diffusers = pytest.importorskip("diffusers")
    levels = len(config.widths)
    return diffusers.AutoencoderKL(
        in_channels=config.image_channels,
        out_channels=config.image_channels,
        block_out_channels=config.widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config.num_blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.num_groups,
        use_quant_conv=config.quant_conv,
        use_post_quant_conv=config.post_quant_conv,
        mid_block_add_attention=config.mid_attention,
    ).eval()


def loaded(config, tensors):
    torch = pytest.importorskip("torch")
    model = theirs(config)
    model.load_state_dict({name: torch.tensor(a) for name, a in tensors.items()})
    return model


def assert_close(ours, other):
    other = other.numpy().transpose(0, 2, 3, 1)
    assert ours.shape == other.shape
    assert np.abs(ours - other).max() < 1e-4 * np.abs(other).max()


def assert_same_tree(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert all(map(np.array_equal, jax.tree.leaves(left), jax.tree.leaves(right)))


def test_encodes_and_decodes_as_diffusers_does(pair):
    torch = pytest.importorskip("torch")
    autoencoder, params = pair
    model = loaded(autoencoder.config, interop.export_autoencoder(autoencoder, params))
    f = autoencoder.config.factor
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 4 * f, 6 * f, 3)).astype(np.float32)
    latents = rng.normal(size=(2, 4, 6, autoencoder.config.latent_channels)).astype(np.float32)
    with torch.no_grad():
        wanted = model.encode(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        pictures = model.decode(torch.from_numpy(latents.transpose(0, 3, 1, 2))).sample
    assert_close(encode_in_batches(autoencoder, params, images), wanted.latent_dist.parameters)
    assert_close(decode_in_batches(autoencoder, params, latents, scale=1.0), pictures)


@pytest.mark.parametrize("style", interop.STYLES)
def test_round_trip_in_every_naming_is_exact(pair, style, tmp_path):
    autoencoder, params = pair
    for prefix in ("", interop.PREFIX) if style == "compvis" else ("",):
        tensors = interop.export_autoencoder(autoencoder, params, style=style, prefix=prefix)
        file = tmp_path / f"{prefix}vae.safetensors"
        others = {"loss.logvar": np.zeros(1, np.float32)}
        if prefix:
            others = {"model.diffusion_model.out.0.weight": np.zeros(3, np.float32)}
        safetensors.numpy.save_file({**tensors, **others}, file)
        again, read = interop.load_autoencoder(file, num_groups=autoencoder.config.num_groups)
        assert again.config == autoencoder.config
        assert_same_tree(params, read)
        back = interop.export_autoencoder(again, read, style=style, prefix=prefix)
        assert back.keys() == tensors.keys()
        assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


def test_compvis_names_mean_what_diffusers_takes_them_for():
    tools = pytest.importorskip("diffusers.loaders.single_file_utils")
    torch = pytest.importorskip("torch")
    autoencoder, params = randomised(build_autoencoder(CONFIGS["four levels"]))
    model = theirs(autoencoder.config)
    original = interop.export_autoencoder(autoencoder, params, style="compvis")
    converted = tools.convert_ldm_vae_checkpoint(
        {name: torch.tensor(a) for name, a in original.items()}, dict(model.config)
    )
    wanted = interop.export_autoencoder(autoencoder, params)
    assert converted.keys() == wanted.keys()
    assert all(np.array_equal(converted[name].numpy(), wanted[name]) for name in wanted)


def test_old_names_mean_what_diffusers_takes_them_for(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    autoencoder, params = randomised(build_autoencoder(SMALL))
    theirs(autoencoder.config).save_config(tmp_path)
    old = interop.export_autoencoder(autoencoder, params, style="diffusers_old")
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    safetensors.numpy.save_file(old, file, {"format": "pt"})
    wanted = interop.export_autoencoder(autoencoder, params)
    state = diffusers.AutoencoderKL.from_pretrained(tmp_path).state_dict()
    assert state.keys() == wanted.keys()
    assert all(np.array_equal(state[name].numpy(), wanted[name]) for name in wanted)
    # The folder tells the number of groups, the file alone cannot.
    again, read = interop.load_autoencoder(tmp_path)
    assert again.config == autoencoder.config
    assert_same_tree(params, read)


def test_a_lightning_checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    autoencoder, params = randomised(build_autoencoder(SMALL))
    tensors = interop.export_autoencoder(
        autoencoder, params, style="compvis", prefix=interop.PREFIX
    )
    state = {name: torch.tensor(a) for name, a in tensors.items()}
    state["cond_stage_model.x"] = torch.zeros(2)
    torch.save({"state_dict": state, "global_step": 1}, tmp_path / "sd.ckpt")
    _, read = interop.load_autoencoder(tmp_path / "sd.ckpt", num_groups=8)
    assert_same_tree(params, read)


def test_stable_diffusions_size():
    autoencoder = build_autoencoder()
    assert autoencoder.num_params == 83_653_863
    assert autoencoder.latent_shape((256, 256, 3)) == (32, 32, 4)
    for style in interop.STYLES:
        listed = list(interop.entries(autoencoder.config, style))
        assert len({e.key for e in listed}) == len({e.path for e in listed}) == len(listed) == 248


def broken(change):
    tensors = interop.export_autoencoder(*randomised(build_autoencoder(SMALL)))
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("decoder.mid_block.resnets.1.conv1.bias"), "missing: decoder.mid_block"),
        (lambda t: t.update(extra=np.zeros(1, np.float32)), "unexpected: extra"),
        (
            lambda t: t.update({"encoder.conv_out.weight": np.zeros((8, 64, 1, 1), np.float32)}),
            r"encoder.conv_out.weight has shape \(8, 64, 1, 1\)",
        ),
        (
            lambda t: t.pop("encoder.down_blocks.1.resnets.0.conv1.weight"),
            "1.weight is missing",
        ),
        (lambda t: t.clear() or t.update(a=np.zeros(1)), "no supported KL autoencoder"),
    ],
    ids=["missing", "unexpected", "misshapen", "size", "another"],
)
def test_bad_files_raise(change, says, tmp_path):
    file = tmp_path / "vae.safetensors"
    safetensors.numpy.save_file(broken(change), file)
    with pytest.raises(UvitError, match=says) as caught:
        interop.load_autoencoder(file, num_groups=8)
    assert str(file) in str(caught.value)


def test_other_bad_input_raises(tmp_path):
    with pytest.raises(UvitError, match=r"nothing.safetensors does not exist"):
        interop.load_autoencoder(tmp_path / "nothing.safetensors")
    with pytest.raises(UvitError, match=r"has no diffusion_pytorch_model.safetensors"):
        interop.load_autoencoder(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    safetensors.numpy.save_file(broken(lambda t: None), file)
    with pytest.raises(UvitError, match=r"num_groups=7 does not divide the width 32"):
        interop.load_autoencoder(tmp_path, num_groups=7)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    with pytest.raises(UvitError, match=r"AutoencoderTiny.*only AutoencoderKL"):
        interop.load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"norm_num_groups": "eight"}))
    with pytest.raises(UvitError, match=r"num_groups must be an integer, got 'eight'"):
        interop.load_autoencoder(tmp_path)
    with pytest.raises(UvitError, match=r"unknown style 'compviz'; did you mean 'compvis'"):
        list(interop.entries(build_autoencoder(SMALL).config, "compviz"))
    with pytest.raises(UvitError, match=r"autoencoder.width is not a known key"):
        build_autoencoder({"width": 3})


def test_wrong_shapes_raise():
    autoencoder = build_autoencoder(CONFIGS["four levels"])
    with pytest.raises(UvitError, match="multiples of 8, not 12×16"):
        autoencoder.encode({}, np.zeros((1, 12, 16, 3)))
    with pytest.raises(UvitError, match="images of 3 channels, not 1"):
        autoencoder.encode({}, np.zeros((1, 16, 16, 1)))
    with pytest.raises(UvitError, match="3 channels, these have 4"):
        autoencoder.decode({}, np.zeros((1, 2, 2, 4)))
    with pytest.raises(UvitError, match="batch_size must be at least 1"):
        decode_in_batches(autoencoder, {}, np.zeros((1, 2, 2, 3)), batch_size=0)


def test_batches_change_nothing_and_scale_divides():
    autoencoder, params = randomised(build_autoencoder(TINY))
    latents = np.random.default_rng(0).normal(size=(5, 4, 4, 4)).astype(np.float32)
    parts = decode_in_batches(autoencoder, params, latents, scale=0.25, batch_size=2)
    whole = decode_in_batches(autoencoder, params, latents * 4, scale=1.0, batch_size=5)
    assert parts.shape == (5, 8, 8, 3)
    assert np.abs(parts - whole).max() < 1e-5 * np.abs(whole).max()


def test_bfloat16_computes_in_it_and_returns_float32():
    autoencoder, params = randomised(build_autoencoder(TINY))
    half = build_autoencoder({**TINY, "dtype": "bfloat16"})
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    wanted = encode_in_batches(autoencoder, params, images)
    got = encode_in_batches(half, params, images)
    assert got.dtype == np.float32
    assert 0 < np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()


def test_fresh_parameters_fit():
    autoencoder = build_autoencoder(TINY)
    params = jax.eval_shape(autoencoder.init, jax.random.key(0))
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), params)
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), autoencoder.abstract_params)


def test_samples_have_the_moments_mean_and_variance():
    shape = (1, 2, 2, 3)
    rng = np.random.default_rng(0)
    mean, logvar = rng.normal(size=shape), rng.normal(size=shape)
    logvar[0, 0, 0] = [40, -50, 0]  # beyond the range on either side
    moments = np.concatenate([mean, logvar], axis=-1).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 20_000)
    samples = np.asarray(jax.vmap(lambda k: sample_moments(k, moments, scale=0.5))(keys), float)
    std = np.exp(np.clip(logvar, *LOGVAR_RANGE) / 2)
    assert np.all(np.abs(samples.mean(0) / 0.5 - mean) < 5 * std / len(keys) ** 0.5 + 1e-5)
    assert np.allclose(samples.std(0) / 0.5, std, rtol=0.03, atol=1e-5)


def test_decoding_in_parts_keeps_the_order():
    net, params = randomised(build_autoencoder(dict(widths=(4, 4), num_blocks=1, num_groups=2)))
    z = np.random.default_rng(0).normal(size=(6, 2, 2, 4)).astype(np.float32)
    wanted = decode_in_batches(net, params, z, scale=0.5, batch_size=6)
    for options in (dict(at_once=2), dict(at_once=2, shards=2), dict(shards=4)):
        parts = functools.partial(decode_in_parts, net, scale=0.5, **options)
        assert np.allclose(jax.jit(parts)(params, z), wanted, atol=1e-5)
    with pytest.raises(UvitError, match=r"4 channels, .*segment 'image'"):
        net.check_latents((8, 8, 3), "image")
