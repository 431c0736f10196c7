"""Layouts: where segments stand, what they see, and what cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from uvit_jax.errors import UvitError
from uvit_jax.tokens.embed import sincos2d
from uvit_jax.tokens.image import patchify, unpatchify
from uvit_jax.tokens.layout import Layout
from uvit_jax.tokens.modalities import sinusoid
from uvit_jax.tokens.segment import Segment

BACKBONE = dict(width=32, depth=2, num_heads=2)


def time(**kwargs):
    return Segment(**{"name": "time", "modality": "time", "of": "image", **kwargs})


def image(**kwargs):
    defaults = dict(name="image", modality="image", role="noisy", shape=(8, 8, 3), patch_size=4)
    return Segment(**(defaults | kwargs))


def build(*segments, **backbone):
    fields = {s.name: {k: getattr(s, k) for k in Segment.__dataclass_fields__} for s in segments}
    names = tuple(s.name for s in segments)
    return uvit_jax.build(dict(sequence=names, segments=fields, backbone=BACKBONE | backbone))


def test_segments_stand_in_order():
    layout = Layout(
        [time(), Segment(name="text", modality="text", shape=(5,), vocab_size=9), image()]
    )
    assert layout.num_tokens == 1 + 5 + 4
    assert [layout.slices[n] for n in ("time", "text", "image")] == [
        slice(0, 1),
        slice(1, 6),
        slice(6, 10),
    ]
    assert layout.visibility() is None


REF = dict(role="clean", like="image")
IMPOSSIBLE = {
    "modality": ([time(), image(modality="imag")], "unknown modality 'imag'; did you mean 'image'"),
    "role": ([time(), image(role="noise")], "unknown role 'noise'; did you mean 'noisy'"),
    "enter": ([time(enter="adalm"), image()], "unknown enter 'adalm'"),
    "nothing noisy": ([time(), image(role="clean")], "nothing to generate"),
    "no time": ([image()], "no time segment"),
    "time of nobody": ([time(), time(name="t2", of="imge"), image()], "time of no noisy segment"),
    "patch": ([time(), image(patch_size=3)], "patch_size=3 does not divide"),
    "shape": ([time(), image(shape=(8, 8))], r"needs shape \(H, W, C\)"),
    "two of a name": ([time(), time(), image()], "two segments named 'time'"),
    "noisy label": (
        [time(), image(), Segment(name="label", modality="label", role="noisy", num_classes=3)],
        "a label cannot be noisy",
    ),
    "noisy adaln": ([time(), image(enter="adaln")], "enter='token'"),
    "text by adaln": (
        [
            time(),
            image(),
            Segment(name="x", modality="text", shape=(5,), vocab_size=9, enter="adaln"),
        ],
        "cannot be summed",
    ),
    "sees nobody": ([time(sees=("imag",)), image()], "sees 'imag', no token segment; did you mean"),
    "like nobody": (
        [time(), image(), image(name="ref", **(REF | {"like": "imag"}))],
        "is no segment",
    ),
    "like another shape": (
        [time(), image(), image(name="ref", shape=(4, 4, 3), **REF)],
        "same modality, shape",
    ),
    "empty text": ([time(), image(), Segment(name="x", modality="text", shape=(5,))], "vocab_size"),
    "fixed positions of a label": (
        [time(), image(), Segment(name="l", modality="label", num_classes=2, positions="sincos2d")],
        "is for images",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_layout_is_a_sentence(case):
    segments, message = IMPOSSIBLE[case]
    with pytest.raises(UvitError, match=message):
        Layout(segments)


def test_ways_in_that_the_backbone_lacks():
    with pytest.raises(UvitError, match=r"'time' enters by 'adaln', but backbone\.modulation"):
        build(time(enter="adaln"), image())
    with pytest.raises(UvitError, match="no segment enters by 'adaln'"):
        build(time(), image(), modulation="adaln_zero")


def test_a_config_dict_is_a_config():
    from ml_collections import ConfigDict

    config = ConfigDict()
    config.model = dict(
        sequence=("time", "image"),
        segments=dict(
            time=dict(modality="time", of="image"),
            image=dict(modality="image", role="noisy", shape=(8, 8, 3), patch_size=4),
        ),
        backbone=BACKBONE,
    )
    assert uvit_jax.build(config.model).layout == build(time(), image()).layout


def references(**kwargs):
    """Two references that see only themselves, two subjects' first views, beside the target."""
    first = image(name="ref0", role="clean", like="image", subject=0, view=0, sees=("ref0",))
    second = image(name="ref1", role="clean", like="image", subject=1, view=0, sees=("ref1",))
    # Through a time token that saw them, the references would reach the target by a detour.
    return build(first, second, time(sees=("image",)), image(**kwargs))


def test_visibility_is_what_reaches_the_output():
    """What a segment may not see cannot change what is read from segments that see only it."""
    blind = references(sees=("ref0", "time"))
    seeing = references()
    x = jax.random.normal(jax.random.key(0), (3, 2, 8, 8, 3))
    for model, changes in ((blind, False), (seeing, True)):
        params = model.init(jax.random.key(1))
        outputs = [
            jax.jit(model.apply)(
                params, {"image": x[0], "ref0": x[1], "ref1": ref}, {"image": jnp.ones(2)}
            )["image"]
            for ref in (x[1], x[2])
        ]
        assert bool(jnp.any(outputs[0] != outputs[1])) == changes


def test_references_share_their_embedding_and_differ_by_slot():
    model = references()
    params = model.init(jax.random.key(0))
    assert set(params["embed"]["segments"]) == {"image"}
    assert params["embed"]["subjects"].shape == (2, 32)
    x = jax.random.normal(jax.random.key(0), (3, 2, 8, 8, 3))
    inputs = {"image": x[0], "ref0": x[1], "ref1": x[2]}
    swapped = {"image": x[0], "ref0": x[2], "ref1": x[1]}
    times = {"image": jnp.ones(2)}
    one, other = (jax.jit(model.apply)(params, i, times)["image"] for i in (inputs, swapped))
    assert jnp.abs(one - other).max() > 1e-5
    # Swapping the references and their slots is no change at all.
    params["embed"]["subjects"] = params["embed"]["subjects"][::-1]
    np.testing.assert_allclose(
        one, jax.jit(model.apply)(params, swapped, times)["image"], atol=1e-5
    )


def test_two_noisy_segments_have_their_own_times_or_share_one():
    features = dict(modality="features", role="noisy")
    clip = Segment(name="clip", shape=(1, 6), time="image", **features)
    text = Segment(name="text", shape=(5, 4), **features)
    model = build(time(), time(name="t_text", of="text"), text, clip, image())
    assert model.layout.time_keys == ("image", "text")
    inputs = {
        "image": jnp.ones((2, 8, 8, 3)),
        "clip": jnp.ones((2, 1, 6)),
        "text": jnp.ones((2, 5, 4)),
    }
    times = {"image": jnp.ones(2), "text": jnp.zeros(2)}
    outputs = jax.jit(model.apply)(model.init(jax.random.key(0)), inputs, times)
    assert {k: v.shape for k, v in outputs.items()} == {k: v.shape for k, v in inputs.items()}


def test_wrong_inputs_are_named():
    model = build(time(), image())
    params = model.init(jax.random.key(0))
    x, t = jnp.ones((2, 8, 8, 3)), jnp.ones(2)
    for inputs, times, message in (
        ({"image": x}, {}, "times lacks 'image'"),
        ({"image": x, "label": t}, {"image": t}, "inputs has 'label'"),
        ({"image": x[:, :4]}, {"image": t}, r"has shape \(2, 4, 8, 3\), expected \(2, 8, 8, 3\)"),
        ({"image": x}, {"image": t[:1]}, "times"),
        ({}, {"image": t}, "inputs lacks 'image'"),
    ):
        with pytest.raises(UvitError, match=message):
            model.apply(params, inputs, times)


def test_patches_are_a_strided_convolution_and_come_back():
    x = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    kernel = jax.random.normal(jax.random.key(1), (4, 4, 3, 7))
    convolved = jax.lax.conv_general_dilated(
        x, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    product = patchify(x, 4) @ kernel.reshape(-1, 7)
    np.testing.assert_allclose(product, convolved.reshape(2, 6, 7), atol=1e-4)
    assert jnp.array_equal(unpatchify(patchify(x, 4), 4, (2, 3)), x)


def test_sinusoids_tell_times_and_places_apart():
    t = jnp.arange(1000.0)
    features = np.asarray(sinusoid(t, 64))
    similarity = features @ features.T / 32
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-5)
    # The angle between two times depends on their distance only.
    np.testing.assert_allclose(similarity[0, :500], similarity[400, 400:900], atol=1e-3)
    assert (similarity - np.eye(1000)).max() < 1 - 1e-6
    places = sincos2d(3, 5, 16)
    assert len(np.unique(places.round(5), axis=0)) == 15
    # Column first: two rows of one column agree in the first half of the width.
    assert np.array_equal(places[2, :8], places[7, :8])
