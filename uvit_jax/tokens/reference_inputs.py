"""Reference images as a model's inputs: from lists of images to arrays in slots.

inputs = reference_inputs(model.layout, [[[front, back]], [[cat], [hat]]])
# {"ref_1_1": (2, H, W, C), "ref_1_2": …, "ref_2_1": …, "refs_present": (2, S, V)}
"""

from collections.abc import Sequence

import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.tokens.layout import PRESENT, Layout

Images = Sequence[Sequence[Sequence[np.ndarray]]]


def reference_inputs(layout: Layout, examples: Images) -> dict[str, np.ndarray]:
    """The inputs of a layout's references, and which of them are present.

    Args:
      layout: of the model.
      examples: for each of B examples its subjects, in the order of the captions' `@1`, `@2`, …;
        for each subject its views, images (H, W, C) in [-1, 1].

    Returns:
      Every reference's data, float32 (B, H, W, C), zeros where an example lacks it, and
      `refs_present`, bool (B, S, V), if the layout's references are optional.

    Raises:
      UvitError: if an example has no reference, more subjects or views than the layout, or an image
        of another shape; or lacks one that is not optional.
    """
    if not layout.references:
        raise UvitError("references were given, but the model takes none")
    S, V, B = layout.num_subjects, layout.num_views, len(examples)
    slots = {(s.subject, max(s.view, 0)): s for s in layout.references}
    present_BSV = np.zeros((B, S, V), bool)
    inputs = {s.name: np.zeros((B, *s.input_shape), np.float32) for s in layout.references}
    for b, subjects in enumerate(examples):
        where = f"example {b + 1}"
        if not any(len(views) for views in subjects):
            raise UvitError(f"{where} has no reference; give at least one image of a subject")
        if len(subjects) > S:
            raise UvitError(f"{where} has {len(subjects)} subjects, and the model takes {S}")
        for s, views in enumerate(subjects):
            if len(views) > V:
                raise UvitError(
                    f"{where}: subject {s + 1} has {len(views)} views, and the model takes {V}"
                )
            for v, image in enumerate(views):
                segment = slots.get((s, v))
                if segment is None:
                    raise UvitError(f"{where}: the model has no view {v + 1} of subject {s + 1}")
                image = np.asarray(image)
                if image.shape != segment.input_shape:
                    raise UvitError(
                        f"{where}: view {v + 1} of subject {s + 1} has shape {image.shape}, "
                        f"expected {segment.input_shape}"
                    )
                inputs[segment.name][b] = image
                present_BSV[b, s, v] = True
    for (s, v), segment in slots.items():
        if not segment.optional and not present_BSV[:, s, v].all():
            raise UvitError(f"every example needs segment {segment.name!r}: it is not optional")
    if PRESENT in layout.input_shapes:
        inputs[PRESENT] = present_BSV
    return inputs
