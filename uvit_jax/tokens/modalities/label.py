"""Class labels: a table of vectors."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.tokens.segment import Segment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label(Segment):
    """A class index, int32 (B,), in [0, num_classes]; num_classes is the null class.

    Attributes:
      num_classes: the number of classes, without the null class.
      null_class: whether there is one, for classifier-free guidance.
      init_std: standard deviation of the table's initial values.
    """

    integers: ClassVar[bool] = True

    kind: Literal["label"] = "label"
    num_classes: int = 0
    null_class: bool = True
    init_std: float = 1.0

    def problem(self) -> str:
        if not 0 < self.num_classes < 2**31 - 1:  # indices are int32
            return f"num_classes must lie in [1, 2**31 - 2], got {self.num_classes}"
        return ""

    @property
    def num_ids(self) -> int:
        return self.num_classes + self.null_class

    def embedding(self, width: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        return LabelEmbedding(self, width, dtype=dtype, rngs=rngs)

    def null(self, batch_size: int) -> np.ndarray | None:
        return np.full((batch_size,), self.num_classes, np.int32) if self.null_class else None


class LabelEmbedding(nnx.Module):
    """Class indices (B,) → (B, 1, D)."""

    def __init__(self, segment: Label, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.table = nnx.Embed(
            segment.num_ids,
            width,
            dtype=dtype,
            embedding_init=nnx.initializers.normal(segment.init_std),
            rngs=rngs,
        )

    def __call__(self, label_B: jax.Array) -> jax.Array:
        # Unsigned: a negative index is NaN, as one beyond the table is, not counted from its end.
        return self.table(label_B.astype(jnp.uint32))[:, None]
