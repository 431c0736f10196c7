"""Whether a model knows which reference is which subject: the loss with references exchanged.

    probe = make_probe(run, model, mesh)
    probe(params)["binding/preferred_0.75"]       # 0.5 at chance, 1 if always

Scenes of several subjects are denoised from fixed noise, once as they are and once with every
subject's references in the slot of the next. A model that binds references to names has the lower
loss on the right arrangement. Samples show the same later and at a higher cost: where each subject
stands is decided at high noise, and a model that ignores it has the same loss on both.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uvit_jax.autoencoders.encoded_dataset import open_data
from uvit_jax.data.dataset import Dataset
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.encoders.image_encoder import spread
from uvit_jax.errors import UvitError
from uvit_jax.models.model import Model, Params
from uvit_jax.tokens.layout import PRESENT, SUBJECT_SLOTS
from uvit_jax.training.loss import corrupt, diffusion_loss
from uvit_jax.training.run_config import RunConfig

TIMES = (0.5, 0.75, 0.95)
"""The noise levels t."""
SCENES = 128
"""The least number of scenes."""


def make_probe(
    run: RunConfig, model: Model, mesh: Mesh, tokenizer: Tokenizer | None = None
) -> Callable[[Params], dict[str, float]]:
    """A function from parameters to metrics, on the first held-out scenes of several subjects.

    The metrics are, for each t of `TIMES`, `binding/ratio_{t}`: the mean loss with exchanged
    references over that with the right ones; and `binding/preferred_{t}`: the share of scenes whose
    loss is lower with the right ones.

    Args:
      tokenizer: of training; None for that of the data.

    Raises:
      UvitError: if the data have no split "validation", or too few scenes with references of
        several subjects.
    """
    size = run.train.batch_size
    dataset = open_data(dataclasses.replace(run.data, split="validation"))
    if tokenizer is not None:
        dataset = dataset.with_tokenizer(tokenizer)
    rows = _scenes(model, dataset, -(-SCENES // size) * size)
    exchanged_NS = np.stack([exchanged(row[SUBJECT_SLOTS], row[PRESENT]) for row in rows])
    batches = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        batch = {name: np.stack([row[name] for row in part]) for name in part[0]}
        batches.append((batch, exchanged_NS[start : start + size]))

    def losses(params: Params, key: jax.Array, t: jax.Array, batch, slots_BS) -> jax.Array:
        conditions, corrupted = corrupt(key, model, batch, run.diffusion, t=t)
        right_B, wrong_B = (
            diffusion_loss(
                model,
                params,
                conditions | {SUBJECT_SLOTS: slots},
                corrupted,
                prediction=run.diffusion.prediction,
            )[0]
            for slots in (conditions[SUBJECT_SLOTS], slots_BS)
        )
        return jnp.stack([right_B, wrong_B])

    compute = jax.jit(losses, out_shardings=NamedSharding(mesh, P()))

    def probe(params: Params) -> dict[str, float]:
        metrics = {}
        for t in TIMES:
            found = []
            for i, (batch, slots_BS) in enumerate(batches):
                given = {name: spread(value, mesh) for name, value in batch.items()}
                key = jax.random.fold_in(jax.random.key(run.seed), i)
                found.append(compute(params, key, jnp.float32(t), given, spread(slots_BS, mesh)))
            right_N, wrong_N = np.concatenate(jax.device_get(found), axis=1)
            metrics[f"binding/ratio_{t}"] = float(wrong_N.mean() / right_N.mean())
            metrics[f"binding/preferred_{t}"] = float((right_N < wrong_N).mean())
        return metrics

    return probe


def exchanged(slots_S: np.ndarray, present_SV: np.ndarray) -> np.ndarray:
    """The subject slots (S,) with each subject that has references in the slot of the next one."""
    subjects = sorted(set(slots_S[present_SV.any(axis=1)].tolist()))
    following = dict(zip(subjects, subjects[1:] + subjects[:1], strict=True))
    return np.array([following.get(slot, slot) for slot in slots_S.tolist()], np.int32)


def _scenes(model: Model, dataset: Dataset, count: int) -> list[dict[str, np.ndarray]]:
    """The first `count` examples with references of several subjects, as inputs of the model."""
    layout, rows = model.layout, []
    for index in range(len(dataset)):
        batch = dataset.batch([index])
        row = {name: batch[name][0] for name in layout.inputs_in(batch)}
        row.setdefault(SUBJECT_SLOTS, np.arange(layout.num_subjects, dtype=np.int32))
        if PRESENT not in row:
            break
        if len(set(row[SUBJECT_SLOTS][row[PRESENT].any(axis=1)].tolist())) > 1:
            rows.append(row)
        if len(rows) == count:
            return rows
    raise UvitError(
        f"config.train.probe_every needs {count} held-out scenes with references of several "
        f"subjects, and the data have {len(rows)}; set it to 0"
    )
