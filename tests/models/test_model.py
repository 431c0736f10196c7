"""Properties of any model, whatever its preset."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from uvit_jax.errors import UvitError
from uvit_jax.models.presets.uvit import preset

SMALL = preset("S", (8, 8, 3), patch_size=2, num_classes=5, width=32, depth=4, num_heads=2)


def dit(modulation="adaln_zero"):
    """A DiT: time and label by modulation, fixed positions, no long skips."""
    return dict(
        sequence=("time", "label", "image"),
        segments=dict(
            time=dict(kind="time", time="image", enter="adaln", sinusoid_size=16, mlp_ratio=1.0),
            label=dict(kind="label", num_classes=5, enter="adaln"),
            image=dict(
                kind="patches",
                role="noisy",
                shape=(8, 8, 3),
                patch_size=2,
                final_conv="none",
                position="sincos",
            ),
        ),
        backbone=dict(
            width=32,
            depth=3,
            num_heads=2,
            mid_block=False,
            skip="none",
            norm_affine=False,
            norm_eps=1e-6,
            activation="gelu_tanh",
            qkv_bias=True,
            modulation=modulation,
        ),
    )


def example(batch=3):
    x = jax.random.normal(jax.random.key(5), (batch, 8, 8, 3))
    inputs = {"image": x, "label": jnp.arange(batch)}
    return inputs, {"image": jnp.linspace(0, 999, batch)}


@pytest.mark.parametrize("config", [SMALL, dit(), dit("adaln")], ids=["uvit", "dit", "dit_adaln"])
def test_examples_do_not_mix(config):
    model = uvit_jax.build(config)
    params = jax.tree.map(lambda p: p + 0.02, model.init(jax.random.key(0)))
    whole = jax.jit(model.apply)(params, *example())["image"]
    one = jax.tree.map(lambda a: a[1:2], example())
    np.testing.assert_allclose(jax.jit(model.apply)(params, *one)["image"], whole[1:2], atol=1e-5)
    assert jnp.abs(whole[0] - whole[1]).max() > 1e-4


def test_adaln_zero_starts_as_the_identity_and_each_condition_counts_after():
    model = uvit_jax.build(dit())
    params = model.init(jax.random.key(0))
    inputs, times = example()
    assert not jnp.any(jax.jit(model.apply)(params, inputs, times)["image"])
    params = jax.tree.map(lambda p: p + 0.05, params)
    out = jax.jit(model.apply)(params, inputs, times)["image"]
    other_label = jax.jit(model.apply)(params, {**inputs, "label": inputs["label"] + 1}, times)[
        "image"
    ]
    other_time = jax.jit(model.apply)(params, inputs, {"image": times["image"] + 9})["image"]
    assert jnp.any(out != other_label) and jnp.any(out != other_time)


def test_without_positions_the_network_is_equivariant_to_permuted_patches():
    """Self-attention is equivariant to permutations; only positions break it."""
    config = {**SMALL, "sequence": ("time", "image")}
    segments = {**SMALL["segments"], "image": {**SMALL["segments"]["image"], "final_conv": "none"}}
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    times = {"image": jnp.ones(2)}
    moved = jnp.roll(x, 2, axis=1)  # by one patch
    for position, equivariant in (("none", True), ("learned", False)):
        segments["image"]["position"] = position
        model = uvit_jax.build({**config, "segments": segments})
        params = jax.tree.map(lambda p: p + 0.01, model.init(jax.random.key(1)))
        out = jax.jit(model.apply)(params, {"image": x}, times)["image"]
        out_moved = jax.jit(model.apply)(params, {"image": moved}, times)["image"]
        same = np.allclose(jnp.roll(out, 2, axis=1), out_moved, atol=1e-5)
        assert same == equivariant


def test_bfloat16_computes_what_float32_does_with_float32_ends():
    inputs, times = example()
    exact = uvit_jax.build(SMALL)
    rounded = uvit_jax.build({**SMALL, "dtype": "bfloat16"})
    params = rounded.init(jax.random.key(0))
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    a, b = (jax.jit(m.apply)(params, inputs, times)["image"] for m in (exact, rounded))
    assert b.dtype == jnp.float32
    assert 0 < jnp.abs(a - b).max() < 0.05 * jnp.abs(a).max()


def test_init_is_a_function_of_its_key():
    model = uvit_jax.build(SMALL)
    a, b, c = (model.init(jax.random.key(k)) for k in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, a, b))
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, a, c))
    # Layers of a stack are drawn apart.
    kernel = a["backbone"]["in_blocks"]["mlp"]["fc1"]["kernel"]
    assert jnp.abs(kernel[0] - kernel[1]).max() > 0
    assert np.isclose(kernel.std(), 0.02, rtol=0.05)
    assert jax.tree.map(jnp.shape, a) == jax.tree.map(lambda s: s.shape, model.abstract_params)


def test_compile_size_does_not_grow_with_depth():
    inputs, times = example()

    def lines(depth):
        config = {**SMALL, "backbone": {**SMALL["backbone"], "depth": depth}}
        model = uvit_jax.build(config)
        lowered = jax.jit(model.apply).lower(model.abstract_params, inputs, times)
        return len(lowered.as_text().splitlines())

    assert lines(24) < 1.05 * lines(4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"backbone": {"width": 32}}, r"config\.model\.backbone\.depth is missing"),
        ({"sequence": ("time", "img")}, "names 'img', which is no segment"),
        ({"dtype": "float16"}, r"dtype='float16'.*bfloat16"),
        ({"backbone": dict(width=32, depth=3, num_heads=2)}, "depth=3 must be even"),
        (
            {"backbone": dict(width=32, depth=2, num_heads=2, attention="flash")},
            r"attention='flash'.*splash",
        ),
    ],
)
def test_an_impossible_model_raises(change, message):
    with pytest.raises(UvitError, match=message):
        uvit_jax.build({**SMALL, **change})


def test_a_label_that_is_not_an_integer_raises():
    inputs, times = example()
    model = uvit_jax.build(SMALL)
    wrong = {**inputs, "label": jnp.ones(3)}
    with pytest.raises(UvitError, match=r"'label'.*must be integers.*float32"):
        model.apply(model.abstract_params, wrong, times)


def test_importing_the_package_or_a_preset_imports_nothing_heavy():
    code = "import sys, uvit_jax, uvit_jax.models.presets.uvit; print('jax' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
