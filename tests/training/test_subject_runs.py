"""A run of a world of subjects: references come in as tokens, grids are of the data's examples."""

import json

import numpy as np
import pytest
from PIL import Image

from uvit_jax.config import to_dict
from uvit_jax.errors import UvitError
from uvit_jax.models import unified
from uvit_jax.training.config import parse_run
from uvit_jax.training.loop import train


def run(**data):
    return parse_run(
        dict(
            model=unified.preset(
                "uvit",
                (16, 16, 3),
                patch_size=4,
                subjects=2,
                views=2,
                text_length=24,
                vocab_size=512,
                width=32,
                depth=2,
                num_heads=2,
            ),
            data=dict(name="totems", image_size=16, text=True, text_length=24, workers=0, **data),
            train=dict(steps=2, batch_size=2, drop_references=0.5),
            sample=dict(sampler=dict(name="ddim", steps=1), count=2),
        )
    )


def test_a_world_is_trained_and_drawn(tmp_path):
    config = run(max_subjects=2, max_views=2)
    summary = train(config, json.loads(json.dumps(to_dict(config))), tmp_path / "run")
    assert summary.step == 2 and np.isfinite(summary.loss)
    assert Image.open(summary.samples).size[0] >= 32


def test_slots_that_the_data_do_not_fill_are_told(tmp_path):
    config = run(max_subjects=2, max_views=3)
    with pytest.raises(UvitError, match=r"2 subjects × 2 views, the data bring 2 × 3; set config"):
        train(config, json.loads(json.dumps(to_dict(config))), tmp_path / "run")
    assert not (tmp_path / "run").exists()
