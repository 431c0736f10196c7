"""A clip's losses are the same on one device and on four, with the sequence sharded too; ring and
Ulysses attention equal full attention on its tokens."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.running import ROOT, environment

pytestmark = pytest.mark.slow

PROGRAM = r"""
import json, jax, numpy as np, uvit_jax
from uvit_jax.models.presets import video
from uvit_jax.parallel.mesh import make_mesh
from uvit_jax.parallel.sharding import BATCH
from uvit_jax.training.loss import corrupt, diffusion_loss
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.run_config import parse_run
from uvit_jax.training.state import init_state
from uvit_jax.training.step import make_step
rng = np.random.default_rng(0)
shapes = dict(first=(1, 8, 8, 3), video=(4, 8, 8, 3), camera=(5, 5))
batch = {n: rng.uniform(-1, 1, (4, *s)).astype(np.float32) for n, s in shapes.items()}
losses = {}
for name, sizes in (("xla", {}), ("ring", dict(data=2, context=2)),
                    ("ulysses", dict(data=2, context=2))):
    config = video.preset("uvit", (5, 8, 8, 3), patch_size=4, last=0, camera=5, width=16, depth=2,
                          num_heads=2, follow_camera=True, attention=name)
    run = parse_run(dict(
        model=config, data=dict(name="totem_videos", frames=5, first_frames=1),
        mesh=sizes, train=dict(steps=2, batch_size=4, given={"first": 0.5}),
        diffusion=dict(schedule=dict(name="rectified_flow"), prediction="v"),
        optimizer=dict(warmup_steps=0)))
    mesh = make_mesh(run.mesh, jax.devices()[: int(np.prod(list(sizes.values()) or [1]))])
    model = uvit_jax.build(run.model)
    optimizer, rate = make_optimizer(run.optimizer, run.train)
    with jax.set_mesh(mesh):
        state, where = init_state(model, optimizer, jax.random.key(0), mesh)
        placed = jax.device_put(batch, jax.NamedSharding(mesh, BATCH))
        if name == "ulysses":  # differentiated as ring is, see test_context.py
            def loss(params, batch):
                key = jax.random.split(jax.random.fold_in(state.key, 0))[0]
                made = corrupt(key, model, batch, run.diffusion, given=run.train.given)
                return diffusion_loss(model, params, *made)[0].mean()
            losses[name] = [float(jax.jit(loss)(state.params, placed))]
            continue
        step = jax.jit(make_step(model, run, optimizer, rate), out_shardings=(where, None))
        losses[name] = []
        for _ in range(2):
            state, metrics = step(state, placed)
            losses[name].append(float(metrics["loss"]))
print(json.dumps(losses))
"""


@pytest.fixture(scope="module")
def losses():
    command = [sys.executable, "-c", PROGRAM]
    env = environment(4) | {"PYTHONPATH": str(ROOT)}
    return json.loads(subprocess.check_output(command, env=env, text=True, cwd=ROOT))


def test_four_devices_give_the_losses_of_one_on_a_clip(losses):
    np.testing.assert_allclose(losses["ring"], losses["xla"], rtol=1e-5)
    assert losses["xla"][0] != losses["xla"][1]


def test_ulysses_gives_the_loss_of_full_attention_on_a_clip(losses):
    np.testing.assert_allclose(losses["ulysses"], losses["xla"][:1], rtol=1e-5)
