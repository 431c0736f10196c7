"""Folders of latents for tests: 11 examples with known moments, written by the real writer."""

import numpy as np

from uvit_jax.data.latent_shards import LatentIndex, encode_images

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
    source={"name": "folder", "path": "my images"},
    autoencoder={"file": "vae.safetensors", "sha256": "0", "config": {"dtype": "float32"}},
)


def moments_of(example: int, mirrored: bool) -> np.ndarray:
    rng = np.random.default_rng([example, int(mirrored)])
    return rng.normal(size=(*SHAPE[:2], 2 * SHAPE[2])).astype(np.float32)


class NumberedImages:
    """A data set whose image of an example holds its number, and shows whether it is mirrored."""

    def __init__(self):
        self.source = self

    def __getitem__(self, example):
        texts = (f"number {example}", f"the number {example}")
        return {"example": example, "name": str(example), "label": example % 3, "captions": texts}

    def decode(self, record):
        return {"image": np.array([[[record["example"]], [-1]]], np.float32)}


def encode(images):
    """Images of `NumberedImages` to their moments."""
    return np.stack([moments_of(int(x.max()), x[0, 0, 0] == -1) for x in images])


def write(folder, index=INDEX, **options):
    options = {"batch_size": 3, **options}
    return encode_images(folder, index, NumberedImages(), encode, **options)
