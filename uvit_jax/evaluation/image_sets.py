"""Where the pictures come from that are encoded: a model's samples, a data set, a folder, an npz.

Each is a `Pictures`: a count and batches of one shape, spread over the mesh where there is one.
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
class Pictures:
    """count: how many. batches: begins a pass over them, batches (B, H, W, C) as encoders take
    them, of which the last is filled up. name: for people."""

    count: int
    batches: Batches
    name: str


def drawn(
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
) -> Pictures:
    """Samples of a model, decoded if they are latents, which never leave the devices.

    The same seed and batch size give the same samples on any mesh.

    Args:
      conditions: by segment, leaves (count, ...) (see `conditions.conditions_like`).
      vocabulary: see `make_sampler`.

    Raises:
      UvitError: if the model's samples are no pictures, or the mesh does not divide the batch.
    """
    segment = picture_segment(model, decoder)
    batch_size = min(batch_size, -(-count // batch_shards(mesh)) * batch_shards(mesh))
    check_batch_size(mesh, batch_size)
    draw_batch = sampler.make_sampler(
        model, diffusion, config, batch_size=batch_size, vocabulary=vocabulary
    )
    draw = jax.jit(
        lambda params, key, batch: draw_batch(params, key, batch)[segment],
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
                whole = jax.device_put(decoder.params, NamedSharding(mesh, PartitionSpec()))
        for key, batch in sampler.batches(conditions, count, batch_size, seed):
            batch = {name: spread(value, mesh) for name, value in batch.items()}
            with jax.set_mesh(mesh):
                samples = draw(placed, key, batch)
                if decoder is not None:
                    samples = decode(whole, samples)
            yield samples

    return Pictures(count, batches, name)


def picture_segment(model: Model, decoder: Decoder | None = None) -> str:
    """The name of the noisy segment that is, or is decoded to, pictures; UvitError if none is."""
    noisy = [s for s in model.layout.noisy if s.kind == "patches"]
    for segment in noisy:
        if decoder is not None or not segment.is_latent:
            return segment.name
    shapes = ", ".join(f"{s.name} {s.shape}" for s in noisy) or "none"
    raise UvitError(
        f"the model draws no pictures with 1 or 3 channels (image segments: {shapes}); name the "
        "autoencoder of its latents with --autoencoder=FILE"
    )


def of_dataset(dataset: pipeline.Dataset, batch_size: int, mesh: Mesh, name: str) -> Pictures:
    """All pictures of a data set, without augmentation; each process decodes its share."""
    check_batch_size(mesh, batch_size)
    rows = local_rows(mesh, batch_size)

    def batches() -> Iterator[jax.Array]:
        steps = load_batches(dataset, batch_size=batch_size, seed=0, rows=rows, train=False)
        try:
            for batch in steps:
                yield global_array(batch["image"], rows, batch_size, mesh)
        finally:
            steps.close()

    return Pictures(len(dataset), batches, name)


def of_file(
    path: Path, batch_size: int, mesh: Mesh, *, image_size: int = 0, count: int | None = None
) -> Pictures:
    """The pictures of a folder (PNG, JPEG, WebP), or of an npz.

    An npz holds pictures (N, H, W, 1 or 3) as `image`, `images`, `samples` or `arr_0`: uint8, or
    floats in [-1, 1].

    Args:
      image_size: of a folder, the side that its pictures are resized to; 0 if they are of one size.
      count: take the first so many; None for all.

    Raises:
      UvitError: if there are none, or they are of another kind.
    """
    if path.is_dir():
        data = DataConfig(name="folder", path=str(path), image_size=image_size)
        pictures = of_dataset(pipeline.dataset(data), batch_size, mesh, str(path))
        _check_count(count, pictures.count, path)
        return dataclasses.replace(pictures, count=count or pictures.count)
    if path.suffix != ".npz":
        raise UvitError(f"{path}: expected a folder of pictures, or an .npz")
    arrays = read_npz(path, ("image", "images", "samples", "arr_0"))
    if not arrays:
        raise UvitError(f"{path} holds no pictures named image, images, samples or arr_0")
    images = next(iter(arrays.values()))
    _check_images(images, path)
    _check_count(count, len(images), path)
    return of_array(images[:count], batch_size, str(path))


def of_array(images: np.ndarray, batch_size: int, name: str) -> Pictures:
    """Pictures (N, H, W, C) in memory, uint8 or floats in [-1, 1]."""
    batch_size = min(batch_size, len(images))

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(images), batch_size):
            yield images[np.arange(start, start + batch_size) % len(images)]

    return Pictures(len(images), batches, name)


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """Raises UvitError if the mesh does not cut a batch into equal parts."""
    parts = batch_shards(mesh)
    if batch_size < 1 or batch_size % parts:
        raise UvitError(
            f"--batch_size={batch_size} must be a positive multiple of the {parts} device(s) that "
            f"a batch is spread over, such as {max(1, batch_size // parts) * parts}"
        )


def _check_count(wanted: int | None, there: int, path: Path) -> None:
    if wanted is not None and wanted > there:
        raise UvitError(f"{path} holds {there} pictures, and {wanted} are asked for")


def _check_images(images: Any, path: Path) -> None:
    if images.ndim != 4 or not len(images) or images.shape[-1] not in (1, 3):
        raise UvitError(f"{path}: expected pictures (N, H, W, 1 or 3), got {images.shape}")
    if images.dtype == np.uint8:
        return
    if not np.issubdtype(images.dtype, np.floating):
        raise UvitError(f"{path}: pictures are uint8 or floats in [-1, 1], got {images.dtype}")
    low, high = float(images.min()), float(images.max())
    if low >= 0 or high > 4:
        raise UvitError(
            f"{path}: floating-point pictures lie in [-1, 1], these between {low:.3g} and "
            f"{high:.3g}; rescale them, or store uint8"
        )
