"""Where the pictures come from that are encoded: a model's samples, a data set, a folder, an npz.

Each is a `Pictures`: a count and batches of one shape, spread over the mesh where there is one.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from uvit_jax.data import pipeline
from uvit_jax.data.config import DataConfig
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.errors import UvitError
from uvit_jax.evaluation.encoders import spread
from uvit_jax.evaluation.weights import read_npz
from uvit_jax.models.model import Model, Params
from uvit_jax.parallel.mesh import batch_shards
from uvit_jax.parallel.sharding import BATCH, shardings
from uvit_jax.sampling import SampleConfig, make_sampler

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
    batch_size: int,
    seed: int,
    mesh: Mesh,
    name: str,
) -> Pictures:
    """Samples of a model, which never leave the devices.

    The same seed and batch size give the same samples on any mesh.

    Args:
      conditions: by segment, leaves (N, ...), for N samples (see `conditions_like`).

    Raises:
      UvitError: if the model's samples are no pictures, or the mesh does not divide the batch.
    """
    segment = picture_segment(model)
    count = len(next(iter(conditions.values())))
    batch_size = min(batch_size, -(-count // batch_shards(mesh)) * batch_shards(mesh))
    check_batch_size(mesh, batch_size)
    sampler = make_sampler(model, diffusion, config)
    draw = jax.jit(
        lambda params, key, batch: sampler(params, key, batch)[segment],
        out_shardings=NamedSharding(mesh, BATCH),
    )

    def batches() -> Iterator[jax.Array]:
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, shardings(params, mesh))
        for start in range(0, count, batch_size):
            rows = np.arange(start, start + batch_size) % count
            batch = {k: spread(value[rows], mesh) for k, value in conditions.items()}
            key = jax.random.fold_in(jax.random.key(seed), start)
            with jax.set_mesh(mesh):
                samples = draw(placed, key, batch)
            yield samples

    return Pictures(count, batches, name)


def picture_segment(model: Model) -> str:
    """The name of the noisy segment that is pictures; UvitError if there is none."""
    noisy = [s for s in model.layout.noisy if s.modality == "image"]
    for segment in noisy:
        if segment.shape[-1] in (1, 3):
            return segment.name
    shapes = ", ".join(f"{s.name} {s.shape}" for s in noisy) or "none"
    raise UvitError(
        f"the model draws no pictures with 1 or 3 channels (image segments: {shapes}). Decode its "
        "latents with their autoencoder and give the pictures with --images"
    )


def conditions_like(
    model: Model, dataset: pipeline.Dataset | None, vocabulary: Vocabulary, count: int, seed: int
) -> dict[str, np.ndarray]:
    """Conditions for `count` samples, distributed as a data set's.

    They are the conditions of its records in a random order, every record once before any comes
    twice; of several captions, a random one.

    Args:
      dataset: of the run, or another split of it; None if the model has no conditions.
      vocabulary: of the run, which says what the model's labels and tokens mean.

    Returns:
      By segment, leaves (count, ...); `count` zeros (count,) for a model without conditions.

    Raises:
      UvitError: if a segment is neither a label nor a text, or a class is unknown to the model.
    """
    found: dict[str, np.ndarray] = {"count": np.zeros((count,), np.int32)}
    conditional = [s for s in model.layout.inputs if s.role != "noisy"]
    for segment in conditional:
        if segment.modality not in ("label", "text"):
            raise UvitError(
                f"segment {segment.name!r} ({segment.modality}) cannot be drawn from the data; "
                "sample from Python and give the pictures with --images"
            )
    if not conditional:
        return found
    rng = np.random.default_rng(seed)
    rounds = -(-count // len(dataset))
    order = np.concatenate([rng.permutation(len(dataset)) for _ in range(rounds)])[:count]
    labels, texts = [], []
    wanted = {s.modality: s for s in conditional}
    for index in order.tolist():
        record = dataset.source[index]
        if "label" in wanted:
            labels.append(_label(int(record["label"]), dataset, vocabulary))
        if "text" in wanted:
            captions = record.get("captions") or ("",)
            caption = captions[rng.integers(len(captions))]
            length = wanted["text"].shape[0]
            texts.append(vocabulary.tokenizer.encode(caption, length, truncate=True))
    if labels:
        found[wanted["label"].name] = np.asarray(labels, np.int32)
    if texts:
        found[wanted["text"].name] = np.stack(texts)
    return found


def of_dataset(dataset: pipeline.Dataset, batch_size: int, mesh: Mesh, name: str) -> Pictures:
    """All pictures of a data set, without augmentation; each process decodes its share."""
    check_batch_size(mesh, batch_size)

    def batches() -> Iterator[jax.Array]:
        rows = pipeline.batches(
            dataset,
            batch_size=batch_size,
            seed=0,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            train=False,
        )
        try:
            for row in rows:
                yield jax.make_array_from_process_local_data(
                    NamedSharding(mesh, BATCH), row["image"]
                )
        finally:
            rows.close()

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


def _label(label: int, dataset: pipeline.Dataset, vocabulary: Vocabulary) -> int:
    """The model's number of a data set's class: another split may number them otherwise."""
    name = dataset.class_names[label]
    if name not in vocabulary.classes:
        raise UvitError(f"the model was trained without the class {name!r} of these data")
    return vocabulary.classes.index(name)


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
