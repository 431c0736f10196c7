"""How the state of a run would be spread over a mesh, before there is any of it."""

import dataclasses
import math

import jax

from uvit_jax.errors import UvitError
from uvit_jax.models.model import build
from uvit_jax.parallel import plan
from uvit_jax.parallel.mesh import abstract_mesh
from uvit_jax.training.config import RunConfig, check_mesh
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.state import abstract_state


def plan_run(run: RunConfig, num_devices: int = 0) -> plan.Plan:
    """The plan of a run's parameters, their average and the optimizer's state.

    Args:
      num_devices: that need not be here; 0 for as many as `run.mesh` multiplies to, or, where it
        leaves an axis open, as this machine has.

    Raises:
      UvitError: if the mesh does not fit the devices, the batch or the model.
    """
    if num_devices < 0:
        raise UvitError(f"a plan is for at least one device, got {num_devices}")
    sizes = dataclasses.astuple(run.mesh)
    if not num_devices:
        num_devices = jax.device_count() if -1 in sizes else math.prod(sizes)
    mesh = abstract_mesh(run.mesh, num_devices)
    check_mesh(run, mesh)
    optimizer, _ = make_optimizer(run.optimizer, run.train)
    state, _ = abstract_state(build(run.model), optimizer, mesh)
    groups = {"params": state.params, "ema": state.ema, "optimizer": state.opt_state}
    return plan.plan(groups, mesh)
