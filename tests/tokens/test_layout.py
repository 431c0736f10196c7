"""Layouts: the order of segments, attention masks, shared parameters, impossible layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from uvit_jax.config import to_dict
from uvit_jax.errors import UvitError
from uvit_jax.tokens.layout import Layout
from uvit_jax.tokens.modalities.features import Features
from uvit_jax.tokens.modalities.label import Label
from uvit_jax.tokens.modalities.patches import Patches
from uvit_jax.tokens.modalities.text import Text
from uvit_jax.tokens.modalities.time import Time

BACKBONE = dict(width=32, depth=2, num_heads=2)


def time(**kwargs):
    return Time(**{"name": "time", "time": "image", **kwargs})


def image(**kwargs):
    defaults = dict(name="image", role="noisy", shape=(8, 8, 3), patch_size=4)
    return Patches(**(defaults | kwargs))


def text(**kwargs):
    return Text(**dict(name="text", shape=(5,), vocab_size=9) | kwargs)


def build(*segments, **backbone):
    names = tuple(s.name for s in segments)
    fields = {s.name: to_dict(s) for s in segments}
    return uvit_jax.build(dict(sequence=names, segments=fields, backbone=BACKBONE | backbone))


def test_segments_are_in_order():
    layout = Layout([time(), text(), image()])
    assert layout.num_tokens == 1 + 5 + 4
    assert [layout.slices[n] for n in ("time", "text", "image")] == [
        slice(0, 1),
        slice(1, 6),
        slice(6, 10),
    ]
    assert layout.visibility() is None


def test_indices_beyond_a_table_are_refused_by_segment():
    label = Label(name="label", num_classes=3)
    model = build(time(), label, text(), image())
    params = model.init(jax.random.key(0))
    times = {"image": jnp.zeros(2)}

    def inputs(**given):
        data = dict(label=np.array([3, 0]), text=np.full((2, 5), 8), image=np.zeros((2, 8, 8, 3)))
        return {k: jnp.asarray(v) for k, v in (data | given).items()}

    finite = jax.jit(model.apply)(params, inputs(), times)["image"]
    assert np.isfinite(finite).all()
    # As model.apply alone: the null class and the last word are the last indices.
    np.testing.assert_allclose(model.apply(params, inputs(), times)["image"], finite, atol=1e-5)
    for name, wrong in (
        ("label", [0, -1]),
        ("label", [4, 0]),
        ("text", [[0, 0, 0, 0, -1]] * 2),
        ("text", [[0, 9, 0, 0, 0]] * 2),
    ):
        given = inputs(**{name: np.array(wrong, np.int32)})
        with pytest.raises(UvitError, match=rf"'{name}'.* (-1|4|9) at .*from 0 to"):
            model.apply(params, given, times)
        # Under jit the values are unknown: then the outputs are not those of another class.
        assert np.isnan(jax.jit(model.apply)(params, given, times)["image"]).any()


def test_slots_of_references_are_not_counted_from_the_end():
    ref = image(name="ref", role="clean", share="image", slot=(0, 0))
    layout = Layout([time(), image(), ref], max_subjects=3, max_views=2)
    layout.check_ids({"subject_slots": np.array([[2]]), "view_slots": np.array([[[1]]])})
    for name, value in (("subject_slots", [[-1]]), ("subject_slots", [[3]]), ("view_slots", [[2]])):
        with pytest.raises(UvitError, match=rf"{name}.*from 0 to"):
            layout.check_ids({name: np.array(value)})


REF = dict(role="clean", share="image")
SLOT = dict(role="clean", slot=(0,), shape=(8, 8, 3), patch_size=4)
IMPOSSIBLE = {
    "names of no text": (
        lambda: [text(name="txt"), image(name="r", names_from="text", **SLOT), time(), image()],
        "names_from='text' is not a segment of text.*did you mean 'txt'",
    ),
    "too few names": (
        lambda: [text(names=()), image(name="r", names_from="text", **SLOT), time(), image()],
        r"names=\(\), fewer than max_subjects=1",
    ),
    "a name beyond the words": (lambda: [text(names=(9,)), time(), image()], "vocab_size - 1"),
    "names of one vector": (
        lambda: [text(names=(1,), pooled=True), time(), image()],
        "names needs pooled=False",
    ),
    "names of the target": (
        lambda: [text(names=(1,)), time(), image(names_from="text")],
        "names_from is for references",
    ),
    "a width without an encoder": (
        lambda: [text(encoder_width=8), time(), image()],
        "encoder_width=8 must be 0, or positive and with encoder_depth",
    ),
    "role": (lambda: [time(), image(role="noise")], "role='noise'.*'noisy'"),
    "enter": (lambda: [time(enter="adalm"), image()], "enter='adalm'"),
    "nothing noisy": (lambda: [time(), image(role="clean")], "role='noisy': nothing to generate"),
    "no time": (lambda: [image()], "kind='time', time='image'"),
    "a time of no segment": (
        lambda: [time(), time(name="t2", time="imge"), image()],
        "time='imge'.*did you mean 'image'",
    ),
    "no time key": (lambda: [time(time=""), image()], "`time`"),
    "time of a condition": (lambda: [time(), image(), text(time="image")], "role='noisy'"),
    "no name": (lambda: [time(name="")], "no name"),
    "two of a name": (lambda: [time(), time(), image()], "two segments named 'time'"),
    "noisy label": (
        lambda: [time(), image(), Label(name="label", role="noisy", num_classes=3)],
        "'label' has no output head",
    ),
    "noisy adaln": (lambda: [time(), image(enter="adaln")], "enter='token'"),
    "text by adaln": (lambda: [time(), image(), text(enter="adaln")], "enter='token'"),
    "sees nobody": (lambda: [time(sees=("imag",)), image()], "sees='imag'.*did you mean"),
    "share nobody": (
        lambda: [time(), image(), image(name="r", **REF | dict(share="imag"))],
        "share",
    ),
    "share other channels": (
        lambda: [time(), image(), image(name="ref", shape=(8, 8, 4), **REF)],
        "same kind, .*patch_size",
    ),
    "share another patch": (
        lambda: [time(), image(), image(name="r", patch_size=2, **REF)],
        "patch",
    ),
    "share a shared": (
        lambda: [time(), image(), image(name="a", **REF), image(name="b", role="clean", share="a")],
        "parameters of its own",
    ),
    "share positions of another kind": (
        lambda: [time(), image(position="sincos"), image(name="ref", **REF)],
        "position='sincos'",
    ),
    "empty text": (lambda: [time(), image(), text(vocab_size=0)], "vocab_size"),
    "rope by adaln": (lambda: [time(enter="adaln", position="rope"), image()], "enter='token'"),
    "optional condition": (lambda: [time(), text(optional=True), image()], "optional=True"),
    "clean modulation": (lambda: [time(), image(modulation="clean")], "role='clean'"),
    "slot": (lambda: [time(), image(), image(name="r", slot=(0, -1), **REF)], "slot"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_layout_names_the_key_and_the_remedy(case):
    segments, message = IMPOSSIBLE[case]
    with pytest.raises(UvitError, match=message):
        Layout(segments())


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (dict(), r"segments\.label\.kind is missing"),
        (dict(kind="lable"), "kind='lable'.*did you mean 'label'"),
        (dict(kind="label", num_classes=3, patch_size=2), r"segments\.label\.patch_size"),
        (dict(kind="label", num_classes="3"), r"segments\.label\.num_classes"),
        (dict(kind="label", num_classes=0), r"segments\.label.*num_classes"),
    ],
)
def test_a_field_that_a_kind_does_not_have_cannot_be_set(segment, message):
    config = to_dict(build(time(), image()).config)
    config["segments"]["label"] = segment
    with pytest.raises(UvitError, match=message):
        uvit_jax.build(config)


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
            time=dict(kind="time", time="image"),
            image=dict(kind="patches", role="noisy", shape=(8, 8, 3), patch_size=4),
        ),
        backbone=BACKBONE,
    )
    assert uvit_jax.build(config.model).layout == build(time(), image()).layout


def references(**kwargs):
    """Two references that see only themselves, two subjects' first views, beside the target."""
    first = image(name="ref0", slot=(0, 0), sees=("ref0",), **REF)
    second = image(name="ref1", slot=(1, 0), sees=("ref1",), **REF)
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
    clip = Features(name="clip", shape=(1, 6), time="image", role="noisy")
    text = Features(name="text", shape=(5, 4), role="noisy")
    model = build(time(), time(name="t_text", time="text"), text, clip, image())
    assert model.layout.time_keys == ("image", "text")
    inputs = {
        "image": jnp.ones((2, 8, 8, 3)),
        "clip": jnp.ones((2, 1, 6)),
        "text": jnp.ones((2, 5, 4)),
    }
    times = {"image": jnp.ones(2), "text": jnp.zeros(2)}
    outputs = jax.jit(model.apply)(model.init(jax.random.key(0)), inputs, times)
    assert {k: v.shape for k, v in outputs.items()} == {k: v.shape for k, v in inputs.items()}


def test_wrong_inputs_raise():
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
