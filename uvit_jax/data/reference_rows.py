"""Reference images of an example as a row of a model's inputs."""

import numpy as np

from uvit_jax.data.data_config import DataConfig
from uvit_jax.errors import UvitError

SLOT_WORDS = tuple(f"@{s}" for s in range(1, 8))
"""The tokenizer's words for subjects: more than an image has, as training shuffles the subjects
among all slots of the model."""


def reference_inputs(
    images: np.ndarray, present: np.ndarray, config: DataConfig
) -> dict[str, np.ndarray]:
    """The inputs of references, packed if `config.places` is set.

    Args:
      images: float32 (S, V, H, W, C) in [-1, 1], zeros where absent. Without views, V = 0 or
        `config.max_views` = 0, there are no inputs.
      present: bool (S, V), which of them there are.

    Returns:
      `ref_{s}_{v}` (H, W, C), view v of subject s, from 1, and `refs_present` (S, V); or those of
      `pack_references`.

    Raises:
      UvitError: as `pack_references`.
    """
    S, V = config.max_subjects, config.max_views
    row = {f"ref_{s + 1}_{v + 1}": images[s, v] for s, v in np.ndindex(S, V)}
    if V:
        row["refs_present"] = present
    return pack_references(row, config.places) if config.places else row


def pack_references(row: dict[str, np.ndarray], places: int) -> dict[str, np.ndarray]:
    """A row whose references are numbered consecutively, whichever subject they show.

    A model of P = `places` references then serves one subject of many views as well as many
    subjects of one view. Reference p, from 1, is `ref_{p}_1`. `refs_present` bool (P, 1) says which
    there are; `subject_slots` int32 (P,) and `view_slots` int32 (P, 1) say which subject and view
    each one shows, from 0.

    Raises:
      UvitError: if the row has more references.
    """
    used = np.argwhere(row["refs_present"])
    if len(used) > places:
        raise UvitError(f"the scene has {len(used)} references, and places is {places}")
    packed = {name: value for name, value in row.items() if not name.startswith("ref")}
    for p in range(places):
        s, v = used[p] if p < len(used) else (0, 0)
        image = row[f"ref_{s + 1}_{v + 1}"]
        packed[f"ref_{p + 1}_1"] = image if p < len(used) else np.zeros_like(image)
    slots = np.zeros((places, 2), np.int32)
    slots[: len(used)] = used
    return packed | {
        "refs_present": (np.arange(places) < len(used))[:, None],
        "subject_slots": slots[:, 0],
        "view_slots": slots[:, 1:],
    }
