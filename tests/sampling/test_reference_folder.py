"""A folder of references decides how many slots a model's layout has."""

import numpy as np
import pytest
from PIL import Image

import uvit_jax
from uvit_jax.errors import UvitError
from uvit_jax.models.presets import unified
from uvit_jax.sampling.reference_folder import from_folder, with_slots


@pytest.fixture(scope="module")
def model():
    """With slots for two subjects of one view, and parameters for three of three."""
    sizes = dict(width=16, depth=2, num_heads=2)
    slots = dict(subjects=2, views=1, max_subjects=3, max_views=3)
    return uvit_jax.build(unified.preset("uvit", (8, 8, 3), patch_size=4, **slots, **sizes))


def folder(root, *views):
    """A folder of subjects with so many images each."""
    for subject, count in enumerate(views, start=1):
        (own := root / f"subject{subject}").mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((9, 9, 3), 40 * i, np.uint8)).save(own / f"{i}.png")
    return root


@pytest.mark.parametrize(
    "views,slots",
    [((1,), (2, 1)), ((1, 1), (2, 1)), ((3,), (1, 3)), ((1, 2, 1), (3, 2)), ((1, 4, 1), (3, 3))],
)
def test_slots_grow_up_to_what_the_parameters_serve(model, tmp_path, views, slots):
    found = with_slots(model, folder(tmp_path, *views))
    assert (found.layout.num_subjects, found.layout.num_views) == slots
    assert found.abstract_params.keys() == model.abstract_params.keys()
    assert found.num_params == model.num_params
    subjects = from_folder(found.layout, tmp_path)
    assert [len(own) for own in subjects.values()] == [min(count, 3) for count in views]


def test_more_subjects_than_the_parameters_serve_raise(model, tmp_path):
    found = with_slots(model, folder(tmp_path, 1, 1, 1, 1))
    with pytest.raises(UvitError, match=r"4 subjects .* at most 3"):
        from_folder(found.layout, tmp_path)
