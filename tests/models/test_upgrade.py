"""Configs of run directories of version 0.1 build the same models as today's presets."""

import dataclasses

import pytest

import uvit_jax
from uvit_jax.errors import UvitError
from uvit_jax.models.model_config import parse_model
from uvit_jax.models.presets import dit, unified, uvit
from uvit_jax.training.run_config import parse_run

# Every key that a segment had; stored configs have them all.
OLD = dict(
    role="condition", enter="token", shape=[], patch_size=1, patch_embed="linear",
    patch_init="torch", num_classes=0, init_std=1.0, null=True, vocab_size=0, encoder_depth=0,
    encoder_heads=4, pooled=False, of="", time="", sinusoid_size=0, mlp_ratio=0.0,
    final_conv="after", learned_range=False, positions="learned", like="", type="", subject=-1,
    view=-1, optional=False, offset="none", modulated_at="target", sees=[],
)  # fmt: skip
SMALL = dict(width=24, depth=2, num_heads=1)


def stored(config, **segments):
    """The config with its segments in the old form, each `OLD` with some keys changed."""
    segments = {name: OLD | {"name": name} | change for name, change in segments.items()}
    # The axes of RoPE were stored even where there was none.
    axes = config.get("axes") or ["row", "column"]
    return to_json(config) | {"segments": segments, "axes": list(axes)}


def to_json(config):
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in config.items()
    }


def test_a_stored_uvit_with_a_label_without_a_null_class():
    config = uvit.preset("S", (8, 8, 3), patch_size=4, num_classes=3, null_class=False, **SMALL)
    old = stored(
        config,
        label=dict(modality="label", num_classes=3, null=False),
        time=dict(modality="time", of="image"),
        image=dict(modality="image", role="noisy", shape=[8, 8, 3], patch_size=4),
    )
    assert parse_model(old) == parse_model(config)


def test_a_stored_dit():
    config = dit.preset("S", (8, 8, 4), patch_size=2, num_classes=3, **SMALL)
    entry = dict(enter="adaln", positions="none")
    old = stored(
        config,
        time=dict(modality="time", of="image", sinusoid_size=256, mlp_ratio=1.0, **entry),
        label=dict(modality="label", num_classes=3, init_std=0.02, **entry),
        image=dict(
            modality="image", role="noisy", shape=[8, 8, 4], patch_size=2, patch_init="xavier",
            final_conv="none", learned_range=True, positions="sincos2d",
        ),
    )  # fmt: skip
    assert parse_model(old) == parse_model(config)


def test_a_stored_unified_sequence():
    config = unified.preset(
        "dit", (8, 8, 3), patch_size=4, subjects=1, views=2, text=dict(shape=(4,), vocab_size=9),
        position="rope", offset="diagonal", axes=("segment", "row", "column"), **SMALL,
    )  # fmt: skip
    reference = dict(
        modality="image", role="clean", shape=[8, 8, 3], patch_size=4, like="image",
        type="reference", optional=True, offset="diagonal", modulated_at="zero",
        positions="rotary", sees=["ref_1_1", "ref_1_2"], subject=0,
    )  # fmt: skip
    image = config["segments"]["image"]
    old = stored(
        config,
        text=dict(modality="text", shape=[4], vocab_size=9, enter="adaln", pooled=True,
                  positions="none"),
        ref_1_1=reference | dict(view=0),
        ref_1_2=reference | dict(view=1),
        time=dict(modality="time", of="image", sinusoid_size=256, mlp_ratio=1.0, enter="adaln",
                  positions="none"),
        image=dict(modality="image", role="noisy", shape=[8, 8, 3], patch_size=4,
                   patch_init=image["patch_init"], final_conv="none", positions="rotary"),
    )  # fmt: skip
    ours, theirs = (parse_model(c) for c in (config, old))
    # The references' patches are embedded by the target's matrix: their own fields are unused.
    unused = dict(final_conv="after", patch_init="torch")
    for name in ("ref_1_1", "ref_1_2"):
        assert dataclasses.replace(ours.segments[name], **unused) == theirs.segments[name]
    assert (
        uvit_jax.build(ours).abstract_params.keys() == uvit_jax.build(theirs).abstract_params.keys()
    )
    assert ours.segments["image"] == theirs.segments["image"]


@pytest.mark.parametrize("value", [0.02, [1], "x"])
def test_a_field_that_the_kind_never_used_is_dropped(value):
    config = uvit.preset("S", (8, 8, 3), patch_size=4, **SMALL)
    old = stored(
        config,
        time=dict(modality="time", of="image", init_std=value),
        image=dict(modality="image", role="noisy", shape=[8, 8, 3], patch_size=4),
    )
    assert parse_model(old) == parse_model(config)


def test_a_stored_objective_with_times_of():
    config = uvit.preset("S", (8, 8, 3), patch_size=4, **SMALL)
    train = dict(steps=1, batch_size=1)
    data = dict(image_size=8)
    run = dict(model=config, train=train, data=data)
    assert parse_run(run | {"diffusion": {"times_of": {}}}) == parse_run(run)
    with pytest.raises(UvitError, match=r"times_of.*`time`"):
        parse_run(run | {"diffusion": {"times_of": {"image": "other"}}})
