"""Examples for fine-tuning: a few images of each of several subjects, and images of their classes.

subjects = stacked({"bear": examples, "clock": examples})
both = stacked({"bear and clock": concatenated([examples, others])})   # trained on jointly
prior = stacked({"toy": class_examples(model, params, …)})             # prior preservation
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.errors import UvitError
from uvit_jax.models.model import Model, Params
from uvit_jax.sampling.sampler import SampleConfig, make_sampler, sample_all

Examples = Mapping[str, np.ndarray]
"""The inputs of a model by segment, leaves (m, …): m images and their conditions."""


@dataclasses.dataclass(frozen=True)
class Stacked:
    """The examples of several subjects (or classes) in arrays.

    Attributes:
      names: of the S subjects.
      examples: by segment, (S, M, …); a subject with fewer than M examples has repeated ones.
      counts: int32 (S,), the number of examples without repetition.
      seeds: uint32 (S,), hashes of the names.
    """

    names: tuple[str, ...]
    examples: dict[str, jax.Array]
    counts: jax.Array
    seeds: jax.Array


def stacked(subjects: Mapping[str, Examples], size: int = 0) -> Stacked:
    """Stacks the examples of subjects by name.

    Args:
      size: M, to compile once for several calls; 0 is the maximum number of examples.

    Raises:
      UvitError: without subjects, if a subject has no or more than `size` examples, or if segments
        differ.
    """
    if not subjects:
        raise UvitError("fine-tuning needs at least one subject")
    segments = set(next(iter(subjects.values())))
    counts = []
    for name, examples in subjects.items():
        lengths = {len(value) for value in examples.values()}
        if set(examples) != segments or len(lengths) != 1 or not min(lengths):
            raise UvitError(
                f"subject {name!r} has { ({k: np.shape(v) for k, v in examples.items()}) }; every "
                f"subject needs the same number, at least 1, of each of {sorted(segments)}"
            )
        counts.append(lengths.pop())
    size = size or max(counts)
    if max(counts) > size:
        raise UvitError(f"a subject has {max(counts)} examples, more than size={size}")
    rows = [np.arange(size) % count for count in counts]
    examples = {
        segment: jnp.stack(
            [np.asarray(e[segment])[r] for e, r in zip(subjects.values(), rows, strict=True)]
        )
        for segment in sorted(segments)
    }
    return Stacked(
        names=tuple(subjects),
        examples=examples,
        counts=jnp.asarray(counts, jnp.int32),
        seeds=jnp.asarray([zlib.crc32(name.encode()) for name in subjects], jnp.uint32),
    )


def concatenated(subjects: Sequence[Examples]) -> Examples:
    """The examples of several subjects as those of one, for joint fine-tuning.

    Raises:
      UvitError: if their segments differ.
    """
    if len({frozenset(examples) for examples in subjects}) != 1:
        raise UvitError("examples to be concatenated must have the same segments")
    return {k: np.concatenate([examples[k] for examples in subjects]) for k in subjects[0]}


def class_examples(
    model: Model,
    params: Params,
    diffusion: ObjectiveConfig,
    sample: SampleConfig,
    conditions: Examples,
    *,
    count: int,
    batch_size: int,
    seed: int,
    vocabulary: Vocabulary | None = None,
) -> Examples:
    """Samples of a class from the base model, for prior preservation.

    Args:
      sample: sampler and guidance. conditions: by segment, leaves (count, …).
      vocabulary: see `make_sampler`.

    Returns:
      `count` examples: the samples (latents of a latent model) with their conditions.
    """
    size = min(batch_size, count)
    sampler = jax.jit(
        make_sampler(model, diffusion, sample, batch_size=size, vocabulary=vocabulary)
    )
    samples = sample_all(
        lambda key, inputs: sampler(params, key, inputs), conditions, count, size, seed
    )
    return {name: samples.get(name, conditions.get(name)) for name in model.layout.input_shapes}
