"""Videos of prepared TFDS data sets: `data.name="tfds:moving_mnist"` with `data.frames`.

A feature `Video`, or a sequence of images, is a clip. TFDS has no times, so frames are taken as
they are stored, T in a row from a random position, and the whole clip is decoded. The feature
`Video` itself needs TensorFlow.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.sources.clips import ClipDataset
from uvit_jax.data.sources.tfds import TfdsSource
from uvit_jax.errors import UvitError


class TfdsVideoDataset(ClipDataset):
    """A split of clips, opened."""

    def images(self, record: dict, number: int) -> Sequence[np.ndarray]:
        frames, T = record["video"], self.config.frames
        if len(frames) < T:
            raise UvitError(
                f"{record['name']} has {len(frames)} frames, less than config.data.frames={T}; "
                "lower it (and the model's frames)"
            )
        begins = number % (len(frames) - T + 1)
        images = [np.asarray(frame) for frame in frames[begins : begins + T]]
        return [np.repeat(i, 3, axis=-1) if i.shape[-1] == 1 else i for i in images]


class TfdsVideoSource(TfdsSource):
    """A prepared TFDS data set with videos; captions as of `TfdsSource`.

    Raises:
      UvitError: as `TfdsSource`, or if `config` asks for labels.
    """

    dataset_class = TfdsVideoDataset
    key = "video"
    encoded = False

    def __init__(self, config: DataConfig, other_names: Sequence[str] = ()):
        if config.labels:
            raise UvitError(
                f"config.data.labels={config.labels!r} is not supported for videos; set it to '', "
                "and text to True for the names of classes as captions"
            )
        super().__init__(config, other_names)

    @staticmethod
    def visual_features(features: Mapping) -> list[str]:
        import tensorflow_datasets as tfds

        def is_video(feature) -> bool:
            sequence = isinstance(feature, tfds.features.Sequence)
            return sequence and isinstance(feature.feature, tfds.features.Image)

        return [name for name, feature in features.items() if is_video(feature)]
