"""Sets of images to encode: samples of a model, a data set, a folder, an npz.

Each is an `ImageSet`: a count and batches of one shape, sharded over the mesh if there is one.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from uvit_jax.data import pipeline
from uvit_jax.data.batches import batches as load_batches
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.encoders.image_encoder import spread
from uvit_jax.encoders.weights import read_npz
from uvit_jax.errors import UvitError
from uvit_jax.models.model import Model, Params
from uvit_jax.parallel.mesh import batch_shards
from uvit_jax.parallel.rows import global_array, local_rows
from uvit_jax.parallel.sharding import BATCH, shardings
from uvit_jax.sampling import sampler
from uvit_jax.sampling.decoding import Decoder
from uvit_jax.sampling.sampler import SampleConfig

Batches = Callable[[], Iterator[np.ndarray | jax.Array]]


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images in batches.

    Attributes:
      count: number of images.
      batches: starts a pass over batches (B, H, W, C); the last one is padded.
      name: for progress bars and errors.
    """

    count: int
    batches: Batches
    name: str


def of_model(
    model: Model,
    params: Params,
    diffusion: ObjectiveConfig,
    config: SampleConfig,
    conditions: dict[str, np.ndarray],
    *,
    count: int,
    batch_size: int,
    seed: int,
    mesh: Mesh,
    name: str,
    vocabulary: Vocabulary | None = None,
    decoder: Decoder | None = None,
) -> ImageSet:
    """Samples of a model. Latents are decoded on the devices.

    The same seed and batch size give the same samples on any mesh.

    Args:
      conditions: by segment, leaves (count, ...) (see `conditions.conditions_like`).
      vocabulary: see `make_sampler`.

    Raises:
      UvitError: if the model has no image segment, or the mesh does not divide the batch.
    """
    segment = image_segment(model, decoder)
    batch_size = min(batch_size, -(-count // batch_shards(mesh)) * batch_shards(mesh))
    check_batch_size(mesh, batch_size)
    sample_batch = sampler.make_sampler(
        model, diffusion, config, batch_size=batch_size, vocabulary=vocabulary
    )
    sample = jax.jit(
        lambda params, key, batch: sample_batch(params, key, batch)[segment],
        out_shardings=NamedSharding(mesh, BATCH),
    )
    if decoder is not None:
        decode = jax.jit(
            functools.partial(decoder.traced, shards=batch_shards(mesh)),
            out_shardings=NamedSharding(mesh, BATCH),
        )

    def batches() -> Iterator[jax.Array]:
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, shardings(params, mesh))
            if decoder is not None:
                decoder_params = jax.device_put(
                    decoder.params, NamedSharding(mesh, PartitionSpec())
                )
        for key, batch in sampler.batches(conditions, count, batch_size, seed):
            batch = {name: spread(value, mesh) for name, value in batch.items()}
            with jax.set_mesh(mesh):
                samples = sample(placed, key, batch)
                if decoder is not None:
                    samples = decode(decoder_params, samples)
            yield samples

    return ImageSet(count, batches, name)


def image_segment(model: Model, decoder: Decoder | None = None, *, latents: bool = False) -> str:
    """The name of the noisy segment that holds images, or latents with a decoder.

    Args:
      latents: see `decoding.decoded`.

    Raises:
      UvitError: if there is none.
    """
    noisy = model.layout.noisy_images
    for segment in noisy:
        if decoder is not None or not (latents or segment.is_latent):
            return segment.name
    shapes = ", ".join(f"{s.name} {s.shape}" for s in noisy) or "none"
    raise UvitError(
        f"the model generates no images with 1 or 3 channels (image segments: {shapes}"
        f"{', of latents' if latents else ''}); pass the "
        "autoencoder of its latents with --autoencoder=FILE"
    )


def of_dataset(dataset: pipeline.Dataset, batch_size: int, mesh: Mesh, name: str) -> ImageSet:
    """All images of a data set, without augmentation; each process loads its rows."""
    check_batch_size(mesh, batch_size)
    rows = local_rows(mesh, batch_size)

    def batches() -> Iterator[jax.Array]:
        steps = load_batches(dataset, batch_size=batch_size, seed=0, rows=rows, train=False)
        try:
            for batch in steps:
                yield global_array(batch["image"], rows, batch_size, mesh)
        finally:
            steps.close()

    return ImageSet(len(dataset), batches, name)


def of_file(
    path: Path, batch_size: int, mesh: Mesh, *, image_size: int = 0, count: int | None = None
) -> ImageSet:
    """The images of a folder (PNG, JPEG, WebP) or an npz.

    An npz holds images (N, H, W, 1 or 3) as `image`, `images`, `samples` or `arr_0`: uint8, or
    floats in [-1, 1].

    Args:
      image_size: resizes the images of a folder; 0 if all have one size.
      count: takes the first ones; None for all.

    Raises:
      UvitError: without images, or on another format.
    """
    if path.is_dir():
        data = DataConfig(name="folder", path=str(path), image_size=image_size)
        images = of_dataset(pipeline.dataset(data), batch_size, mesh, str(path))
        _check_count(count, images.count, path)
        return dataclasses.replace(images, count=count or images.count)
    if path.suffix != ".npz":
        raise UvitError(f"{path}: expected a folder of images, or an .npz")
    arrays = read_npz(path, ("image", "images", "samples", "arr_0"))
    if not arrays:
        raise UvitError(f"{path} has no array image, images, samples or arr_0")
    images = next(iter(arrays.values()))
    _check_images(images, path)
    _check_count(count, len(images), path)
    return of_array(images[:count], batch_size, str(path))


def of_array(images: np.ndarray, batch_size: int, name: str) -> ImageSet:
    """ImageSet (N, H, W, C) in memory, uint8 or floats in [-1, 1]."""
    batch_size = min(batch_size, len(images))

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(images), batch_size):
            yield images[np.arange(start, start + batch_size) % len(images)]

    return ImageSet(len(images), batches, name)


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """Raises UvitError if the mesh does not divide the batch."""
    parts = batch_shards(mesh)
    if batch_size < 1 or batch_size % parts:
        raise UvitError(
            f"--batch_size={batch_size} must be a positive multiple of the {parts} device(s) that "
            f"batches are sharded over, such as {max(1, batch_size // parts) * parts}"
        )


def _check_count(wanted: int | None, there: int, path: Path) -> None:
    if wanted is not None and wanted > there:
        raise UvitError(f"{path} has {there} images, fewer than --count={wanted}")


def _check_images(images: Any, path: Path) -> None:
    if images.ndim != 4 or not len(images) or images.shape[-1] not in (1, 3):
        raise UvitError(f"{path}: expected images (N, H, W, 1 or 3), got {images.shape}")
    if images.dtype == np.uint8:
        return
    if not np.issubdtype(images.dtype, np.floating):
        raise UvitError(f"{path}: images must be uint8 or floats in [-1, 1], got {images.dtype}")
    low, high = float(images.min()), float(images.max())
    if low >= 0 or high > 4:
        raise UvitError(
            f"{path}: floating-point images must be in [-1, 1], got values from {low:.3g} to "
            f"{high:.3g}; rescale them, or store uint8"
        )
