"""What is bfloat16 in a step, and what never is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from tests.training.test_step import setup
from uvit_jax.errors import UvitError
from uvit_jax.parallel.sharding import path_string

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
    *_, state, batch, step = setup(**POLICIES[policy])
    program = list(equations(jax.make_jaxpr(step)(state, batch).jaxpr))
    found = {}
    for equation in program:
        kinds = {v.aval.dtype.name for v in equation.invars if hasattr(v.aval, "dtype")}
        found.setdefault(equation.primitive.name, set()).update(kinds)
    assert found["dot_general"] == found["conv_general_dilated"] == {"bfloat16"}
    # Softmax, norms, Adam.
    for name in ("exp", "rsqrt", "sqrt", "reduce_max"):
        assert found[name] == {"float32"}, (name, found[name])
    logits = [e for e in program if e.params.get("preferred_element_type") == jnp.float32]
    assert logits  # attention's first product is summed and kept in float32
    new, metrics = jax.eval_shape(step, state, batch)
    assert {m.dtype.name for m in metrics.values()} == {"float32"}
    before, after = (jax.tree.map(lambda a: a.dtype, tree) for tree in (state, new))
    assert before == after
    for tree in (new.params, new.ema, new.opt_state):
        floats = {a.dtype.name for a in jax.tree.leaves(tree)} - {"int32"}
        assert floats == {"float32"}


@pytest.mark.parametrize("policy", POLICIES)
def test_bfloat16_is_near_float32_and_finite_whatever_comes(policy):
    options = POLICIES[policy]
    exact_options = {k: v for k, v in options.items() if k != "model.dtype"}
    *_, state, batch, exact = setup(**exact_options)
    *_, step = setup(**options)
    a, b = exact(state, batch)[1], step(state, batch)[1]
    assert 0 < abs(a["loss"] - b["loss"]) < 2e-3 * a["loss"]
    assert abs(a["grad_norm"] - b["grad_norm"]) < 0.02 * a["grad_norm"]
    huge = {**batch, "image": 1e4 * batch["image"]}
    new, metrics = step(dataclasses.replace(state, step=jnp.int32(9)), huge)
    for leaf in jax.tree.leaves((new.params, new.opt_state, metrics)):
        assert np.isfinite(leaf).all()


def test_a_float32_residual_keeps_what_a_bfloat16_one_rounds_away():
    """After many blocks, tokens are nearer to float32's."""
    import uvit_jax
    from uvit_jax.models.uvit import preset

    def tokens(dtype, residual="same"):
        config = preset("S", (8, 8, 3), patch_size=2, width=64, depth=24, num_heads=4, skip="none",
                        residual=residual, final_conv="none")  # fmt: skip
        model = uvit_jax.build({**config, "dtype": dtype})
        params = jax.tree.map(lambda p: p, model.init(jax.random.key(0)))
        # A stream that is large beside what blocks add, as in trained networks.
        params["embed"]["positions"]["image"] *= 100
        x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
        return model.apply(params, {"image": x}, {"image": jnp.full(2, 500.0)})["image"]

    exact = tokens("float32")
    plain, wide = (
        float(jnp.linalg.norm(tokens("bfloat16", r) - exact)) for r in ("same", "float32")
    )
    assert wide < 0.7 * plain


def test_a_first_moment_in_bfloat16_halves_its_bytes_and_no_others():
    def bytes_of(state):
        found = {"mu": 0, "nu": 0}
        for path, a in jax.tree_util.tree_leaves_with_path(state.opt_state):
            for name in found:
                if f"/{name}/" in f"/{path_string(path)}/":
                    found[name] += a.nbytes
        return found

    _, model, state, batch, step = setup()
    *_, small, _, small_step = setup(**{"optimizer.mu_dtype": "bfloat16"})
    size = 4 * model.num_params
    assert bytes_of(state) == {"mu": size, "nu": size}
    assert bytes_of(small) == {"mu": size // 2, "nu": size}
    state, small = (dataclasses.replace(s, step=jnp.int32(9)) for s in (state, small))
    for _ in range(3):
        state, small = step(state, batch)[0], small_step(small, batch)[0]
    assert bytes_of(small) == {"mu": size // 2, "nu": size}
    moved, apart = 0.0, 0.0
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(small.params), strict=True):
        moved, apart = moved + jnp.abs(a).sum(), apart + jnp.abs(a - b).sum()
    assert 0 < apart < 1e-3 * moved
    with pytest.raises(UvitError, match=r"optimizer: unknown mu_dtype 'bf16'.*'bfloat16'"):
        setup(**{"optimizer.mu_dtype": "bf16"})
