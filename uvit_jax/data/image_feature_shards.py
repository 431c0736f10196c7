"""Image features of a frozen encoder as sharded records, beside the latents of the same images.

They are stored as `image_features.json` (an `ImageFeatureIndex`) and shards: one record for each
example, and with mirrored latents a second one for its mirrored image, (E,) little-endian.
"""

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from uvit_jax.data.dataset import Dataset
from uvit_jax.data.latent_shards import LatentIndex, load_batches, open_beside
from uvit_jax.data.shards import (
    ShardIndex,
    ShardReader,
    StorageDtype,
    write_missing_shards,
)
from uvit_jax.errors import UvitError
from uvit_jax.io import to_uint8

EncodePixels = Callable[[np.ndarray], np.ndarray]
"""Images uint8 (B, H, W, C) → features (B, E)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFeatureIndex(ShardIndex):
    """What the image features of a folder of latents are.

    Attributes:
      size: E, of a feature. dtype: of the stored features.
      count: examples. shard_size: examples per shard.
      mirrored: whether the mirrored images were encoded too.
      source: `LatentIndex.source` of the latents of these images.
      encoder: its file's name and SHA-256, its config.
    """

    contents = "image features"
    prefix = "image_features"
    index_name = "image_features.json"
    plan_name = "image_features_encoding.json"

    size: int
    dtype: StorageDtype
    count: int
    shard_size: int
    mirrored: bool
    source: Mapping[str, Any]
    encoder: Mapping[str, Any]

    def __post_init__(self):
        super().__post_init__()
        if self.size < 1:
            raise UvitError(f"size must be at least 1, got {self.size}")

    @classmethod
    def command(cls, folder: Path, index: "ImageFeatureIndex | None" = None) -> str:
        words = ["python", "-m", "experiments.encode_image_features", f"--latents={folder}"]
        return shlex.join([*words, "--encoder=FILE"])


class ImageFeatureReader(ShardReader):
    """Random access to image features: `features(example, mirrored)`."""

    index: ImageFeatureIndex

    def num_records(self, shard: int, reader: Any) -> int:
        return len(self.index.examples(shard)) * (1 + self.index.mirrored)

    def features(self, example: int, mirrored: bool = False) -> np.ndarray:
        """The feature of an example's image, or of its mirror image, float32 (E,)."""
        shard, row = divmod(example, self.index.shard_size)
        record = self.read_record(shard, row * (1 + self.index.mirrored) + mirrored)
        if len(record) != self.index.size * self.index.storage_dtype.itemsize:
            raise self._damaged(shard, ValueError(f"the record of example {example} is cut"))
        return np.frombuffer(record, self.index.storage_dtype).astype(np.float32)


def encode_image_features(
    folder: Path,
    index: ImageFeatureIndex,
    data: Dataset,
    encode: EncodePixels,
    *,
    batch_size: int,
    part: int = 0,
    parts: int = 1,
    workers: int = 2,
) -> int:
    """Encodes the images of the missing shards of one part, see `write_missing_shards`.

    Args:
      folder: where the latents are; the features are stored beside them.
      data: the images that the latents are of, read without augmentation.
      encode: called with `batch_size` images, always.
      workers: threads that read and decode images.

    Returns:
      The number of shards written.

    Raises:
      UvitError: if the folder holds another encoding, the data are others, an image is broken, or
        features cannot be stored.
    """
    if batch_size < 1:
        raise UvitError(f"batch_size must be at least 1, got {batch_size}")
    if len(data) != index.count:
        raise UvitError(f"the data have {len(data)} images, and the latents are of {index.count}")
    limit = float(np.finfo(index.dtype).max)
    with ThreadPoolExecutor(max(workers, 1)) as pool:

        def records(examples: range) -> Iterator[bytes]:
            for batch in load_batches(data, examples, pool, batch_size):
                images = to_uint8(np.stack([image for image, _ in batch]))
                # Padding the last batch keeps one shape to compile for.
                images = images[np.arange(batch_size) % len(batch)]
                copies = [encode(images)]
                copies += [encode(images[:, :, ::-1])] if index.mirrored else []
                for row, (_, record) in enumerate(batch):
                    for copy in copies:
                        if not np.abs(copy[row]).max() <= limit:  # true of NaN as well
                            raise UvitError(
                                f"the features of {record['name']} are not finite in "
                                f"{index.dtype}; set --dtype=float32, and check that --encoder is "
                                "the right file"
                            )
                        yield copy[row].astype(index.storage_dtype).tobytes()

        return write_missing_shards(
            folder, index, records, reader=ImageFeatureReader, part=part, parts=parts
        )


def open_image_features(folder: Path, latents: LatentIndex) -> ImageFeatureReader:
    """The image features of a folder of latents.

    Raises:
      UvitError: if they are missing or incomplete, or belong to other latents.
    """
    keys = ("count", "mirrored")
    return ImageFeatureReader(folder, open_beside(ImageFeatureIndex, folder, latents, keys))
