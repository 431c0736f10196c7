"""docs/changing.md, followed to the letter: its blocks pasted where it says, run in their order.

What it promises is then looked at: the new condition has gradients, is trained, and changes what
the network says; the new sampler is of order 2; the new metric is computed.
"""

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
    """What the page's names stand for at its end; the current folder is where it was followed."""
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


def test_the_condition_is_trained(followed):
    model, params = followed["model"], followed["params"]
    assert [s.modality for s in model.layout.tokens] == ["colour", "time", "image"]
    run = followed["run"]
    assert run.train.steps == 2 and dict(run.train.drop) == {"colour": 0.1}
    rows = Path("workdirs/discs/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]
    # The raw parameters, which two steps have moved; the kernel of the new segment among them.
    raw = followed["uvit_jax"].load("workdirs/discs", ema=False)[1]
    start = model.init(jax.random.split(jax.random.key(run.seed))[0])
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()),
        raw["embed"]["segments"]["colour"],
        start["embed"]["segments"]["colour"],
    )
    assert min(jax.tree.leaves(moved)) > 0
    assert jax.tree.structure(raw) == jax.tree.structure(params)


def test_the_condition_changes_what_the_network_says_and_has_gradients(followed):
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
    with pytest.raises(
        followed["uvit_jax"].UvitError, match=r"a colour segment needs shape=\(3,\)"
    ):
        followed["uvit_jax"].build(
            followed["config"]
            | dict(
                segments={
                    **followed["config"]["segments"],
                    "colour": dict(modality="colour", shape=(4,)),
                }
            )
        )


def test_the_backbone_mixes_tokens(followed):
    mixer, inputs = followed["mixer"], followed["inputs"]
    params = mixer.init(jax.random.key(0))
    apply = jax.jit(lambda x: mixer.apply(params, inputs | {"image": x}, {"image": jnp.ones(2)}))
    x = inputs["image"]
    changed = apply(x.at[:, 0, 0].add(1.0))["image"] - apply(x)["image"]
    assert jnp.abs(changed[:, -4:, -4:]).max() > 1e-6  # the patch that is furthest away


def test_the_sampler_is_of_order_two(followed):
    assert followed["error"](16) / followed["error"](32) == pytest.approx(4, rel=0.15)


def test_the_metric_is_the_share_that_is_covered(followed):
    assert followed["metrics"]["pixels_coverage"] == 1
    coverage = followed["report"].coverage
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
