"""The smallest config change with which a run that is too large fits its chips.

More recomputation in the backward pass (`remat`) comes first, then sharding the parameters over
more chips (`fsdp`), then microbatches (`accumulate`): none of these changes the losses. Halving the
batch, which does, comes last.
"""

from collections.abc import Callable, Iterator
from typing import Any

from uvit_jax.config import replaced, to_dict
from uvit_jax.training.run_config import RunConfig, parse_run

Changes = dict[str, Any]
REMATS = ("none", "dots", "attention", "full")  # from most memory to least


def candidates(run: RunConfig, num_chips: int, what: str = "step") -> Iterator[Changes]:
    """Changes of a config by dotted key, the smallest first, each including those before it."""
    changes: Changes = {}
    sizes = run.mesh.sizes(num_chips)
    rows = sizes[0] * sizes[1]
    if what == "step":
        for remat in REMATS[REMATS.index(run.model.backbone.remat) + 1 :]:
            changes |= {"model.backbone.remat": remat}
            yield dict(changes)
    if sizes[0] > 1:
        changes |= {"mesh.data": 1, "mesh.fsdp": rows}
        yield dict(changes)
    if what == "sample":
        count = run.sample.count
        while count % (2 * rows) == 0:
            count //= 2
            changes |= {"sample.count": count}
            yield dict(changes)
        return
    batch, accumulate = run.train.batch_size, run.train.accumulate
    while batch % (2 * rows * accumulate) == 0:
        accumulate *= 2
        changes |= {"train.accumulate": accumulate}
        yield dict(changes)
    # With one example per shard and microbatch, a smaller batch only saves its own storage.
    while batch >= 2 * rows:
        batch = batch // (2 * rows) * rows
        changes |= {"train.batch_size": batch, "train.accumulate": batch // rows}
        yield dict(changes)


def nearest_fit(
    run: RunConfig,
    num_chips: int,
    fits: Callable[[RunConfig], bool],
    *,
    what: str = "step",
    tries: int = 4,
) -> Changes | None:
    """The first of `tries` candidates that fits; None if none does.

    Args:
      run: the run that does not fit. num_chips: of the topology.
      fits: compiles a run and returns whether it fits.
      what: `step` or `sample`.
    """
    for _, changes in zip(range(tries), candidates(run, num_chips, what), strict=False):
        if fits(changed(run, changes)):
            return changes
    return None


def changed(run: RunConfig, changes: Changes) -> RunConfig:
    """`run` with the values at some dotted keys replaced."""
    return parse_run(replaced(to_dict(run), changes))
