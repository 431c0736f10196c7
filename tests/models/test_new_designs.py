"""Models that nobody wrote code for: segments alone make them, and they train and sample.

A video U-ViT, UniDiffuser's layout, image → video from a given first frame, and a camera token per
frame.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import uvit_jax
from uvit_jax.diffusion.guidance import Branch
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.schedule import ScheduleConfig
from uvit_jax.diffusion.solvers.solve import SamplerConfig
from uvit_jax.errors import UvitError
from uvit_jax.sampling.sampler import SampleConfig, make_sampler, predictor
from uvit_jax.training.loss import corrupt, diffusion_loss

FLOW = ObjectiveConfig(schedule=ScheduleConfig(name="rectified_flow"), prediction="x0")
BACKBONE = dict(width=48, depth=2, num_heads=4)
TUBELETS = dict(kind="patches", patch_size=4, patch_size_t=2, position="rope")
VIDEO = dict(shape=(4, 8, 8, 3), role="noisy", **TUBELETS)
TIME = dict(kind="time", time="video")

DESIGNS = {
    "video": dict(time=TIME, video=VIDEO),
    "unidiffuser": dict(
        t_image=dict(kind="time", time="image"),
        t_text=dict(kind="time", time="text"),
        data_type=dict(kind="label", num_classes=2, null_class=False),
        text=dict(kind="features", shape=(5, 6), role="noisy"),
        clip_image=dict(kind="features", shape=(1, 7), role="noisy", time="image"),
        image=dict(kind="patches", shape=(8, 8, 4), patch_size=2, role="noisy", final_conv="none"),
    ),
    "image to video": dict(
        t_first=dict(kind="time", time="first"),
        t_video=TIME,
        first=VIDEO | dict(shape=(2, 8, 8, 3), share="video"),
        video=VIDEO | dict(start=2),
    ),
    "camera": dict(
        time=TIME, camera=dict(kind="camera", shape=(4, 3), position="rope"), video=VIDEO
    ),
}


def build(name, **backbone):
    segments = DESIGNS[name]
    model = dict(segments=segments, sequence=tuple(segments), rope_theta=10_000.0)
    return uvit_jax.build(model | dict(backbone=BACKBONE | backbone))


def batch_of(model, key, B=8):
    def draw(name, shape):
        own = jax.random.fold_in(key, len(name))
        if shape.dtype == jnp.int32:
            return jax.random.randint(own, shape.shape, 0, 2)
        return 0.5 * jnp.ones(shape.shape) + 0.1 * jax.random.normal(own, shape.shape)

    return {name: draw(name, shape) for name, shape in model.abstract_inputs(B).items()}


@pytest.fixture(scope="module", params=DESIGNS)
def trained(request):
    """(name, model, parameters after 20 steps on random data, losses)."""
    model = build(request.param)
    params = model.init(jax.random.key(0))
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, opt_state, key):
        def loss(params):
            conditions, corrupted = corrupt(key, model, batch_of(model, key), FLOW)
            return jnp.mean(diffusion_loss(model, params, conditions, corrupted)[0])

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), opt_state, value

    opt_state, losses = optimizer.init(params), []
    for i in range(20):
        params, opt_state, value = step(params, opt_state, jax.random.key(i))
        losses.append(float(value))
    return request.param, model, params, losses


def test_the_loss_falls(trained):
    *_, losses = trained
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_it_samples(trained):
    _, model, params, _ = trained
    config = SampleConfig(sampler=SamplerConfig(name="euler", steps=2))
    sample = jax.jit(make_sampler(model, FLOW, config, batch_size=3))
    batch = batch_of(model, jax.random.key(1), B=3)
    conditions = {name: batch[name] for name in model.layout.condition_shapes}
    samples = sample(params, jax.random.key(2), conditions)
    assert {n: s.shape for n, s in samples.items()} == {
        s.name: (3, *s.input_shape) for s in model.layout.noisy
    }
    assert all(np.isfinite(s).all() for s in samples.values())


def test_tubelets_and_three_axes():
    layout = build("video").layout
    assert layout.num_tokens == 1 + 2 * 2 * 2 and layout.axes == ("frame", "row", "column")
    assert layout.by_name["video"].patch == (2, 4, 4)


def test_frames_of_one_video_share_embedding_and_head():
    model = build("image to video")
    params = model.abstract_params
    assert set(params["embed"]["segments"]) == {"video"}  # a sinusoid has none
    assert set(params["heads"]["segments"]) == {"video"}
    assert model.layout.time_keys == ("first", "video")


def test_a_given_first_frame_is_unchanged_and_attended_to():
    """With the first frame given at time 0, only the rest is generated, and it depends on it."""
    model = build("image to video")
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: jnp.asarray(0.2 * rng.normal(size=a.shape), jnp.float32), model.abstract_params
    )
    config = SampleConfig(sampler=SamplerConfig(name="euler", steps=2), generate=("video",))
    sample = jax.jit(make_sampler(model, FLOW, config, batch_size=2))
    first = jnp.asarray(rng.normal(size=(2, 2, 8, 8, 3)), jnp.float32)
    one = sample(params, jax.random.key(0), {"first": first})
    other = sample(params, jax.random.key(0), {"first": first + 1})
    assert set(one) == {"video"} and np.abs(one["video"] - other["video"]).max() > 1e-4
    # Without it, it is pure noise, and the result another one again.
    without = sample(params, jax.random.key(0), {})
    assert np.abs(one["video"] - without["video"]).max() > 1e-4


def test_modes_of_unidiffuser_are_branches():
    """Text → image: guidance away from text of pure noise, as one step from pure noise shows."""
    model = build("unidiffuser")
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: jnp.asarray(0.2 * rng.normal(size=a.shape), jnp.float32), model.abstract_params
    )
    text = jnp.asarray(rng.normal(size=(2, 5, 6)), jnp.float32)
    data_type = jnp.ones(2, jnp.int32)

    def branches(params, inputs):
        network = predictor(model, params)
        return [Branch(3.0, network, inputs), Branch(-2.0, network, inputs, {"text": 1.0})]

    config = SampleConfig(
        sampler=SamplerConfig(name="euler", steps=1, t_start=1.0, t_end=0.0),
        generate=("image", "clip_image"),
    )
    sampler = make_sampler(model, FLOW, config, batch_size=2, branches=branches)
    ours = jax.jit(sampler)(params, jax.random.key(3), {"text": text, "data_type": data_type})
    noise_key, _ = jax.random.split(jax.random.key(3))
    x = {
        s.name: jax.random.normal(jax.random.fold_in(noise_key, i), (2, *s.shape))
        for i, s in enumerate(model.layout.noisy)
    }
    noise = x.pop("text")

    def predicted(text, t_text):
        times = {"image": jnp.full(2, 1000.0), "text": jnp.full(2, 1000.0 * t_text)}
        return model.apply(params, {**x, "text": text, "data_type": data_type}, times)

    conditional, unconditional = predicted(text, 0.0), predicted(noise, 1.0)
    for name in x:
        expected = 3 * conditional[name] - 2 * unconditional[name]
        np.testing.assert_allclose(ours[name], expected, rtol=1e-4, atol=1e-4)


def test_data_are_noised_to_the_time_that_is_asked_for():
    model = build("image to video")
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: jnp.asarray(0.2 * rng.normal(size=a.shape), jnp.float32), model.abstract_params
    )
    first = jnp.asarray(rng.normal(size=(2, 2, 8, 8, 3)), jnp.float32)

    def sample(inputs, **times):
        solver = SamplerConfig(name="euler", steps=1)
        config = SampleConfig(sampler=solver, generate=("video",), times=times)
        sampler = jax.jit(make_sampler(model, FLOW, config, batch_size=2))
        return sampler(params, jax.random.key(0), inputs)["video"]

    # At time 1 the data make no difference; near 0 they are nearly all.
    assert np.array_equal(sample({"first": first}, first=1.0), sample({}))
    near, half = (sample({"first": first}, first=t) for t in (1e-4, 0.5))
    given = sample({"first": first})
    assert np.abs(near - given).max() < 0.05 * np.abs(half - given).max()
    with pytest.raises(UvitError, match=r"'first'.*no data.*times=\{'first': 1\.0\}"):
        sample({}, first=0.0)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"frist": jnp.zeros((2, 2, 8, 8, 3))}, "'frist'.*did you mean 'first'"),
        ({"video": jnp.zeros((2, 4, 8, 8, 3))}, "'video', which is generated"),
        ({"first": jnp.zeros((3, 2, 8, 8, 3))}, "batch_size is 2"),
    ],
)
def test_wrong_inputs_of_a_sampler_are_refused(inputs, message):
    model = build("image to video")
    config = SampleConfig(generate=("video",))
    with pytest.raises(UvitError, match=message):
        make_sampler(model, FLOW, config, batch_size=2)(
            model.abstract_params, jax.random.key(0), inputs
        )


def test_data_for_part_of_a_time_key_are_refused():
    model = build("unidiffuser")
    config = SampleConfig(generate=("text",))
    inputs = {"image": jnp.zeros((1, 8, 8, 4)), "data_type": jnp.zeros(1, int)}
    with pytest.raises(UvitError, match=r"'clip_image' is at time image=0\.0 and has no data"):
        make_sampler(model, FLOW, config, batch_size=1)(
            model.abstract_params, jax.random.key(0), inputs
        )


def test_another_resolution_and_length_by_the_same_parameters():
    model = build("video")
    params = model.init(jax.random.key(0))
    larger = model.resized({"video": (8, 16, 8, 3)})
    assert larger.abstract_params.keys() == model.abstract_params.keys()
    x = jnp.ones((1, 8, 16, 8, 3))
    assert larger.apply(params, {"video": x}, {"video": jnp.ones(1)})["video"].shape == x.shape
    same = model.resized({"video": (4, 8, 8, 3)})
    x = jax.random.normal(jax.random.key(1), (1, 4, 8, 8, 3))
    outputs = [
        jax.jit(m.apply)(params, {"video": x}, {"video": jnp.ones(1)})["video"]
        for m in (model, same)
    ]
    np.testing.assert_array_equal(*outputs)
    with pytest.raises(UvitError, match=r"'vide' is not a segment of images or videos.*'video'"):
        model.resized({"vide": (4, 8, 8, 3)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(generate=("vide",)), "generate: 'vide'.*did you mean 'video'"),
        (dict(times={"vide": 0.0}), "times: 'vide'.*'video'"),
        (dict(generate=("video",), times={"video": 0.5}), "'video' is generated"),
    ],
)
def test_impossible_modes_name_the_key(config, message):
    with pytest.raises(UvitError, match=message):
        make_sampler(build("image to video"), FLOW, SampleConfig(**config), batch_size=1)
