"""docs/changing.md, executed: its blocks are appended to the files that they name, in order.

Then its claims are tested: the new segment kind has gradients, is trained and changes the output;
the new guidance is the weighted sum of its branches; the new solver has order 2.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train
from tests.helpers import pages, running_pages
from tests.helpers.running import ROOT
from tests.helpers.weights import random_params
from uvit_jax.diffusion.solvers.solve import SamplerConfig
from uvit_jax.sampling.sampler import make_sampler

PAGE = "docs/changing.md"
SMALL = (
    "--config.train.steps=2",
    "--config.train.batch_size=8",
    "--config.train.log_every=1",
    "--config.data.workers=0",
    "--config.model.backbone.width=32",
    "--config.model.backbone.depth=1",
    "--config.model.backbone.num_heads=2",
    "--config.model.backbone.skip=none",
    "--config.model.backbone.mid_block=False",
    "--config.sample.sampler.steps=2",
    "--config.sample.count=3",
)


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The page's namespace after its last block; the current folder is the one it ran in."""
    blocks = pages.blocks(PAGE)
    namespace = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch, running_pages.pasted(blocks):
        patch.chdir(tmp_path_factory.mktemp("changing"))
        for block in blocks:
            if block.kind == "python":
                running_pages.run(block, namespace, PAGE)
            for command, *flags in pages.commands(block.text) if block.kind == "shell" else ():
                if command == "experiments.train":
                    assert train.main([*flags, *SMALL]) == 0
        yield namespace


def test_a_segment_kind_and_a_metric_are_one_file_and_guidance_is_none():
    files = {"A segment kind": 0, "Guidance": 0, "A metric": 0}
    lines = pages.read(PAGE).splitlines()
    for block in pages.blocks(PAGE):
        titles = [line[3:] for line in lines[: block.line] if line.startswith("## ")]
        if titles[-1] in files:
            files[titles[-1]] += bool(block.file)
    assert files == {"A segment kind": 1, "Guidance": 0, "A metric": 1}


def test_the_segment_kind_is_trained(followed):
    model, params = followed["model"], followed["params"]
    assert [s.kind for s in model.layout.tokens] == ["colour", "time", "patches"]
    run = followed["run"]
    assert run.train.steps == 2 and dict(run.train.drop) == {"colour": 0.1}
    rows = Path("workdirs/discs/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]
    # Two steps have changed the raw parameters, the new segment's among them.
    raw = followed["uvit_jax"].load("workdirs/discs", ema=False)[1]
    start = model.init(jax.random.split(jax.random.key(run.seed))[0])
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()),
        raw["embed"]["segments"]["colour"],
        start["embed"]["segments"]["colour"],
    )
    assert min(jax.tree.leaves(moved)) > 0
    assert jax.tree.structure(raw) == jax.tree.structure(params)


def test_the_segment_kind_changes_the_output_and_has_gradients(followed):
    model, params = followed["model"], followed["params"]
    image = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    times = {"image": jnp.full(2, 0.5)}

    @jax.jit
    def outputs(params, colour):
        return model.apply(params, {"image": image, "colour": colour}, times)["image"]

    red, blue = (jnp.tile(jnp.array(c, jnp.float32), (2, 1)) for c in ((1, -1, -1), (-1, -1, 1)))
    assert jnp.abs(outputs(params, red) - outputs(params, blue)).max() > 1e-4
    gradients = jax.grad(lambda p: jnp.sum(outputs(p, red) ** 2))(params)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(gradients["embed"]["segments"]))
    page_config, error = followed["config"], followed["uvit_jax"].UvitError
    with pytest.raises(error, match=r"colour.*channels"):
        colour = dict(kind="colour", channels=4)
        segments = {**page_config["segments"], "colour": colour}
        followed["uvit_jax"].build({**page_config, "segments": segments})


def test_guidance_is_the_weighted_sum_of_its_branches(followed):
    """One Euler step to x0 is linear in the prediction, so samples are weighted as predictions."""
    run, model = followed["run"], followed["model"]
    params = random_params(model)
    sampler = SamplerConfig(name="euler", steps=1)
    config = dataclasses.replace(run.sample, sampler=sampler, guidance_scale=0.0, clip=0.0)

    def sample(colours, branches=None):
        options = dict(batch_size=len(colours), branches=branches)
        sampler = jax.jit(make_sampler(model, run.diffusion, config, **options))
        return sampler(params, jax.random.key(0), {"colour": colours})["image"]

    colours = followed["colours"]
    found = sample(colours, followed["away_from"]([1.0, 1.0, 1.0], scale=2.0))
    expected = 3.0 * sample(colours) - 2.0 * sample(np.ones_like(colours))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - sample(colours)).max() > 1e-2
    assert followed["guided"].shape == followed["discs"].shape == (3, 16, 16, 3)


def test_the_solver_has_order_two(followed):
    assert followed["error"](16) / followed["error"](32) == pytest.approx(4, rel=0.15)


def test_the_metric_is_the_share_of_the_reference_near_a_sample(followed):
    assert followed["metrics"]["pixels_coverage"] == 1
    coverage = followed["image_metrics"].coverage
    a = np.random.default_rng(0).normal(size=(40, 3))
    assert coverage(a + 1e3, a) == {"coverage": 0.0}
    both = np.concatenate([a, a + 1e3])
    assert coverage(a, both) == {"coverage": 0.5}


@pytest.mark.slow
def test_the_same_in_a_copy_of_the_code_whose_files_are_changed(tmp_path):
    for folder in ("uvit_jax", "experiments", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    script = ["from experiments import train"]
    for block in pages.blocks(PAGE):
        if block.kind == "python" and block.file:
            with (tmp_path / block.file).open("a") as file:
                file.write(f"\n\n{block.text}")
        elif block.kind == "python":
            script.append(block.text)
        for command, *flags in pages.commands(block.text) if block.kind == "shell" else ():
            if command == "experiments.train":
                script.append(f"assert train.main({[*flags, *SMALL]!r}) == 0")
    (tmp_path / "page.py").write_text("\n".join(script))
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Layout(colour×1, time×1, image×16)" in done.stdout
