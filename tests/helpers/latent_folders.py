"""Folders of made-up latents: 11 examples whose moments are known, written by the real writer."""

import numpy as np

from uvit_jax.data import encoding
from uvit_jax.data.latent_shards import LatentIndex

COUNT, SHAPE = 11, (2, 3, 4)
INDEX = LatentIndex(
    shape=SHAPE,
    count=COUNT,
    shard_size=4,
    mirrored=True,
    dtype="float32",
    scale=0.5,
    labels=True,
    captions=True,
    class_names=("a", "b", "c"),
    words=("number",),
    source={"name": "folder", "path": "my pictures"},
    autoencoder={"file": "vae.safetensors", "sha256": "0", "config": {"dtype": "float32"}},
)


def moments_of(example: int, mirrored: bool) -> np.ndarray:
    rng = np.random.default_rng([example, int(mirrored)])
    return rng.normal(size=(*SHAPE[:2], 2 * SHAPE[2])).astype(np.float32)


class Pictures:
    """A data set whose picture of an example is its number, mirrored or not."""

    def __init__(self):
        self.source = self

    def __getitem__(self, example):
        texts = (f"number {example}", f"the number {example}")
        return {"example": example, "name": str(example), "label": example % 3, "captions": texts}

    def decode(self, record):
        return {"image": np.array([[[record["example"]], [-1]]], np.float32)}


def encode(images):
    """Pictures of the above to their moments."""
    return np.stack([moments_of(int(x.max()), x[0, 0, 0] == -1) for x in images])


def write(folder, index=INDEX, **options):
    options = {"batch_size": 3, **options}
    return encoding.encode_dataset(folder, index, Pictures(), encode, **options)
