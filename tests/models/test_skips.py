"""The ways to merge a long skip are special cases of the published one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax import build
from uvit_jax.errors import UvitError
from uvit_jax.models.presets import uvit

WIDTH = 32


def model(position: str = "learned", **options):
    options = dict(width=WIDTH, depth=4, num_heads=4) | options
    config = uvit.preset("S", (8, 8, 3), patch_size=2, **options)
    config["segments"]["image"]["position"] = position
    return build(config)


def outputs(model, params):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    return model.apply(params, {"image": x}, {"image": jnp.array([3.0, 700.0])})["image"]


@pytest.mark.parametrize("skip", ["add", "linear_of_sum", "sum_of_linear"])
def test_every_merge_is_a_concatenation_with_some_matrix(skip):
    """add = [h, s][I; I], linear_of_sum = [h, s][W; W], sum_of_linear = [h, s][I; W]."""
    published = model()
    params = published.init(jax.random.key(0))
    out_blocks = dict(params["backbone"]["out_blocks"])
    linear = out_blocks.pop("skip")
    one = jnp.broadcast_to(jnp.eye(WIDTH), (2, WIDTH, WIDTH))
    W = linear["kernel"][:, :WIDTH]
    top = {"add": one, "linear_of_sum": W, "sum_of_linear": one}[skip]
    bottom = {"add": one, "linear_of_sum": W, "sum_of_linear": W}[skip]
    bias = 0 * linear["bias"] if skip == "add" else linear["bias"] + 0.1

    def put(merge):
        blocks = out_blocks | ({"skip": merge} if merge else {})
        return params | {"backbone": params["backbone"] | {"out_blocks": blocks}}

    concat = put({"kernel": jnp.concatenate([top, bottom], axis=1), "bias": bias})
    variant = put(None if skip == "add" else {"kernel": W, "bias": bias})
    ours = outputs(model(skip=skip), variant)
    np.testing.assert_allclose(ours, outputs(published, concat), atol=2e-5)
    assert not np.allclose(ours, outputs(published, params), atol=1e-3)


def test_no_long_skips_leave_the_number_of_blocks():
    """Without skips, as many blocks; what is saved are the merging matrices."""
    merging = 2 * (2 * WIDTH * WIDTH + WIDTH)
    assert model().num_params - model(skip="none").num_params == merging


def test_positions_distinguish_patches():
    """Without positions a transformer commutes with moving whole patches; with them it does not."""

    def moved(position):
        net = model(position, skip="none", final_conv="none")
        # Large matrices, so that attention is far from uniform.
        params = jax.tree.map(lambda a: 10 * a, net.init(jax.random.key(0)))
        x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 3)), jnp.float32)

        def run(x):
            return net.apply(params, {"image": x}, {"image": jnp.ones(1)})["image"]

        return float(jnp.abs(jnp.roll(run(x), 2, axis=2) - run(jnp.roll(x, 2, axis=2))).max())

    assert moved("none") < 1e-3 < 1e-1 < moved("rope")


def test_a_head_size_too_small_for_the_axes():
    with pytest.raises(UvitError, match=r"position='rope'.*head size.*at least 4, not 2"):
        model("rope", num_heads=16)
