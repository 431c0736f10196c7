"""From lists of images to the inputs of a layout."""

import numpy as np
import pytest

from uvit_jax.errors import UvitError
from uvit_jax.models.model_config import parse_model
from uvit_jax.models.presets.unified import preset
from uvit_jax.tokens.reference_inputs import reference_inputs

SIZE = dict(patch_size=4, width=16, depth=2, num_heads=2)
LAYOUT = parse_model(preset("uvit", (8, 8, 3), subjects=2, views=2, **SIZE)).layout()


def test_images_go_to_their_slots():
    a, b, c = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
    inputs = reference_inputs(LAYOUT, [[[a, b], [c]], [[], [b]]])
    assert {n: v.shape for n, v in inputs.items()} == {
        n: (2, *shape) for n, shape in LAYOUT.input_shapes.items() if n != "image"
    }
    assert (inputs["refs_present"] == [[[1, 1], [1, 0]], [[0, 0], [1, 0]]]).all()
    for name, images in (("ref_1_1", (a, 0)), ("ref_1_2", (b, 0)), ("ref_2_1", (c, b))):
        for found, image in zip(inputs[name], images, strict=True):
            assert (found == image).all()


@pytest.mark.parametrize(
    "examples, message",
    [
        ([[]], "example 1 has no reference; give at least one image"),
        ([[[0]], [[], []]], "example 2 has no reference"),
        ([[[0], [0], [0]]], "example 1 has 3 subjects, and the model takes 2"),
        ([[[0, 0, 0]]], "example 1: subject 1 has 3 views, and the model takes 2"),
        ([[[0], [0, 1]]], r"view 2 of subject 2 has shape \(4, 8, 3\), expected \(8, 8, 3\)"),
    ],
)
def test_wrong_images_raise(examples, message):
    images = [np.zeros((8, 8, 3)), np.zeros((4, 8, 3))]
    given = [[[images[i] for i in views] for views in subjects] for subjects in examples]
    with pytest.raises(UvitError, match=message):
        reference_inputs(LAYOUT, given)


def test_impossible_references_raise():
    def fails(message, change=None, **top):
        config = preset("uvit", (8, 8, 3), subjects=2, **SIZE) | top
        config["segments"]["ref_2_1"] |= change or {}
        with pytest.raises(UvitError, match=message):
            parse_model(config).layout()

    fails("'ref_2_1' needs subject slot 2.*raise max_subjects", max_subjects=1)
    fails("'ref_1_1' and 'ref_2_1' have the same slot", dict(slot=(0, 0)))
    fails("offset='diagonal' is for references with position='rope'", dict(offset="diagonal"))
    fails("optional=True is for references", dict(slot=()))
    fails("'rows'.*did you mean 'row'", axes=("rows",))
    fails("need a segment with position='rope'", axes=("segment", "row"))
