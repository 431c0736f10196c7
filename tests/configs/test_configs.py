"""Every config: it parses, its model has the published size, its recipe is the published one.

The tables are written from the papers, not from the files.
"""

import pytest

import uvit_jax
from experiments.cli import load_config_file, read_config
from tests.helpers.running import ROOT
from uvit_jax.config import replaced, to_dict
from uvit_jax.diffusion.solvers.solve import num_evaluations
from uvit_jax.errors import UvitError
from uvit_jax.training.run_config import RunConfig, parse_run

# Bao et al. 2023, appendix: millions of parameters; thousands of steps, batch, learning rate,
# thousands of warm-up steps, betas; schedule, evaluations, p_uncond, guidance.
UVIT = {
    "cifar10-S/2": (44.26, (500, 128, 2e-4, 2.5, 0.99, 0.999), ("vp_linear", 1000, 0, 0)),
    "celeba64-S/4": (44.29, (500, 128, 2e-4, 5, 0.99, 0.99), ("vp_linear", 1000, 0, 0)),
    "imagenet64-M/4": (130.94, (300, 1024, 3e-4, 5, 0.99, 0.99), ("vp_linear", 50, 0, 0)),
    "imagenet64-L/4": (286.83, (300, 1024, 3e-4, 5, 0.99, 0.99), ("vp_linear", 50, 0, 0)),
    "imagenet256-L/2": (286.76, (300, 1024, 2e-4, 5, 0.99, 0.99), ("vp_linear", 50, 0.15, 0.4)),
    "imagenet256-H/2": (500.83, (500, 1024, 2e-4, 5, 0.99, 0.99), ("sd", 50, 0.1, 0.4)),
    "imagenet512-L/4": (286.86, (500, 1024, 2e-4, 5, 0.99, 0.99), ("vp_linear", 50, 0.15, 0.7)),
    "imagenet512-H/4": (500.94, (500, 1024, 2e-4, 5, 0.99, 0.99), ("sd", 50, 0.1, 0.7)),
    "coco-S/2": (44.69, (1000, 256, 2e-4, 5, 0.9, 0.9), ("sd", 50, 0.1, 1.0)),
    "coco-S/2-deep": (58.35, (1000, 256, 2e-4, 5, 0.9, 0.9), ("sd", 50, 0.1, 1.0)),
}
# Peebles & Xie 2023, and the official checkpoint: width and millions of parameters at patch size 2,
# the fixed positions of 256 tokens counted.
DIT = {"S": (384, 32.96), "B": (768, 130.51), "L": (1024, 458.10), "XL": (1152, 675.13)}
VARIANTS = [f"{size}/{patch}-{px}" for size in DIT for patch in (2, 4, 8) for px in (256, 512)]
CONDITIONINGS = [f"XL/2-256-{c}" for c in ("in_context", "cross", "adaln", "adaln_zero")]


def read(spec: str) -> RunConfig:
    return parse_run(read_config(str(ROOT / "configs" / spec), {}))


def check_recipe(run: RunConfig, sgd, sampling) -> None:
    steps, batch, rate, warmup, b1, b2 = sgd
    schedule, evaluations, dropped, guidance = sampling
    assert (run.train.steps, run.train.batch_size) == (steps * 1000, batch)
    assert run.optimizer.learning_rate == rate and run.optimizer.warmup_steps == warmup * 1000
    assert (run.optimizer.b1, run.optimizer.b2) == (b1, b2)
    assert run.optimizer.schedule == "constant" and run.optimizer.clip_norm == 0
    assert run.train.ema_decay == 0.9999 and not run.train.ema_warmup
    assert sum(run.train.drop.values()) == dropped
    assert run.diffusion.schedule.name == schedule and run.diffusion.weighting == "uniform"
    assert num_evaluations(run.sample.sampler) == evaluations
    assert run.sample.guidance_scale == guidance


@pytest.mark.parametrize("name", UVIT)
def test_uvit_runs_are_the_published_ones(name):
    millions, sgd, sampling = UVIT[name]
    run = read(f"uvit.py:{name}")
    assert round(uvit_jax.build(run.model).num_params / 1e6, 2) == millions
    check_recipe(run, sgd, sampling)
    assert run.optimizer.weight_decay == 0.03 and run.diffusion.prediction == "eps"
    sampler = run.sample.sampler
    if sampling[0] == "sd":
        assert sampler.name == "dpm_solver_pp" and run.diffusion.time_sampling == "discrete"
    else:
        assert sampler.name == ("dpm_solver" if sampling[1] == 50 else "euler_maruyama")
    # Everything else of the sampler is the published default.
    assert sampler == type(sampler)(name=sampler.name, steps=sampler.steps)
    assert run.sample.guidance_channels == 0 and run.sample.clip == 0
    assert run.sample.latent_scale == (0.2301 if name.startswith("coco") else 0.18215)


@pytest.mark.parametrize("variant", [*VARIANTS, *CONDITIONINGS])
def test_dit_variants_are_the_published_ones(variant):
    run = read(f"dit.py:{variant}")
    released = {"XL/2-256": 7000, "XL/2-512": 3000}.get(variant.removesuffix("-adaln_zero"), 0)
    sgd = (released or 400, 256, 1e-4, 0, 0.9, 0.999)
    check_recipe(run, sgd, ("ddpm_linear", 250, 0.1, 0.5 if released else 0))
    assert run.optimizer.weight_decay == 0 and run.diffusion.prediction == "eps"
    assert run.sample.sampler.name == "ddpm" and run.sample.sampler.variance == "learned"
    assert run.sample.guidance_channels == 3 and run.data.flip
    size, patch = variant.split("-")[0].split("/")
    width, published = DIT[size]
    image = run.model.segments["image"]
    assert image.learned_range and image.shape[0] * 8 == int(variant.split("-")[1])
    assert run.model.backbone.width == width and image.patch_size == int(patch)
    if run.model.backbone.modulation == "adaln_zero":
        # The patches' size shows in what embeds 4 channels and what reads 8.
        more = (int(patch) ** 2 - 2**2) * (4 * width + 8 * (width + 1))
        millions = (uvit_jax.build(run.model).num_params + 256 * width - more) / 1e6
        assert round(millions, 2) == published


@pytest.mark.parametrize("variant", [*VARIANTS, *CONDITIONINGS])
def test_sit_variants_are_dits_as_flows(variant):
    run, dit = read(f"sit.py:{variant}"), read(f"dit.py:{variant}")
    released = {"XL/2-256": 7000, "XL/2-512": 3000}.get(variant.removesuffix("-adaln_zero"), 0)
    sgd = (released or 400, 256, 1e-4, 0, 0.9, 0.999)
    check_recipe(run, sgd, ("rectified_flow", 250, 0.1, 0.5 if released else 0))
    assert run.diffusion.prediction == "velocity" and run.diffusion.time_sampling == "uniform"
    assert run.sample.sampler.name == "heun" and run.diffusion.schedule.shift == 1
    # DiT's network without the half of its output that a flow has no use for.
    head = run.model.segments["image"].patch_size ** 2 * 4 * (run.model.backbone.width + 1)
    models = uvit_jax.build(run.model), uvit_jax.build(dit.model)
    assert models[1].num_params - models[0].num_params == head
    assert (run.model.backbone, run.data) == (dit.model.backbone, dit.data)


def test_a_stored_config_with_times_of_is_read_without():
    """Earlier versions stored which segments share a time twice."""
    stored = to_dict(read("quickstart.py"))
    assert parse_run(stored) == parse_run(replaced(stored, {"diffusion.times_of": {}}))
    with pytest.raises(UvitError, match=r"times_of.*`time`"):
        parse_run(replaced(stored, {"diffusion.times_of": {"image": "text"}}))
    second = stored["model"]["segments"]["image"] | {"name": "second", "time": "image"}
    changes = {"model.sequence": [*stored["model"]["sequence"], "second"]}
    shared = replaced(stored, changes | {"model.segments.second": second})
    old = replaced(shared, {"diffusion.times_of": {"second": "image"}})
    assert parse_run(old) == parse_run(shared)


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize(
    ("size", "side", "steps", "batch"), [("256", 32, 250, 11264), ("512", 64, 420, 2112)]
)
def test_unidiffuser_runs_are_the_published_ones(version, size, side, steps, batch):
    run = read(f"unidiffuser.py:{version}-{size}")
    model = uvit_jax.build(run.model)
    assert round(model.num_params / 1e6, 2) == {"v0": 952.50, "v1": 952.51}[version]
    check_recipe(run, (steps, batch, 2e-4, 5, 0.9, 0.9), ("sd", 50, 0, 7))
    assert run.optimizer.weight_decay == 0.03 and run.diffusion.prediction == "eps"
    assert run.sample.sampler.name == "dpm_solver_pp" and run.sample.fresh_noise
    image = model.layout.by_name["image"]
    assert image.shape[0] == side and image.trained_grid == (1, 32, 32)


def test_every_published_uvit_is_a_run():
    assert load_config_file(str(ROOT / "configs/uvit.py"))[1] == (*UVIT,)
    assert read("uvit_l.py") == read("uvit.py") == read("uvit.py:imagenet256-L/2")
    with pytest.raises(UvitError, match=r"uvit.py:foo.*known: celeba64-S/4, cifar10-S/2, coco"):
        read("uvit.py:foo")
    with pytest.raises(UvitError, match="did you mean 'imagenet256-H/2'"):
        read("uvit.py:imagenet256-H2")


@pytest.mark.parametrize("wrong", ["XL/3-256", "M/2-256", "XL/2", "XL/2-256-film", "XL/2-128"])
@pytest.mark.parametrize("file", ["dit.py", "sit.py"])
def test_a_wrong_variant_lists_what_there_is(file, wrong):
    with pytest.raises(UvitError, match=r"S, B, L, XL.*2, 4, 8.*256, 512.*-in_context") as error:
        read(f"{file}:{wrong}")
    assert repr(wrong) in str(error.value)
