"""Copies of training images are found, and only they."""

import numpy as np

from uvit_jax.evaluation.overfitting import copy_rate

RNG = np.random.default_rng(0)


def images(count):
    return RNG.uniform(-1, 1, (count, 8, 8, 3))


def test_copies_are_samples_far_nearer_to_one_training_image_than_to_any_other_image():
    trained, others = images(3), images(20)
    noisy = trained[[0, 1]] + 0.05 * RNG.normal(size=(2, 8, 8, 3))
    assert copy_rate(noisy, trained, others) == 1
    assert copy_rate(images(50), trained, others) == 0
    assert copy_rate(np.concatenate([noisy, images(2)]), trained, others) == 0.5
    # A sample between two images is a copy of neither.
    assert copy_rate(trained[:1] / 2 + trained[1:2] / 2, trained, others) == 0


def test_an_image_that_the_class_has_too_is_no_copy():
    trained = images(1)
    assert copy_rate(trained, trained, images(4)) == 1
    assert copy_rate(trained, trained, trained + 1e-3) == 1
    near = trained + 0.1 * RNG.normal(size=trained.shape)
    assert copy_rate(near, trained, near + 0.01) == 0


def test_one_image_alone_says_nothing():
    assert copy_rate(images(2), images(1), images(0)) is None
    assert copy_rate(images(2), images(2), images(0)) == 0
