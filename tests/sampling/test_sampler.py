"""From models to samples: learned ranges and guided channels, whatever the sampler."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from uvit_jax.config import parse
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.schedule import ScheduleConfig, make
from uvit_jax.diffusion.solvers.solve import SamplerConfig
from uvit_jax.errors import UvitError
from uvit_jax.models.presets import dit
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.sampling.sampler import SampleConfig, batches, make_sampler, sample_all

C, P, D = 3, 4, 16
FLOW = ScheduleConfig(name="rectified_flow")
LABELS = {"label": jnp.array([0, 3])}


def network(**options):
    options = dict(patch_size=P, num_classes=5, width=D, depth=1, num_heads=2) | options
    model = uvit_jax.build(dit.preset("S", (8, 8, C), **options))
    # DiT starts at zero, where nothing depends on anything.
    keys = iter(jax.random.split(jax.random.key(0), 100))
    params = model.init(jax.random.key(1))
    return model, jax.tree.map(lambda p: p + 0.2 * jax.random.normal(next(keys), p.shape), params)


@pytest.fixture(scope="module")
def learned():
    return network()


def with_head(params, change):
    """The parameters with `change` applied to the head's, seen as (..., P, P, 2C)."""
    head = params["heads"]["segments"]["image"]["proj"]
    head = {k: change(a.reshape(*a.shape[:-1], P, P, 2 * C)) for k, a in head.items()}
    head = {k: a.reshape(*a.shape[:-3], -1) for k, a in head.items()}
    return params | {"heads": {"segments": {"image": {"proj": head}}}}


def draw(model, params, **sample):
    diffusion = ObjectiveConfig(schedule=ScheduleConfig(name="ddpm_linear"))
    function = make_sampler(model, diffusion, parse(SampleConfig, sample), batch_size=2)
    return np.asarray(jax.jit(function)(params, jax.random.key(2), LABELS)["image"])


@pytest.mark.parametrize("sampler", ["ddpm", "heun", "dpm_solver"])
def test_samplers_that_need_no_variance_drop_it(sampler, learned):
    """They draw what the same network draws without the second half of its output."""
    model, params = learned
    half, _ = network(learned_range=False)
    config = dict(sampler=dict(name=sampler, steps=2), guidance_scale=1.0, guidance_channels=2)
    ours = draw(model, params, **config)
    expected = draw(half, with_head(params, lambda a: a[..., :C]), **config)
    assert ours.shape == (2, 8, 8, C)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_only_the_first_channels_are_guided(learned):
    """With one evaluation of the network a sample's channels are as guided as its prediction's."""
    one = dict(sampler=dict(name="ddim", steps=1))
    plain, whole = draw(*learned, **one), draw(*learned, **one, guidance_scale=2.0)
    part = draw(*learned, **one, guidance_scale=2.0, guidance_channels=2)
    size = np.abs(whole).max()
    np.testing.assert_allclose(part[..., :2], whole[..., :2], atol=1e-4 * size)
    np.testing.assert_allclose(part[..., 2:], plain[..., 2:], atol=1e-4 * size)
    assert (np.abs(whole - plain).max((0, 1, 2)) > 1e-2 * size).all()


def test_learned_variances_are_never_guided(learned):
    """Where label and guidance move only the variances, guidance moves nothing."""
    model, params = learned
    blind = with_head(params, lambda a: a.at[..., :C].set(0))
    ddpm = dict(name="ddpm", steps=3, variance="learned")
    plain, guided = (draw(model, blind, sampler=ddpm, guidance_scale=s) for s in (0.0, 5.0))
    np.testing.assert_allclose(guided, plain, rtol=1e-4, atol=1e-4 * np.abs(plain).max())
    small = draw(model, blind, sampler=ddpm | dict(variance="small"))
    assert np.abs(small - plain).max() > 1e-2 * np.abs(plain).max()


def test_misuse_raises():
    model, _ = network(learned_range=False)
    with pytest.raises(UvitError, match="'image' has no learned_range; use 'small'"):
        draw(model, {}, sampler=dict(name="ddpm", variance="learned"))
    with pytest.raises(UvitError, match="guidance_channels must be at least 0"):
        parse(SampleConfig, {"guidance_channels": -1})


@pytest.fixture(scope="module")
def unified():
    """A model of two subjects, random parameters, conditions, and a function that draws."""
    from uvit_jax.models.presets.unified import preset

    options = dict(patch_size=4, subjects=2, width=16, depth=2, num_heads=2)
    config = preset("uvit", (8, 8, C), text=dict(shape=(3,), vocab_size=9, names=(1, 4)), **options)
    model = uvit_jax.build(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.3, jnp.float32), model.abstract_params
    )
    conditions = {
        f"ref_{s}_1": jnp.asarray(rng.normal(size=(2, 8, 8, C)), jnp.float32) for s in (1, 2)
    }
    conditions |= {
        "text": jnp.array([[1, 2, 3], [4, 5, 0]]),
        "refs_present": jnp.array([[[1], [1]], [[0], [1]]]),
        "subject_slots": jnp.array([[1, 0], [0, 1]]),
    }

    def draw(model=model, **sample):
        diffusion = ObjectiveConfig(schedule=FLOW, prediction="x0")
        function = make_sampler(model, diffusion, parse(SampleConfig, sample), batch_size=2)
        return np.asarray(jax.jit(function)(params, jax.random.key(2), conditions)["image"])

    return model, params, conditions, draw


@pytest.mark.parametrize("chain", ["text", "references"])
def test_references_are_cached_and_guided_beside_text(unified, chain):
    """Cached or not, and by one evaluation of each of the three models that are combined."""
    model, params, conditions, draw = unified
    # One step from pure noise ends in what was predicted there.
    config = dict(
        sampler=dict(name="ddim", steps=1, t_start=1.0, t_end=0.0),
        guidance_scale=1.5,
        reference_guidance_scale=0.5,
        guidance_chain=chain,
    )
    never, exact = (draw(**config, cache_references=c) for c in ("never", "when_exact"))
    np.testing.assert_allclose(exact, never, rtol=1e-5, atol=1e-5 * np.abs(never).max())

    noise_key, _ = jax.random.split(jax.random.key(2))
    noise = jax.random.normal(jax.random.fold_in(noise_key, 0), (2, 8, 8, C))
    run = jax.jit(lambda **inputs: model.apply(params, inputs | {"image": noise}, times)["image"])
    times = {"image": jnp.full(2, make(FLOW).network_time(1.0), jnp.float32)}
    null = {"text": jnp.zeros((2, 3), int)}
    alone = {"refs_present": jnp.zeros((2, 2, 1), int)}
    changes = ({}, null, alone, null | alone)
    all_, refs, text, nothing = (np.asarray(run(**conditions | c)) for c in changes)
    expected = {
        "text": nothing + 1.5 * (refs - nothing) + 2.5 * (all_ - refs),
        "references": nothing + 2.5 * (text - nothing) + 1.5 * (all_ - text),
    }[chain]
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_context_parallel_models_have_no_cache(unified):
    """What `when_exact` leaves out, `always` refuses."""
    model, params, conditions, draw = unified
    segments = {k: dataclasses.replace(s, optional=False) for k, s in model.config.segments.items()}
    backbone = dataclasses.replace(model.config.backbone, attention="ring")
    spread = uvit_jax.build(dataclasses.replace(model.config, segments=segments, backbone=backbone))
    sampler = dict(name="ddim", steps=1)
    with pytest.raises(UvitError, match=r"attention='ring'.*cached keys.*when_exact"):
        draw(spread, cache_references="always")
    given = {name: conditions[name] for name in ("ref_1_1", "ref_2_1", "text")}
    diffusion = ObjectiveConfig(schedule=FLOW, prediction="x0")
    config = parse(SampleConfig, dict(sampler=sampler))
    function = make_sampler(spread, diffusion, config, batch_size=2)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        found = jax.eval_shape(function, params, jax.random.key(0), given)
    assert found["image"].shape == (2, 8, 8, C)


def test_batches_are_of_one_shape_and_hold_every_row():
    conditions = {"label": np.arange(5), "text": np.arange(10).reshape(5, 2)}
    found = list(batches(conditions, 5, 2, seed=3))
    keys = np.concatenate([jax.random.key_data(key) for key, _ in found])
    assert len(found) == 3 and len(keys) == 6
    assert len({tuple(key) for key in keys[:5].tolist()}) == 5
    assert all(len(batch["label"]) == 2 for _, batch in found)
    for name, value in conditions.items():
        assert np.array_equal(np.concatenate([b[name] for _, b in found])[:5], value)


SAMPLERS = [
    dict(name="ddpm"),
    dict(name="ddpm", variance="learned"),
    dict(name="ddim", eta=0.5),
    dict(name="euler_maruyama"),
    dict(name="dpm_solver_pp", method="multistep"),
]


@pytest.mark.parametrize("solver", SAMPLERS, ids=lambda s: "-".join(map(str, s.values())))
def test_samples_do_not_depend_on_the_batch_size(solver, learned):
    """Nor on the number of samples: sample i follows from the seed, i and its conditions."""
    model, params = learned
    diffusion = ObjectiveConfig(schedule=ScheduleConfig(name="ddpm_linear"))
    config = parse(SampleConfig, dict(sampler=solver | dict(steps=8), guidance_scale=0.5))
    labels = {"label": np.array([0, 3, 1, 4, 2])}

    def sampled(batch_size, count=5, seed=7):
        function = jax.jit(make_sampler(model, diffusion, config, batch_size=batch_size))
        draw = functools.partial(function, params)
        return sample_all(draw, labels, count, batch_size, seed)["image"]

    whole = sampled(5)
    size = np.abs(whole).max()
    for batch_size in (1, 2, 3, 8):
        np.testing.assert_allclose(sampled(batch_size), whole, atol=1e-4 * size)
    np.testing.assert_allclose(sampled(2, count=3), whole[:3], atol=1e-4 * size)
    assert np.abs(sampled(5, seed=8) - whole).max() > 1e-2 * size


def test_as_many_keys_as_examples_are_required(learned):
    model, params = learned
    config = SampleConfig(sampler=parse(SamplerConfig, dict(name="ddim", steps=1)))
    function = make_sampler(model, ObjectiveConfig(), config, batch_size=2)
    with pytest.raises(UvitError, match="batch_size=2"):
        function(params, jax.random.split(jax.random.key(0), 3), LABELS)
    raw = function(params, jax.random.PRNGKey(0), LABELS)["image"]
    np.testing.assert_array_equal(raw, function(params, jax.random.key(0), LABELS)["image"])


def test_misuse_of_references_raises(unified):
    model, *_, draw = unified
    seeing = dataclasses.replace(
        model.config,
        segments={k: dataclasses.replace(s, sees=()) for k, s in model.config.segments.items()},
    )
    with pytest.raises(UvitError, match="cannot be cached: segment 'ref_1_1' sees 'text'"):
        draw(uvit_jax.build(seeing), cache_references="always")
    with pytest.raises(UvitError, match=r"cache_references='alway'.*'always'"):
        draw(cache_references="alway")
    with pytest.raises(UvitError, match=r"reference_guidance_scale.*takes no references"):
        draw(model.without_references(), reference_guidance_scale=1.0)


def test_guidance_of_more_channels_than_there_are_is_refused(unified):
    """Otherwise the variances of a learned range would be guided."""
    *_, draw = unified
    with pytest.raises(UvitError, match=rf"guidance_channels={C + 1}.*'image' has {C} channels"):
        draw(guidance_scale=1.0, guidance_channels=C + 1)


@pytest.mark.parametrize("interval", [(0.8, 0.2), (0.5,), (), (-0.1, 1.0), (0.0, 1.5)])
def test_an_impossible_guidance_interval_is_refused_by_the_config(interval):
    with pytest.raises(UvitError, match="guidance_interval"):
        SampleConfig(guidance_interval=interval)
