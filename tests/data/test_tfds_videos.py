"""Videos of TFDS data sets, as sequences of images."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.test_tfds_source import Plants, png
from uvit_jax.data.batches import batches
from uvit_jax.data.pipeline import DataConfig, dataset
from uvit_jax.errors import UvitError


class Walks(Plants):
    """Five clips of five frames and more, as in ucf101."""

    name = "walks"

    def _info(self):
        features = {
            "clip": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3))),
            "label": tfds.features.ClassLabel(names=["slow_walk", "run"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self):
        for i in range(5):
            yield i, {"clip": [png(10 * i + t) for t in range(5 + i)], "label": i % 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("tfds"))
    Walks(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def config(folder, **changes):
    clip = dict(frames=4, first_frames=1, image_size=4, text=True, text_length=8, workers=0)
    return DataConfig(name="tfds:walks", data_dir=folder, **clip | changes)


def test_frames_follow_one_another_from_a_random_position(folder):
    data = dataset(config(folder))
    assert len(data) == 5 and data.tokenizer.words
    whole = [np.stack([np.asarray(f) for f in data.source[i]["video"]]) for i in range(5)]
    starts = {}
    for batch in (next(batches(data, batch_size=5, seed=s)) for s in range(12)):
        frames = np.concatenate([batch["first"], batch["video"]], axis=1)
        assert frames.shape == (5, 4, 4, 4, 3)
        for clip, index in zip(frames, batch["index"], strict=True):
            stored = [data._pixels(image, "") / 127.5 - 1 for image in whole[index]]
            fits = [
                s for s in range(len(stored) - 3) if np.allclose(clip, stored[s : s + 4], atol=1e-5)
            ]
            starts.setdefault(int(index), set()).update(fits)
    assert all(found for found in starts.values()) and len(starts[4]) > 1
    first = data._pixels(whole[0][0], "") / 127.5 - 1
    np.testing.assert_allclose(data.batch([0])["first"][0, 0], first, atol=1e-5)


def test_what_does_not_fit_is_named(folder):
    data = dataset(config(folder, frames=6))
    with pytest.raises(
        UvitError, match=r"walks, train, number .* has 5 frames.*frames=6; lower it"
    ):
        data.batch(range(5))
    with pytest.raises(UvitError, match="labels='label'"):
        dataset(config(folder, labels="label"))
    with pytest.raises(UvitError, match="walks has no images"):
        dataset(config(folder, frames=0, first_frames=0))
