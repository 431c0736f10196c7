"""UniDiffuser against its publication: sizes, and the outputs of diffusers' implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from tests.helpers import unidiffusers
from uvit_jax.errors import UvitError
from uvit_jax.models.cost import forward_cost
from uvit_jax.models.model_config import parse_model
from uvit_jax.models.presets.unidiffuser import preset


@pytest.mark.parametrize(
    ("version", "millions", "tokens"), [("v0", 952.50, 1104), ("v1", 952.51, 1105)]
)
def test_sizes_are_the_published_ones(version, millions, tokens):
    config = preset(version)
    model = uvit_jax.build(config)
    assert round(model.num_params / 1e6, 2) == millions
    assert model.layout.num_tokens == tokens
    # 1,163 GMAC, attention's products included.
    assert round(forward_cost(parse_model(config)).gmacs - (version == "v1") * 1.2) == 1163


@pytest.fixture(scope="module", params=["v0", "v1"])
def pair(request, tmp_path_factory):
    """diffusers' network, and ours loaded from its folder."""
    theirs = unidiffusers.network(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return request.param, theirs, *uvit_jax.load(folder)


@pytest.mark.parametrize("data_type", [0, 1])
def test_outputs_equal_diffusers(pair, data_type):
    """At an odd number of patches a side, and with another text length than 77."""
    version, theirs, model, params = pair
    assert model.layout.by_name["image"].grid == (1, 5, 5)
    inputs = unidiffusers.inputs(model, seed=data_type)
    times = {"image": np.array([3.0, 870.0], np.float32), "text": np.array([999.0, 0], np.float32)}
    given = {"data_type": np.full(2, data_type, np.int32)} if version == "v1" else {}
    ours = jax.jit(model.apply)(params, inputs | given, times)
    expected = unidiffusers.apply(theirs, inputs, times, data_type)
    for name, value in expected.items():
        scale = np.abs(value).max()
        assert scale > 0.1  # or the comparison would say nothing
        np.testing.assert_allclose(ours[name], value, atol=1e-4 * scale, rtol=0)


def test_data_are_internal_unless_given(pair):
    version, _, model, params = pair
    if version == "v0":
        with pytest.raises(UvitError, match="data_type"):
            inputs = unidiffusers.inputs(model) | {"data_type": np.zeros(2, np.int32)}
            model.apply(params, inputs, dict.fromkeys(("image", "text"), np.zeros(2)))
        return
    inputs = unidiffusers.inputs(model)
    times = dict.fromkeys(("image", "text"), np.full(2, 500.0, np.float32))
    network = jax.jit(model.apply)
    given = {t: network(params, inputs | {"data_type": np.full(2, t)}, times) for t in (0, 1)}
    default = network(params, inputs, times)
    assert all(np.array_equal(default[n], given[1][n]) for n in default)
    assert not np.array_equal(default["image"], given[0]["image"])


def test_positions_of_other_sizes_are_interpolated_bilinearly():
    """As PyTorch interpolates a map of D channels."""
    torch = pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    model = uvit_jax.build(unidiffusers.config("v1"))
    params = unidiffusers.random_params(model)
    other = model.resized({"image": (6, 14, 4)})
    table_ND = params["embed"]["positions"]["image"]
    map_1DHW = torch.tensor(table_ND.reshape(5, 5, -1)).permute(2, 0, 1)[None]
    options = dict(size=(3, 7), mode="bilinear", align_corners=False)
    expected = torch.nn.functional.interpolate(map_1DHW, **options)[0].flatten(1).T.numpy()
    # A model of the new size with those positions is the resized one.
    fixed = uvit_jax.build(unidiffusers.config("v1", image_shape=(6, 14, 4)))
    moved = jax.tree.map(lambda a: a, params)
    moved["embed"]["positions"]["image"] = expected
    inputs = unidiffusers.inputs(fixed)
    times = dict.fromkeys(("image", "text"), np.full(2, 500.0, np.float32))
    ours, theirs = other.apply(params, inputs, times), fixed.apply(moved, inputs, times)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)


def test_images_of_other_sizes_train_the_same_positions():
    model = uvit_jax.build(unidiffusers.config("v1"))
    other = model.resized({"image": (6, 14, 4)})
    times = dict.fromkeys(("image", "text"), np.full(2, 500.0, np.float32))
    inputs = unidiffusers.inputs(other)

    def loss(params):
        return (other.apply(params, inputs, times)["image"] ** 2).mean()

    gradients = jax.jit(jax.grad(loss))(unidiffusers.random_params(model))
    positions_ND = gradients["embed"]["positions"]["image"]
    assert np.isfinite(positions_ND).all() and np.abs(positions_ND).max(axis=1).min() > 0


def test_post_norm_has_no_modulation():
    with pytest.raises(UvitError, match=r"modulation.*norm='pre'"):
        uvit_jax.build(unidiffusers.config("v0", modulation="adaln_zero"))


def test_unknown_version_names_the_nearest():
    with pytest.raises(UvitError, match="v1"):
        preset("v11")


def test_scan_and_loop_are_one_function():
    config = unidiffusers.config("v1")
    model = uvit_jax.build(config)
    params = unidiffusers.random_params(model)
    inputs = unidiffusers.inputs(model)
    times = {"image": np.array([5.0, 900.0]), "text": np.array([300.0, 0.0])}

    def loss(params, model):
        outputs = model.apply(params, inputs, times)
        return sum(jnp.square(outputs[n] - inputs[n]).mean() for n in outputs)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    one = gradient(params, model)
    for backbone in ({"scan": False}, {"remat": "full"}):
        other = gradient(params, uvit_jax.build(unidiffusers.config("v1", **backbone)))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one, other
        )
