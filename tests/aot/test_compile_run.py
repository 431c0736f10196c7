"""Reports of ahead-of-time compilation, for this machine's CPU and for TPU slices."""

import dataclasses
import importlib.util
import json
import time

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import cli
from experiments import compile as command
from tests.helpers.running import ROOT, TINY
from uvit_jax.aot.chips import Chip
from uvit_jax.aot.compile_run import compile_for
from uvit_jax.aot.fitting import candidates, changed, nearest_fit
from uvit_jax.models.cost import forward_cost
from uvit_jax.models.model import build
from uvit_jax.models.presets import uvit
from uvit_jax.training.run_config import parse_run

CHIP = Chip(name="toy", flops=1e9, memory_bytes=2**30, memory_bandwidth=1e9, link_bandwidth=1e9)
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiling for TPUs needs libtpu: jax[tpu]"
)


def tiny(**overrides):
    return parse_run(cli.read_config(str(ROOT / TINY), overrides))


def compile_here(run, what="step", chip=CHIP):
    return compile_for(run, jax.devices()[:1], chip, "cpu", what)


def test_a_step_costs_at_most_three_forward_passes():
    run = tiny()
    report = compile_here(run)
    forward = 2 * 16 * forward_cost(run.model).total
    assert report.model_flops == 3 * forward
    # Only the gradient of the patch embedding's input is not computed.
    assert 0.97 * 3 * forward < report.program_flops < 3 * forward
    assert report.fits and report.memory_bytes > 0 and report.collectives == ()
    assert report.bound.seconds == max(
        report.program_flops / CHIP.flops, report.traffic_bytes / CHIP.memory_bandwidth
    )


def test_sampling_costs_its_network_evaluations():
    run = tiny()
    report = compile_here(run, "sample", dataclasses.replace(CHIP, memory_bytes=1))
    assert not report.fits and report.memory_bytes > 1
    # Four evaluations of four images, each with and without its label.
    assert report.program_flops == 2 * 4 * 4 * 2 * forward_cost(run.model).total


@needs_libtpu
def test_on_a_slice_parameters_are_gathered_and_gradients_reduced(tmp_path, capsys):
    flags = {
        "mesh.data": 1,
        "mesh.fsdp": -1,
        "model.dtype": "bfloat16",
        "model.backbone.width": 128,
        "model.backbone.remat": "full",
        "model.backbone.attention": "splash",
    }
    out = tmp_path / "report.json"
    argv = [f"--config={ROOT / TINY}", "--topology=v5e:2x2", f"--json={out}"]
    status = command.main(argv + [f"--config.{key}={value}" for key, value in flags.items()])
    report = json.loads(out.read_text())
    assert status == 0 and report["fits"] and report["chips"] == 4
    assert report["kernels"]["tpu_custom_call"] >= 3  # forward, recomputed, backward
    assert report["gathered_activations"] == 0
    gathered = sum(report["moved"]["parameters"].values())
    blocks = 3 * 12 * 128 * 128 + 2 * 128 * 128  # in, middle, out with its skip; in bfloat16
    # Once per pass, except for parameters that the compiler keeps gathered.
    assert blocks * 2 * 3 / 4 <= gathered <= 2.2 * blocks * 2 * 3 / 4
    assert sum(report["moved"]["gradients"].values()) >= blocks * 2 * 3 / 4
    assert sum(report["moved"].get("activations", {}).values()) < gathered / 100
    assert "not a measurement" in capsys.readouterr().out


@needs_libtpu
def test_a_dits_modulation_gathers_no_activations(tmp_path):
    # Each modulation is a product of the conditions (B, D), without tokens.
    flags = {
        "mesh.data": 2,
        "mesh.fsdp": 8,
        "train.batch_size": 1024,
        "model.dtype": "bfloat16",
        "model.segments.time.enter": "adaln",
        "model.segments.label.enter": "adaln",
        "model.backbone.modulation": "adaln_zero",
        "model.backbone.skip": "none",
        "model.backbone.width": 256,
        "model.backbone.remat": "full",
    }
    out = tmp_path / "report.json"
    argv = [f"--config={ROOT / TINY}", "--topology=v5e:4x4", f"--json={out}"]
    assert command.main(argv + [f"--config.{key}={value}" for key, value in flags.items()]) == 0
    report = json.loads(out.read_text())
    assert report["gathered_activations"] == 0
    assert (
        sum(report["moved"]["activations"].values()) < 100_000
    )  # a look-up in the sharded label table


def test_the_suggestion_is_the_first_change_that_fits():
    run = tiny(**{"mesh.data": 4, "mesh.fsdp": -1})
    seen = []

    def fits(run):
        seen.append(run)
        return run.mesh.fsdp == 8

    changes = nearest_fit(run, 8, fits)
    assert changes == {"model.backbone.remat": "full", "mesh.data": 1, "mesh.fsdp": 8}
    assert [r.model.backbone.remat for r in seen] == ["dots", "attention", "full", "full"]
    assert nearest_fit(run, 8, lambda run: False) is None
    assert nearest_fit(run, 8, fits, tries=2) is None


def test_the_mesh_divides_the_batch_of_every_candidate():
    run = tiny(**{"train.batch_size": 64})
    every = [changed(run, c) for c in candidates(run, 8)]
    assert len(every) == 10
    for candidate in every:
        assert candidate.train.batch_size % (8 * candidate.train.accumulate) == 0
    batches = [c.train.batch_size for c in every]
    assert batches == sorted(batches, reverse=True) and batches[-1] == 8
    counts = [changed(run, c).sample.count for c in candidates(run, 2, "sample")]
    assert counts == [4, 2]  # after fsdp, halved


def test_compile_time_does_not_grow_with_depth():
    def lowered(depth):
        config = uvit.preset("S", (8, 8, 3), patch_size=4, width=16, depth=depth, num_heads=2)
        model = build(config)

        def loss(params, x):
            return (model.apply(params, {"image": x}, {"image": x[:, 0, 0, 0]})["image"] ** 2).sum()

        x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
        return jax.jit(jax.grad(loss)).lower(model.abstract_params, x)

    def seconds(program):
        began = time.process_time()
        program.compile()
        return time.process_time() - began

    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        shallow, deep = lowered(12), lowered(48)
        pairs = [(seconds(shallow), seconds(deep)) for _ in range(3)]
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
    assert min(d for _, d in pairs) <= 1.3 * min(s for s, _ in pairs), pairs
