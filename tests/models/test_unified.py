"""References as tokens: who is absent, in which slot, and seen how, leaves no other trace."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from uvit_jax.config import to_dict
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.schedule import ScheduleConfig
from uvit_jax.errors import UvitError
from uvit_jax.models.cost import forward_cost
from uvit_jax.models.presets import unified
from uvit_jax.training.dropping import permute
from uvit_jax.training.loss import corrupt, diffusion_loss

B = 2
WORDS = (5, 6, 7)  # the ids of @1, @2, @3
SHAPE = (8, 8, 3)


def build(style="uvit", subjects=2, views=2, text_enter="", **options):
    defaults = dict(patch_size=4, max_subjects=3, max_views=3, text=dict(shape=(6,), vocab_size=9))
    defaults |= dict(width=16, depth=2, num_heads=2) | options
    if text_enter:
        defaults["text"] = defaults["text"] | dict(enter=text_enter)
    return uvit_jax.build(unified.preset(style, SHAPE, subjects=subjects, views=views, **defaults))


def randomised(model):
    """Parameters away from their start, where much is zero or the same."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.3, jnp.float32), model.abstract_params
    )


def example(model, present=None):
    """Random inputs for a model, the same for the same names, and times."""
    rng = np.random.default_rng(0)
    pictures = {
        name: jnp.asarray(rng.normal(size=(B, *SHAPE)), jnp.float32)
        for name in ("image", *(f"ref_{s}_{v}" for s in (1, 2, 3) for v in (1, 2, 3)))
    }
    everything = pictures | {
        "text": jnp.asarray(rng.permuted(np.tile([3, 5, 6, 7, 8, 0], (B, 1)), axis=1)),
        "refs_present": jnp.ones((B, model.layout.num_subjects, model.layout.num_views), bool),
    }
    if present is not None:
        everything["refs_present"] = jnp.asarray(present)
    inputs = {name: everything[name] for name in model.layout.input_shapes}
    return inputs, {"image": jnp.asarray(rng.uniform(0.1, 1, B), jnp.float32)}


@functools.cache
def jitted(model):
    return jax.jit(model.apply)


def output(model, params, inputs, times, **options):
    return np.asarray(jitted(model)(params, inputs, times, **options)["image"])


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, atol=atol * max(1.0, np.abs(a).max()))


ROTARY = dict(position="rope", offset="diagonal", axes=("segment", "row", "column"), num_heads=1)
ROTARY |= dict(width=12)
NAMED = dict(text=dict(shape=(6,), vocab_size=9, names=WORDS, encoder_depth=1, encoder_width=8))
CASES = {
    "uvit joint, named": dict(style="uvit", visibility="ref_joint", **NAMED),
    "dit joint, named, coarse": dict(
        style="dit", text_enter="token", reference_patch_size=8, **NAMED
    ),
    "uvit full": dict(style="uvit", visibility="full"),
    "uvit joint, rotary": dict(style="uvit", visibility="ref_joint", **ROTARY),
    "dit isolated, loop": dict(style="dit", visibility="ref_isolated", scan=False),
}
CACHED = [name for name in CASES if "full" not in name]


@pytest.mark.parametrize("case", ["uvit full", "uvit joint, rotary"])
def test_an_absent_reference_is_one_that_is_not_in_the_sequence(case):
    """Each example gives what a layout of just its reference gives, in the same slot, whatever
    stands in the place of the others."""
    model, alone = (build(**CASES[case], subjects=n, views=n) for n in (2, 1))
    params = randomised(model)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, alone.abstract_params)
    inputs, times = example(model, [[[1, 0], [0, 0]], [[0, 0], [1, 0]]])
    ours = output(model, params, inputs, times)
    only, _ = example(alone)
    only["ref_1_1"] = only["ref_1_1"].at[1].set(inputs["ref_2_1"][1])
    slots = {"subject_slots": jnp.array([[0], [1]]), "view_slots": jnp.zeros((2, 1, 1), int)}
    close(ours, output(alone, params, only | slots, times))
    other = inputs | {"ref_1_2": 9 - inputs["ref_1_2"], "ref_2_2": inputs["ref_2_2"] ** 3}
    assert (ours == output(model, params, other, times)).all()
    seen = output(model, params, other | {"refs_present": jnp.ones((B, 2, 2), bool)}, times)
    assert np.abs(ours - seen).max() > 1e-2


def test_absent_references_equal_the_model_without_them():
    model = build(**CASES["uvit full"])
    params = randomised(model)
    inputs, times = example(model, np.zeros((B, 2, 2)))
    bare = model.without_references()
    rest = {name: inputs[name] for name in bare.layout.input_shapes}
    assert set(rest) == {"image", "text"}
    close(output(model, params, inputs, times), output(bare, params, rest, times))


@pytest.mark.parametrize("case", CACHED)
def test_cached_equals_uncached(case):
    """At every time, with some references absent and in slots of their own."""
    model = build(**CASES[case])
    params = randomised(model)
    inputs, times = example(model, [[[1, 1], [1, 0]], [[0, 1], [0, 0]]])
    slots = {
        "subject_slots": jnp.array([[2, 0], [0, 1]]),
        "view_slots": jnp.array([[[1, 0], [2, 0]], [[2, 1], [0, 1]]]),
    }
    cache = jax.jit(model.cache)(params, inputs | slots)
    rest = {name: inputs[name] for name in ("image", "text")}
    for t in (times, {"image": times["image"] / 3}):
        whole = output(model, params, inputs | slots, t)
        close(whole, output(model, params, rest, t, cache=cache))
    other = jax.tree.map(lambda a: -a, cache.keys_values)
    changed = output(model, params, rest, t, cache=cache._replace(keys_values=other))
    assert np.abs(whole - changed).max() > 1e-2


@pytest.mark.parametrize("case", ["uvit joint, named", "dit joint, named, coarse"])
def test_several_draws_share_their_references(case):
    """The loss of each is what it is alone, and so is the gradient; at a lower cost."""
    model = build(**CASES[case])
    params = randomised(model)
    inputs, _ = example(model, [[[1, 1], [1, 0]], [[0, 1], [0, 0]]])
    diffusion = ObjectiveConfig(schedule=ScheduleConfig(name="rectified_flow"))
    conditions, corrupted = corrupt(jax.random.key(0), model, inputs, diffusion, draws=3)
    assert corrupted.noisy["image"].shape[0] == 3 * B
    assert len(set(np.asarray(corrupted.times["image"]).tolist())) == 3 * B

    def total(params, conditions, draws):
        losses_B, _ = diffusion_loss(model, params, conditions, corrupted, draws=draws)
        return losses_B.sum(), losses_B

    run = jax.jit(jax.grad(total, has_aux=True), static_argnums=2)
    repeated = {name: jnp.repeat(value, 3, axis=0) for name, value in conditions.items()}
    (ours, losses), (plain, expected) = run(params, conditions, 3), run(params, repeated, 1)
    close(losses, expected)
    jax.tree.map(lambda a, b: close(a, b, atol=1e-3), ours, plain)
    once, three = (forward_cost(model.config, draws=d) for d in (1, 3))
    assert once.total < three.total < 3 * once.total
    bare = forward_cost(build(**(CASES[case] | dict(subjects=0))).config)
    # Besides two more images, the text is encoded for the references' names.
    assert 2 * bare.parameters <= three.parameters - once.parameters < 2.2 * bare.parameters


def test_a_reference_follows_its_subjects_name():
    """Where nothing but the vector of its name tells a reference's subject, exchanging two names in
    the caption is exchanging the references; a name's vector depends on the words around it."""
    model = build(views=1, **CASES["uvit joint, named"])
    params = randomised(model)
    embed = params["embed"]
    table = embed["segments"]["text"]["table"]["embedding"]
    same = table.at[jnp.array(WORDS)].set(table[WORDS[0]])
    text = embed["segments"]["text"] | {"table": {"embedding": same}}
    embed = embed | {"subjects": 0 * embed["subjects"]}
    params = params | {"embed": embed | {"segments": embed["segments"] | {"text": text}}}
    inputs, times = example(model)
    ids = inputs["text"]
    a, b = WORDS[:2]
    renamed = inputs | {"text": jnp.where(ids == a, b, jnp.where(ids == b, a, ids))}
    exchanged = inputs | {"ref_1_1": inputs["ref_2_1"], "ref_2_1": inputs["ref_1_1"]}
    ours = output(model, params, exchanged, times)
    close(ours, output(model, params, renamed, times))
    assert np.abs(ours - output(model, params, inputs, times)).max() > 1e-3


def test_a_subject_that_the_caption_does_not_name_gets_no_vector():
    """And one that it names twice gets their mean, whatever the other words are."""
    model = build(views=1, text=dict(shape=(6,), vocab_size=9, names=WORDS))
    params = randomised(model)
    inputs, _ = example(model)

    def keys_values(ids):
        text = jnp.tile(jnp.array(ids), (B, 1))
        cache = model.cache(params, inputs | {"text": text})
        return np.concatenate([np.ravel(a) for a in jax.tree.leaves(cache.keys_values)])

    unnamed, twice = keys_values([3, 8, 0, 0, 0, 0]), keys_values([5, 3, 5, 6, 0, 0])
    close(unnamed, keys_values([8, 8, 3, 7, 0, 0]))  # a third subject has no reference here
    close(twice, keys_values([6, 5, 8, 0, 0, 0]))
    assert np.abs(unnamed - twice).max() > 1e-3


def test_names_in_features_of_a_text_encoder():
    """The input `name_tokens` says which token names whom; the cache has them as well."""
    config = unified.preset(
        "uvit", SHAPE, patch_size=4, subjects=2, text=dict(shape=(6,), vocab_size=9, names=WORDS),
        max_subjects=3, width=16, depth=2, num_heads=2,
    )  # fmt: skip
    config["segments"]["text"] = dict(kind="features", shape=(6, 5))
    model = uvit_jax.build(config)
    assert model.layout.input_shapes["name_tokens"] == (3,)
    assert "name_tokens" not in model.layout.without_references.input_shapes
    params = randomised(model)
    rng = np.random.default_rng(0)
    inputs = {n: jnp.asarray(rng.normal(size=(B, *SHAPE))) for n in ("image", "ref_1_1", "ref_2_1")}
    inputs |= {"text": jnp.asarray(rng.normal(size=(B, 6, 5))), "refs_present": jnp.ones((B, 2, 1))}
    inputs["name_tokens"] = jnp.array([[0, 4, -1], [2, 1, -1]])
    times = {"image": jnp.full(B, 500.0)}
    ours = output(model, params, inputs, times)
    cache = model.cache(params, inputs)
    rest = {name: inputs[name] for name in ("image", "text")}
    close(ours, output(model, params, rest, times, cache=cache))
    moved = inputs | {"name_tokens": jnp.array([[4, 0, -1], [2, 1, -1]])}
    difference = np.abs(ours - output(model, params, moved, times)).max(axis=(1, 2, 3))
    assert difference[0] > 1e-3 and difference[1] == 0


def test_references_of_coarser_patches():
    model = build(reference_patch_size=8)
    segments = model.layout.by_name
    assert [segments[name].num_tokens for name in ("ref_1_1", "ref_2_2", "image")] == [1, 1, 4]
    assert segments["ref_2_2"].share == "ref_1_1"
    again = unified.with_references(to_dict(model.config), 3, 1)
    assert uvit_jax.build(again).layout == build(reference_patch_size=8, subjects=3, views=1).layout


def test_models_without_a_cache_raise():
    def fails(message, **options):
        model = build(**options)
        with pytest.raises(UvitError, match=message):
            model.cache({}, {})

    fails(r"'ref_1_1' sees 'text', which depends on the target", visibility="full")
    fails("'text', which enters by 'cross'", style="dit", text_enter="cross")
    fails("no references", subjects=0)
    config = unified.preset("dit", SHAPE, patch_size=4, subjects=1, width=16, depth=2, num_heads=2)
    config["segments"]["ref_1_1"]["modulation"] = "time"
    with pytest.raises(UvitError, match=r"'ref_1_1'.*modulation to 'clean'"):
        uvit_jax.build(config).cache({}, {})
    model = build()
    inputs, times = example(model)
    cache = jax.eval_shape(model.cache, model.abstract_params, inputs)
    cache = jax.tree.map(lambda a: jnp.zeros((a.shape[0], 1, *a.shape[2:])), cache)
    rest = {name: inputs[name] for name in ("image", "text")}
    with pytest.raises(UvitError, match=r"1 examples with 16 .*expected 2 and 16"):
        model.apply({}, rest, times, cache=cache)


def test_the_order_of_references_is_nothing_but_their_slots():
    model = build(**CASES["uvit joint, rotary"])
    params = randomised(model)
    inputs, times = example(model, [[[1, 1], [1, 0]], [[0, 1], [1, 1]]])
    ours = output(model, params, inputs, times)
    swapped = dict(inputs)
    for s in (1, 2):
        for v in (1, 2):
            swapped[f"ref_{s}_{v}"] = inputs[f"ref_{3 - s}_{3 - v}"]
    swapped["refs_present"] = inputs["refs_present"][:, ::-1, ::-1]
    assert np.abs(ours - output(model, params, swapped, times)).max() > 1e-3
    slots = {"subject_slots": jnp.array([[1, 0]] * B), "view_slots": jnp.array([[[1, 0]] * 2] * B)}
    close(ours, output(model, params, swapped | slots, times))


def test_two_slots_can_hold_two_views_of_one_subject():
    """A sequence of two subjects is that of one with two views, if their slots say so."""
    one, places = build(subjects=1, views=2), build(subjects=2, views=1)
    params = randomised(one)
    inputs, times = example(one)
    given = {name: inputs[name] for name in ("image", "text", "ref_1_1")}
    given |= {"ref_2_1": inputs["ref_1_2"], "refs_present": jnp.ones((B, 2, 1), bool)}
    slots = {
        "subject_slots": jnp.zeros((B, 2), int),
        "view_slots": jnp.broadcast_to(jnp.array([[0], [1]]), (B, 2, 1)),
    }
    close(output(one, params, inputs, times), output(places, params, given | slots, times))


def test_permuted_slots_mean_the_same_to_permuted_parameters():
    """Where subjects change their slots, the captions' words go with them, and nothing else does:
    tables permuted alike give the same picture."""
    model = build(views=1, max_views=1)
    params = randomised(model)
    inputs, times = example(model)
    first = {name: value[:1] for name, value in inputs.items()}
    times = {"image": times["image"][:1]}
    found = permute(jax.random.key(4), model.layout, first, {"text": WORDS})
    to = np.asarray(found["subject_slots"])[0]
    to = np.append(to, 3 - to.sum())  # where the slot of no subject went
    assert sorted(to) == [0, 1, 2] and (to != [0, 1, 2]).any()
    assert (np.asarray(found["text"]) != np.asarray(first["text"])).any()
    embed = params["embed"]
    table = embed["segments"]["text"]["table"]["embedding"]
    words = table.at[np.asarray(WORDS)[to]].set(table[np.asarray(WORDS)])
    segments = embed["segments"] | {"text": {"table": {"embedding": words}}}
    subjects = embed["subjects"].at[to].set(embed["subjects"])
    moved = params | {"embed": embed | {"segments": segments, "subjects": subjects}}
    run = jax.jit(model.apply)
    ours = run(params, first, times)["image"]
    close(ours, run(moved, found, times)["image"])
    assert np.abs(ours - run(params, found, times)["image"]).max() > 1e-3


def test_a_misspelt_key_of_the_preset_raises_with_its_name():
    with pytest.raises(UvitError, match=r"config\.model\.backbone\.text_length"):
        build(text_length=4)


def test_more_subjects_and_views_than_in_training_fit_the_same_parameters():
    small, large = build(subjects=2, views=1), build(subjects=3, views=3)
    assert jax.tree.map(jnp.shape, small.abstract_params) == jax.tree.map(
        jnp.shape, large.abstract_params
    )
    assert np.isfinite(output(large, randomised(small), *example(large))).all()
    with pytest.raises(UvitError, match="subjects=4, but the model has max_subjects=3 slots"):
        build(subjects=4)


def test_a_reference_at_time_zero_does_not_depend_on_the_time():
    """Modulated at zero, references are at every time what they are at t = 0 modulated as the
    target, and there the two models are one (with the null text, which adds nothing to the time).
    """
    zero = build(style="dit", visibility="ref_joint")
    segments = {
        name: dataclasses.replace(segment, modulation="time")
        for name, segment in zero.config.segments.items()
    }
    target = uvit_jax.build(dataclasses.replace(zero.config, segments=segments))
    params = randomised(zero)
    inputs, _ = example(zero)
    inputs["text"] = jnp.zeros_like(inputs["text"])
    outputs = [
        [output(model, params, inputs, {"image": jnp.full(B, t)}) for model in (zero, target)]
        for t in (0.0, 1.0)
    ]
    close(*outputs[0])
    assert np.abs(outputs[1][0] - outputs[1][1]).max() > 1e-3


def test_wrong_references_raise():
    model = build()
    inputs, times = example(model)
    for change, message in (
        ({"ref_1_1": inputs["ref_1_1"][:, :4]}, r"'ref_1_1'\] has shape \(2, 4, 8, 3\), expected"),
        (
            {"refs_present": jnp.ones((B, 3, 2))},
            r"'refs_present'\] has shape \(2, 3, 2\), expected",
        ),
        ({"ref_3_1": inputs["ref_1_1"]}, "'ref_3_1'.*did you mean"),
        ({"subject_slots": jnp.zeros((B, 3), int)}, "subject_slots"),
    ):
        with pytest.raises(UvitError, match=message):
            model.apply({}, inputs | change, times)
    del inputs["ref_2_2"]
    with pytest.raises(UvitError, match="inputs lacks 'ref_2_2'"):
        model.apply({}, inputs, times)


@pytest.mark.parametrize("visibility", unified.VISIBILITIES)
@pytest.mark.parametrize("start", [(2, 1), (2, 2), (1, 1)])
def test_a_layout_of_more_references_is_the_presets(visibility, start):
    def config(subjects, views):
        return unified.preset(
            "uvit", SHAPE, patch_size=4, subjects=subjects, views=views, max_subjects=3,
            max_views=3, visibility=visibility, text=dict(shape=(4,), vocab_size=9), width=16,
            depth=2, num_heads=2,
        )  # fmt: skip

    if start == (1, 1) and visibility == "ref_isolated":
        return  # one reference alone does not say which of the two it is
    resized = unified.with_references(config(*start), 3, 2)
    assert uvit_jax.build(resized).layout == uvit_jax.build(config(3, 2)).layout
    parsed = to_dict(uvit_jax.build(config(*start)).config)
    again = unified.with_references(parsed, 3, 2)
    assert uvit_jax.build(again).layout == uvit_jax.build(config(3, 2)).layout
    with pytest.raises(UvitError, match="max_subjects=3 slots, got 4"):
        unified.with_references(parsed, 4, 1)


def test_a_batch_needs_all_inputs_of_the_layout():
    """Slots that the data bring are inputs too; what no segment takes is none."""
    layout = build(subjects=1, views=1).layout
    batch = dict.fromkeys(("image", "text", "ref_1_1", "refs_present", "view_slots", "index"))
    assert set(layout.inputs_in(batch)) == set(batch) - {"index"}
    assert "view_slots" not in layout.without_references.inputs_in(batch)
