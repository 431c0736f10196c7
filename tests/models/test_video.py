"""The preset of video models: tasks by what is given, training with given segments, one frame."""

import copy
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import uvit_jax
from tests.helpers.weights import random_params
from uvit_jax.diffusion import objective
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.schedule import ScheduleConfig
from uvit_jax.diffusion.solvers.solve import SamplerConfig
from uvit_jax.errors import UvitError
from uvit_jax.models.cost import forward_cost
from uvit_jax.models.presets import unified, video
from uvit_jax.sampling.sampler import SampleConfig, make_sampler
from uvit_jax.tokens.embed import Embed
from uvit_jax.tokens.positions import sincos
from uvit_jax.training.loss import corrupt, diffusion_loss

FLOW = ObjectiveConfig(schedule=ScheduleConfig(name="rectified_flow"), prediction="velocity")
SMALL = dict(patch_size=4, width=32, depth=2, num_heads=2)
TEXT = dict(shape=(6,), vocab_size=300)


def build(style="uvit", shape=(4, 8, 8, 3), **options):
    defaults = dict(subjects=1, views=2, camera=5, amplitude=2, text=TEXT)
    return uvit_jax.build(video.preset(style, shape, **SMALL | defaults | options))


def inputs_of(model, B=2, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.ones(a.shape, a.dtype)
        if a.dtype != jnp.float32
        else jnp.asarray(rng.normal(size=a.shape), jnp.float32)
        for name, a in model.abstract_inputs(B).items()
    }


@pytest.mark.parametrize("style", unified.STYLES)
def test_the_sequence(style):
    model = build(style)
    tokens = {s.name: s.num_tokens for s in model.layout.tokens}
    clip = {"first": 4, "video": 8, "last": 4}
    assert clip.items() <= tokens.items() and tokens["camera"] == 4
    assert tokens["ref_1_1"] == tokens["ref_1_2"] == 4
    assert model.layout.time_keys == ("first", "last", "video")
    assert {s.name for s in model.layout.adaln} == (
        {"text", "time", "time_first", "time_last", "amplitude"} if style == "dit" else set()
    )
    assert model.layout.only_references.num_tokens == 8  # references can be cached
    # The frames of the clip share one embedding, one head, and one frame axis.
    assert set(model.abstract_params["heads"]["segments"]) == {"video"}
    assert [model.layout.by_name[n].start for n in video.VIDEO_SEGMENTS] == [0, 1, 3]


@pytest.mark.parametrize("pt", [1, 2])
def test_the_camera_of_a_frame_is_added_to_its_patches(pt):
    clip = dict(shape=(8, 8, 8, 3), first=2, last=2, patch_size_t=pt)
    model = build(**clip)
    inputs = inputs_of(model)
    times = {key: jnp.full((2,), 0.5) for key in model.layout.time_keys}
    moved = inputs | {"camera": inputs["camera"].at[:, 6].add(1.0)}
    embed = Embed(model.layout, 32, dtype=jnp.float32, rngs=nnx.Rngs(0))
    before, after = (embed(given, times, model.layout).tokens_BND for given in (inputs, moved))
    changed = np.any(np.asarray(before != after), axis=(0, 2))
    expected = np.zeros(model.layout.num_tokens, bool)
    camera, last = model.layout.slices["camera"], model.layout.slices["last"]
    expected[camera.start + 6] = True
    expected[last.start : last.start + 4] = True  # the first frame, or tubelet, of `last`
    assert np.array_equal(changed, expected)


def test_frames_without_a_camera_have_sincos_positions_of_an_image():
    """So that a model of images can be the start of one of videos."""
    model = build(position="sincos")
    image, clip = model.layout.by_name["ref_1_1"], model.layout.by_name["video"]
    rows_n = sincos(image, 32)
    assert np.array_equal(sincos(clip, 32), np.tile(rows_n, (2, 1)))


@pytest.mark.parametrize("position", ["sincos", "rope"])
def test_a_camera_at_rest_leaves_positions_as_they_are(position):
    config = dict(position=position, subjects=1, views=1, patch_size_t=2, first=0, last=2)
    plain, following = build(**config), build(**config, follow_camera=True)
    params, inputs = random_params(plain), inputs_of(plain)
    inputs |= {"camera": jnp.zeros((2, 4, 5)).at[1, :, 0].set(1.0)}
    times = dict.fromkeys(plain.layout.time_keys, jnp.array([100.0, 900.0]))
    of_plain, of_following = (jax.jit(m.apply)(params, inputs, times) for m in (plain, following))
    for name, value in of_plain.items():
        np.testing.assert_allclose(of_following[name], value, atol=2e-5)
    moved = inputs | {"camera": inputs["camera"].at[:, 2:, 1].set(0.5)}
    after = jax.jit(following.apply)(params, moved, times)
    assert np.abs(after["video"] - of_following["video"]).max() > 1e-3


def clip_positions(model, camera_BTF, position):
    """What tells the position of each patch of a clip: its ids, or its token without its camera's,
    (T, rows, columns, …)."""
    frames = camera_BTF.shape[1]
    inputs = inputs_of(model, B=1) | {"camera": jnp.asarray(camera_BTF)}
    inputs |= {name: jnp.zeros_like(inputs[name]) for name in video.VIDEO_SEGMENTS}
    times = {key: jnp.ones(1) for key in model.layout.time_keys}
    embed = Embed(model.layout, 32, dtype=jnp.float32, rngs=nnx.Rngs(0))
    embedded, slices = embed(inputs, times, model.layout), model.layout.slices
    of_clip = slice(slices["first"].start, slices["last"].stop)
    if position == "rope":
        own = np.asarray(embedded.position_ids_NA)[0, of_clip, 1:].reshape(frames, -1, 2)
    else:
        own = np.asarray(embedded.tokens_BND)[0, of_clip].reshape(frames, -1, 32)
        own = own - np.asarray(embedded.tokens_BND)[0, slices["camera"], None]
    rows, columns = model.layout.by_name["video"].grid[1:]
    return own.reshape(frames, rows, columns, -1)


def moving_right(frames, by):
    camera = np.zeros((1, frames, 5), np.float32)
    camera[0, :, 1] = by * np.arange(frames)
    return camera


@pytest.mark.parametrize("position", ["sincos", "rope"])
def test_patches_that_show_one_point_have_one_position(position):
    """A camera that moves right by a patch shows a point one column further left."""
    model = build(shape=(3, 16, 16, 3), position=position, follow_camera=True, subjects=0)
    own = clip_positions(model, moving_right(3, by=2 / 4), position)  # a quarter of a side a frame
    np.testing.assert_allclose(own[1, :, :-1], own[0, :, 1:], atol=1e-5)
    np.testing.assert_allclose(own[2, :, :-2], own[0, :, 2:], atol=1e-5)
    assert np.abs(own[1] - own[0]).min(axis=(0, 1)).max() > 1e-2


def test_a_wider_clip_follows_its_camera_too():
    """Its columns are as wide as rows are high, and its positions those of half as many."""
    trained = build(shape=(3, 16, 16, 3), position="rope", follow_camera=True, subjects=0)
    ends = dict.fromkeys(video.VIDEO_SEGMENTS, (1, 16, 32, 3))
    model = trained.resized(ends | {"camera": (3, 5)})
    own = clip_positions(model, moving_right(3, by=2 / 4), "rope")
    np.testing.assert_allclose(own[1, :, :-1], own[0, :, 1:], atol=1e-5)
    np.testing.assert_allclose(own[:, :, 1:, 1] - own[:, :, :-1, 1], 0.5, atol=1e-5)


def test_positions_follow_planar_cameras_alone():
    for wrong, message in (
        (dict(camera=4), "has 4 features, and follow_camera=True needs the 5"),
        (dict(camera=0), "needs a camera; give camera=5"),
        (dict(position="learned"), "needs role='noisy', frames_from, position='sincos' or 'rope'"),
    ):
        with pytest.raises(UvitError, match=message):
            build(**dict(follow_camera=True) | wrong)
    config = video.preset("uvit", (4, 8, 8, 3), camera=5, follow_camera=True, **SMALL)
    config["segments"]["last"]["follow_camera"] = False
    with pytest.raises(UvitError, match=r"follow_camera=False, and of 'video'.*make them equal"):
        uvit_jax.build(config)


def test_frames_come_from_a_camera_of_as_many():
    config = video.preset("uvit", (4, 8, 8, 3), camera=5, **SMALL)
    config["segments"]["camera"]["shape"] = (3, 5)
    with pytest.raises(UvitError, match="frames_from='camera' has 3 frames, and the clip 4"):
        uvit_jax.build(config)
    config["segments"]["video"]["frames_from"] = "time"
    with pytest.raises(UvitError, match="frames_from='time' is not a camera"):
        uvit_jax.build(config)


def test_tubelets_have_an_embedding_of_their_own_beside_the_references():
    model = build(patch_size_t=2, first=2, last=0, shape=(6, 8, 8, 3))
    embeddings = model.abstract_params["embed"]["segments"]
    assert {"video", "ref_1_1"} <= set(embeddings) and "ref_1_2" not in embeddings
    assert model.layout.by_name["video"].num_tokens == 2 * 4


def _image_for_video(segments):
    return {name.replace("video", "image"): params for name, params in segments.items()}


def clip_mask(layout, window):
    """Which tokens see which, by the definition of windows, bool (N, N)."""
    number = np.full(layout.num_tokens, np.nan)
    for name in video.VIDEO_SEGMENTS:
        segment = layout.by_name[name]
        frames, rows, columns = segment.grid
        frame = segment.start + np.repeat(np.arange(frames), rows * columns)
        number[layout.slices[name]] = frame * segment.frames_per_token // window
    apart = np.abs(number[:, None] - number[None])
    return np.isnan(apart) | (apart <= 1)


@pytest.mark.parametrize("attention", ["xla", "blocked", "ulysses"])
def test_windows_are_a_mask_of_neighbouring_frames(attention):
    clip = dict(shape=(7, 8, 8, 3), subjects=0 if attention == "ulysses" else 1)
    model, full = build(window=2, attention=attention, **clip), build(**clip)
    params, inputs = random_params(model), inputs_of(model)
    times = dict.fromkeys(model.layout.time_keys, jnp.array([100.0, 900.0]))
    masked = copy.copy(full)
    masked.layout = copy.copy(full.layout)
    references = full.layout.visibility()
    references = np.ones((full.layout.num_tokens,) * 2, bool) if references is None else references
    mask = clip_mask(full.layout, 2) & references
    assert 0.3 < mask.mean() < 0.95 * references.mean()
    masked.layout.visibility = lambda cached=False: mask
    expected = jax.jit(masked.apply)(params, inputs, times)
    for name, value in jax.jit(model.apply)(params, inputs, times).items():
        np.testing.assert_allclose(value, expected[name], atol=2e-5)


@pytest.mark.parametrize("pt", [1, 2])
def test_windows_follow_the_frames_of_a_longer_clip(pt):
    model = build(shape=(8, 8, 8, 3), window=2, patch_size_t=pt, first=2, last=2)
    longer = model.resized({"video": (12, 8, 8, 3), "camera": (16, 5)})
    for layout, frames in ((model.layout, 8), (longer.layout, 16)):
        seen = np.zeros((layout.num_tokens,) * 2, bool)
        for queries, keys in layout.windows():
            for q, k in itertools.product(queries, keys):
                seen[q, k] = True
        clip = slice(layout.slices["first"].start, layout.slices["last"].stop)
        frame = np.repeat(np.arange(frames // pt) * pt, 4)
        expected = np.abs(frame[:, None] // 2 - frame[None] // 2) <= 1
        assert np.array_equal(seen[clip, clip], expected)
        outside = np.delete(np.arange(layout.num_tokens), np.r_[clip])
        assert seen[outside].all() and seen[:, outside].all()


def test_sincos_frames_need_the_position_of_a_camera():
    config = video.preset("uvit", (4, 8, 8, 3), camera=5, position="sincos", **SMALL)
    config["segments"]["camera"]["position"] = "none"
    with pytest.raises(UvitError, match=r"position='none'.*set it to 'learned'"):
        uvit_jax.build(config)
    config["segments"]["camera"]["position"] = "learned"
    config["segments"]["video"]["frames_from"] = ""
    with pytest.raises(UvitError, match="'video', whose parameters it shares, has none"):
        uvit_jax.build(config)


def test_windows_save_products():
    costs = [forward_cost(build(shape=(16, 8, 8, 3), window=w).config) for w in (0, 2, 16)]
    assert costs[1].attention < 0.75 * costs[0].attention == 0.75 * costs[2].attention
    assert costs[1].parameters == costs[0].parameters


def test_impossible_windows_are_refused():
    with pytest.raises(UvitError, match="window=3 must be a multiple of patch_size_t=2"):
        build(shape=(8, 8, 8, 3), patch_size_t=2, first=2, last=2, window=3)
    model = build(window=1, attention="ring", subjects=0)
    times = dict.fromkeys(model.layout.time_keys, jnp.ones(2))
    with pytest.raises(UvitError, match=r"'ring' does not support windows.*use 'ulysses'"):
        jax.eval_shape(model.apply, model.abstract_params, inputs_of(model), times)


@pytest.mark.parametrize("options", [{}, dict(window=1), dict(follow_camera=True)])
def test_caching_references_is_exact(options):
    model = build(**options)
    params, inputs = random_params(model), inputs_of(model)
    times = dict.fromkeys(model.layout.time_keys, jnp.array([100.0, 900.0]))
    whole = jax.jit(model.apply)(params, inputs, times)
    others = {n: x for n, x in inputs.items() if not n.startswith("ref")}

    @jax.jit
    def cached(params):
        return model.apply(params, others, times, cache=model.cache(params, inputs))

    for name, value in cached(params).items():
        np.testing.assert_allclose(value, whole[name], atol=1e-5)


def test_a_video_of_one_frame_is_the_image_model():
    clip = build(shape=(1, 8, 8, 3), first=0, last=0, camera=0, amplitude=0)
    image = uvit_jax.build(
        unified.preset(
            *("uvit", (8, 8, 3)),
            **SMALL | dict(subjects=1, views=2, text=TEXT, position="rope"),
            axes=("frame", "row", "column"),
        )
    )
    params = random_params(clip)
    renamed = {
        **params,
        "embed": params["embed"] | {"segments": _image_for_video(params["embed"]["segments"])},
        "heads": {"segments": _image_for_video(params["heads"]["segments"])},
    }
    inputs = inputs_of(clip)
    t = jnp.array([100.0, 900.0])
    of_clip = jax.jit(clip.apply)(params, inputs, {"video": t})["video"][:, 0]
    inputs["image"] = inputs.pop("video")[:, 0]
    of_image = jax.jit(image.apply)(renamed, inputs, {"image": t})["image"]
    assert np.abs(of_clip).max() > 0.1
    np.testing.assert_allclose(of_clip, of_image, atol=1e-5)


def test_given_segments_are_clean_at_time_0_without_loss():
    clean = {n: jnp.ones((64, t, 2, 2, 1)) for n, t in (("first", 1), ("video", 3))}
    key = jax.random.key(0)
    plain = objective.corrupt(key, clean, FLOW)
    mixed = objective.corrupt(key, clean, FLOW, given={"first": 0.5})
    np.testing.assert_array_equal(plain.noisy["video"], mixed.noisy["video"])
    shared = mixed.times["first"] == mixed.times["video"]
    assert 16 < shared.sum() < 48 and (mixed.times["first"][~shared] == 0).all()
    assert (mixed.noisy["first"][~shared] == 1).all()
    np.testing.assert_allclose(mixed.weights["first"], jnp.where(shared, 1 / 3, 0.0))
    always = objective.corrupt(key, clean, FLOW, given={"first": 1.0})
    assert (always.weights["first"] == 0).all() and (always.weights["video"] == 1).all()
    with pytest.raises(UvitError, match="given must name some"):
        objective.corrupt(key, clean, FLOW, given={"first": 1.0, "video": 1.0})


@pytest.fixture(scope="module")
def small():
    model = build(subjects=0)
    return model, random_params(model)


def test_gradients_of_a_batch_with_given_frames_are_finite(small):
    model, params = small
    batch = inputs_of(model)

    def loss(params):
        conditions, corrupted = corrupt(
            jax.random.key(0), model, batch, FLOW, given={"first": 0.5, "last": 0.5}
        )
        return diffusion_loss(model, params, conditions, corrupted)[0].mean()

    gradients = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_tasks_follow_from_what_is_given_and_generated(small):
    """What is given is attended to, and is not among the samples."""
    model, params = small
    batch = inputs_of(model)
    conditions = {name: batch[name] for name in model.layout.condition_shapes}
    euler = SamplerConfig(name="euler", steps=2)

    def sample(generate, **given):
        config = SampleConfig(sampler=euler, generate=generate)
        sampler = jax.jit(make_sampler(model, FLOW, config, batch_size=2))
        return sampler(params, jax.random.key(0), conditions | given)

    assert set(sample(())) == {"first", "video", "last"}  # text → video
    ends = ("video",)
    one = sample(ends, first=batch["first"], last=batch["last"])  # start and end → video
    other = sample(ends, first=batch["first"], last=-batch["last"])
    assert set(one) == {"video"} and np.abs(one["video"] - other["video"]).max() > 1e-3


def test_other_lengths_and_sizes_than_trained(small):
    model, params = small
    ends = dict.fromkeys(("first", "last"), (1, 16, 8, 3))
    longer = model.resized({"video": (6, 16, 8, 3), "camera": (8, 5)} | ends)
    inputs = inputs_of(longer)
    times = dict.fromkeys(model.layout.time_keys, jnp.ones(2))
    outputs = jax.jit(longer.apply)(params, inputs, times)
    assert outputs["video"].shape == (2, 6, 16, 8, 3)
    assert all(np.isfinite(x).all() for x in outputs.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(first=2, last=2), "less than the 4 frames"),
        (dict(style="unet"), "style='unet'"),
        (dict(patch_size_t=2), "patch_size_t=2 does not divide"),
    ],
)
def test_errors_name_the_argument(wrong, message):
    with pytest.raises(UvitError, match=message):
        build(**wrong)
