"""Conditions of many samples that are read or drawn when they are indexed by an array of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from uvit_jax.errors import UvitError

if TYPE_CHECKING:
    from uvit_jax.data.latents import LatentData
    from uvit_jax.tokens.layout import Layout


class FeatureRows:
    """Features (count, N, F) that are read when indexed by an array of rows: 50,000 captions of
    CLIP's would be 12 GB."""

    def __init__(self, dataset: LatentData, order: np.ndarray, numbers: np.ndarray):
        self._dataset, self._order, self._numbers = dataset, order, numbers

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        pairs = zip(self._order[rows].tolist(), self._numbers[rows].tolist(), strict=True)
        return np.stack([self._dataset.feature(*pair) for pair in pairs])

    def captions(self) -> list[str]:
        """The texts behind the features."""
        pairs = zip(self._order.tolist(), self._numbers.tolist(), strict=True)
        return [self._dataset.caption(*pair) for pair in pairs]


def example_rows(
    layout: Layout, shown: str, dataset: Any, order: np.ndarray
) -> dict[str, ExampleRows]:
    """Every condition of a model, from the examples of a data set in some order.

    Args:
      shown: the segment that no label and no text is.

    Raises:
      UvitError: if the data bring one of them not.
    """
    noisy = {s.name for s in layout.noisy}
    brought = dataset.batch([0])
    for name in layout.input_shapes:
        if name not in noisy and name not in brought:
            raise UvitError(
                f"segment {shown!r} cannot be drawn from these data, which bring no {name!r}; draw "
                "samples with experiments.sample or from Python, and give them with --images"
            )
    examples = _Examples(dataset, order)
    names = layout.inputs_in(brought)
    return {name: ExampleRows(examples, name) for name in names if name not in noisy}


class _Examples:
    """A data set's examples in some order, whose inputs are brought together and named apart."""

    def __init__(self, dataset: Any, order: np.ndarray):
        self._dataset, self._order = dataset, order
        self._rows, self._batch = None, {}

    def __len__(self) -> int:
        return len(self._order)

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Every input of the examples in these rows; the last ones are kept."""
        if self._rows is None or not np.array_equal(rows, self._rows):
            self._batch = self._dataset.batch(self._order[rows].tolist())
            self._rows = np.array(rows)
        return self._batch


class ExampleRows:
    """One input of a data set's examples, leaves (count, …): 10,000 samples with four references
    each would be hundreds of megabytes."""

    def __init__(self, examples: _Examples, name: str):
        self._examples, self._name = examples, name

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._examples.batch(rows)[self._name]
