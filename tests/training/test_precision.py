"""What is bfloat16 in a step, and what never is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

import uvit_jax
from experiments.cli import read_config
from tests.helpers.running import ROOT, TINY
from uvit_jax.errors import UvitError
from uvit_jax.models.presets.uvit import preset
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.run_config import OptimizerConfig, TrainConfig, parse_run
from uvit_jax.training.state import TrainState
from uvit_jax.training.step import make_step

HALF = {"model.dtype": "bfloat16"}
POLICIES = {
    "bfloat16": HALF,
    "float32 residual": {**HALF, "model.backbone.residual": "float32"},
    "qk_norm": {**HALF, "model.backbone.qk_norm": "rms"},
}


def equations(jaxpr):
    """All equations of a program, those of the programs inside it among them."""
    for equation in jaxpr.eqns:
        yield equation
        leaf = lambda p: isinstance(p, Jaxpr | ClosedJaxpr)  # noqa: E731
        for inner in jax.tree.leaves(equation.params, is_leaf=leaf):
            if leaf(inner):
                yield from equations(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


@pytest.mark.parametrize("policy", POLICIES)
def test_products_are_bfloat16_and_what_is_sensitive_is_float32(policy):
    run = parse_run(read_config(str(ROOT / TINY), POLICIES[policy]))
    model = uvit_jax.build(run.model)
    optimizer, rate = make_optimizer(run.optimizer, run.train)
    params = model.abstract_params
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=params,
        ema=params,
        opt_state=jax.eval_shape(optimizer.init, params),
        key=jax.eval_shape(lambda: jax.random.key(0)),
    )
    batch = {
        "image": jax.ShapeDtypeStruct((16, 16, 16, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((16,), jnp.int32),
    }
    step = make_step(model, run, optimizer, rate)
    program, (new, metrics) = jax.make_jaxpr(step, return_shape=True)(state, batch)
    found = {}
    for equation in equations(program.jaxpr):
        kinds = {v.aval.dtype.name for v in equation.invars if hasattr(v.aval, "dtype")}
        name = equation.primitive.name
        if name == "dot_general" and equation.params["dimension_numbers"][1][0]:
            name = "attention"
        if name == "exp" and equation.invars[0].aval.ndim == 4:  # (B, H, N, M), and no activation
            name = "softmax"
        found.setdefault(name, set()).update(kinds)
    assert found["dot_general"] == {"bfloat16"}
    # Attention's logits are float32, and so is what comes back to them.
    assert "bfloat16" in found["attention"]
    # Softmax, norms, Adam; the convolution that ends the network.
    for name in ("softmax", "rsqrt", "sqrt", "reduce_max", "conv_general_dilated"):
        assert found[name] == {"float32"}, (name, found[name])
    assert {m.dtype.name for m in metrics.values()} == {"float32"}
    before, after = (jax.tree.map(lambda a: a.dtype, tree) for tree in (state, new))
    assert before == after
    floats = {a.dtype.name for a in jax.tree.leaves((new.params, new.ema, new.opt_state))}
    assert floats - {"int32"} == {"float32"}


def gradient(dtype, residual="same"):
    """Of a tiny model's loss, as a function of a factor on its inputs, and the loss."""
    config = preset("S", (8, 8, 3), patch_size=2, width=32, depth=2, num_heads=2, residual=residual)
    model = uvit_jax.build({**config, "dtype": dtype})
    x = jax.random.normal(jax.random.key(1), (16, 8, 8, 3))
    params = model.init(jax.random.key(0))

    @jax.jit
    @jax.value_and_grad
    def loss(params, scale):
        times = {"image": jnp.linspace(0, 999, 16)}
        return ((model.apply(params, {"image": scale * x}, times)["image"] - x) ** 2).mean()

    return lambda scale: loss(params, scale)


def test_bfloat16_is_near_float32_and_finite_whatever_comes():
    exact, wanted = gradient("float32")(1.0)
    for residual in ("same", "float32"):
        run = gradient("bfloat16", residual)
        value, grads = run(1.0)
        assert 0 < abs(value - exact) < 2e-3 * exact
        # Where there is much to sum, the sums must not be in bfloat16: every parameter is near.
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(grads), strict=True
        ):
            assert jnp.linalg.norm(a - b) < 0.05 * jnp.linalg.norm(a) + 1e-5, path
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(1e4)))


def test_a_float32_residual_keeps_what_a_bfloat16_one_rounds_away():
    """After many blocks, the output is nearer to float32's."""

    def output(dtype, residual="same"):
        config = preset(
            "S", (8, 8, 3), patch_size=2, width=64, depth=24, num_heads=4, skip="none",
            residual=residual, final_conv="none",
        )  # fmt: skip
        model = uvit_jax.build({**config, "dtype": dtype})
        params = model.init(jax.random.key(0))
        # A stream that is large beside what blocks add, as in trained networks.
        params["embed"]["positions"]["image"] *= 100
        x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
        return jax.jit(model.apply)(params, {"image": x}, {"image": jnp.full(2, 500.0)})["image"]

    exact = output("float32")
    plain, wide = (jnp.linalg.norm(output("bfloat16", r) - exact) for r in ("same", "float32"))
    assert wide < 0.7 * plain


def test_a_first_moment_in_bfloat16_halves_its_bytes_and_no_others():
    params = {"w": jax.random.normal(jax.random.key(0), (64, 64))}
    found = {}
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        config = OptimizerConfig(mu_dtype=dtype, warmup_steps=0)
        optimizer, _ = make_optimizer(config, TrainConfig(steps=9, batch_size=1))
        state, w = optimizer.init(params), params
        for i in range(5):
            grads = {"w": params["w"] + jax.random.normal(jax.random.key(i), (64, 64))}
            updates, state = jax.jit(optimizer.update)(grads, state, w)
            w = jax.tree.map(jnp.add, w, updates)
        adam = state[1][0]
        assert (adam.mu["w"].nbytes, adam.nu["w"].nbytes) == (size * 64**2, 4 * 64**2)
        assert updates["w"].dtype == jnp.float32
        found[dtype] = w["w"] - params["w"]
    apart = jnp.abs(found["float32"] - found["bfloat16"])
    assert apart.max() > 0 and apart.mean() < 5e-3 * jnp.abs(found["float32"]).mean()
    with pytest.raises(UvitError, match=r"mu_dtype='bf16'.*'bfloat16'"):
        OptimizerConfig(mu_dtype="bf16")
