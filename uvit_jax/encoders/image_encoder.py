"""The encoders, by name: what turns pictures into the features that figures are made of.

    encode = encoder("efficientnet_lite0")
    encode.features(images)["pool"]           # (B, 1280)

An encoder knows its weights by their hash, and every figure carries both: figures of different
encoders, or of one with other weights, are not comparable.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uvit_jax.encoders import convolutional, efficientnet, inception, towers, weights
from uvit_jax.encoders.family import Family, Network
from uvit_jax.encoders.preparation import Preparation
from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.model import Params
from uvit_jax.parallel.mesh import batch_shards
from uvit_jax.parallel.sharding import BATCH


class Encoder:
    """Pictures to features, jitted, the batch spread over the mesh. Made by `encoder`.

    Attributes:
      name, title: its own, and for people. size: features D.
      weights_sha256: of the file of its weights.
      version: name, preparation of the pictures and weights in one word; equal versions give
        comparable features.
      official: whether these are the weights that well-known figures, such as FID, are made with.
    """

    def __init__(self, name: str, family: Family, path: Path | None, mesh: Mesh | None):
        self.name, self.title, self.size = name, family.title, family.size
        network = family.load(path)
        self.weights_sha256 = network.sha256
        self.version = f"{name}-{family.preparation}-{self.weights_sha256[:12]}"
        self.official = bool(family.official) and self.weights_sha256 == family.official
        self.preprocess = family.prepare
        self._network, self._mesh = network, mesh
        whole = None if mesh is None else NamedSharding(mesh, P())
        self._params = jax.device_put(network.params, whole)
        # Whole on every process, so that each can read them all.
        self._run = jax.jit(self._features, out_shardings=whole)
        self._prepare = jax.jit(self._prepared)
        self._apply = jax.jit(network.apply, out_shardings=whole)

    def __repr__(self) -> str:
        return f"Encoder({self.version})"

    def features(self, images: np.ndarray | jax.Array) -> dict[str, jax.Array]:
        """Encodes a batch.

        Floats are first rounded to the 256 levels that a picture file holds, as published figures
        are computed from files. One colour stands for three. There is one compilation per shape.

        Args:
          images: (B, H, W, C), C 1 or 3: uint8, or floats in [-1, 1] (clipped). On a mesh of
            several processes, the whole batch on each of them, or a global array.

        Returns:
          `pool` float32 (B, D) and, if the encoder classifies, `logits` (B, K). Where a picture has
          a NaN, so have its features.

        Raises:
          UvitError: if the images are of another kind.
        """
        self._check(images)
        count = images.shape[0]
        if isinstance(images, np.ndarray) and self._mesh is not None:
            images = spread(images, self._mesh)
        return {name: value[:count] for name, value in self._run(self._params, images).items()}

    def of_pictures(self, pictures: Sequence[np.ndarray], *, batch_size: int = 32) -> np.ndarray:
        """The features `pool` of pictures of any sizes, float32 (n, D), in their order.

        The network is compiled once for each size of what it is fed; only the preparation is
        compiled for each size of a picture.

        Args:
          pictures: each (H, W, C) as in `features`.

        Raises:
          UvitError: if there are none, or as `features`.
        """
        if not len(pictures):
            raise UvitError(f"{self.title} was given no pictures")
        by_shape: dict[tuple[int, ...], list[int]] = {}
        prepared = []
        for i, picture in enumerate(pictures):
            image = np.asarray(picture)[None]
            self._check(image)
            prepared.append(np.asarray(self._prepare(image)[0]))
            by_shape.setdefault(prepared[-1].shape, []).append(i)
        found: list[Any] = [None] * len(prepared)
        for rows in by_shape.values():
            size = min(batch_size, len(rows))
            for start in range(0, len(rows), size):
                # The last batch is filled up, so that there is one shape to compile for.
                chosen = [rows[k % len(rows)] for k in range(start, start + size)]
                pool = self._apply(self._params, np.stack([prepared[i] for i in chosen]))["pool"]
                for i, row in zip(rows[start : start + size], np.asarray(pool), strict=False):
                    found[i] = row
        return np.stack(found)

    def _check(self, images: Any) -> None:
        if np.ndim(images) != 4 or images.shape[-1] not in (1, 3):
            raise UvitError(
                f"{self.title} takes pictures (B, H, W, 1 or 3), got {np.shape(images)}"
            )
        if not (images.dtype == np.uint8 or jnp.issubdtype(images.dtype, jnp.floating)):
            raise UvitError(f"pictures are uint8 or floats in [-1, 1], got {images.dtype}")

    def _prepared(self, images: jax.Array) -> jax.Array:
        if images.dtype != jnp.uint8:
            images = jnp.clip(jnp.round((images.astype(jnp.float32) + 1) * 127.5), 0, 255)
        pixels = jnp.broadcast_to(images.astype(jnp.float32), (*images.shape[:-1], 3))
        return self.preprocess(pixels)

    def _features(self, params: Params, images: jax.Array) -> dict[str, jax.Array]:
        return self._network.apply(params, self._prepared(images))


def encoder(
    name: str,
    weights: str | os.PathLike | None = None,
    mesh: Mesh | None = None,
    *,
    preparation: Preparation | None = None,
) -> Encoder:
    """Makes an encoder.

    Args:
      name: one of `ENCODERS`: "inception" (as pytorch-fid feeds it), "inception_tf" (as the
        original graph), "efficientnet_lite0", "pixels", those of CLIP ("clip_vit_b32", …), DINO
        ("dino_vits16", …) and DINOv2 ("dinov2_vits14", …).
      weights: the file of its weights. All need one but EfficientNet and pixels.
      mesh: batches are spread over its batch axes.
      preparation: of the pictures, for DINO, DINOv2 and CLIP, where it is to be a benchmark's (see
        `preparation.CONVENTIONS`) and not the encoder's own.

    Raises:
      UvitError: if the name is unknown, the weights are missing or do not fit, or the encoder
        cannot be fed otherwise.
    """
    if name not in ENCODERS:
        raise UvitError(f"unknown encoder {name!r}{nearest(name, ENCODERS)}")
    family = ENCODERS[name]
    if preparation is not None:
        if name not in towers.FAMILIES:
            raise UvitError(f"the encoder {name} has its own preparation; leave preparation out")
        family = dataclasses.replace(family, prepare=preparation, preparation=preparation.word)
    return Encoder(name, family, Path(weights) if weights else None, mesh)


def spread(batch: np.ndarray, mesh: Mesh) -> jax.Array:
    """A host's array (B, ...), the same on all processes, over the mesh's batch axes.

    It is filled up with its last row to a multiple of the parts.
    """
    short = -len(batch) % batch_shards(mesh)
    if short:
        batch = np.concatenate([batch, np.repeat(batch[-1:], short, axis=0)])
    sharding = NamedSharding(mesh, BATCH)
    return jax.make_array_from_callback(batch.shape, sharding, lambda index: batch[index])


def _load_inception(path: Path | None) -> Network:
    if path is None:
        raise UvitError(
            "the encoder inception needs its weights, which are not part of this package: "
            "get pt_inception-2015-12-05-6726825d.pth from pytorch-fid's releases and name it as "
            "its weights (--weights)"
        )
    params = weights.read(path, inception.entries(), inception.abstract_params())
    return Network(params=params, sha256=weights.sha256(path), apply=inception.apply)


def _load_efficientnet(path: Path | None) -> Network:
    path = path or efficientnet.packaged_weights()
    params = weights.read(path, efficientnet.entries(), efficientnet.abstract_params())
    return Network(params=params, sha256=weights.sha256(path), apply=efficientnet.apply)


_PIXELS_SIDE, _PIXELS_SIZE = 8, 64


def _load_pixels(path: Path | None) -> Network:
    if path is not None:
        raise UvitError("the encoder pixels has no weights to load")
    inputs = _PIXELS_SIDE**2 * 3
    # RandomState's numbers never change between versions of NumPy.
    square = np.random.RandomState(0).standard_normal((inputs, inputs))
    kernel = np.linalg.qr(square)[0][:, :_PIXELS_SIZE].astype(np.float32)
    # Of the seed and shape: the last bits of a factorisation differ between machines.
    digest = hashlib.sha256(f"qr of RandomState(0), {kernel.shape}".encode()).hexdigest()
    return Network(params={"kernel": kernel}, sha256=digest, apply=_apply_pixels)


def _apply_pixels(params: Params, x_BHWC: jax.Array) -> dict[str, jax.Array]:
    flat = x_BHWC.reshape(x_BHWC.shape[0], -1)
    return {"pool": jnp.dot(flat, params["kernel"], precision=convolutional.PRECISION)}


def _prepare_pixels(pixels_BHWC: jax.Array) -> jax.Array:
    return convolutional.resize(pixels_BHWC, _PIXELS_SIDE, "antialias") / 127.5 - 1


_INCEPTION = dict(
    size=inception.FEATURES,
    load=_load_inception,
    official=inception.OFFICIAL_SHA256,
)

ENCODERS: dict[str, Family] = {
    "inception": Family(
        title="Inception",
        prepare=partial(inception.prepare, variant="pytorch"),
        preparation="299halfpixel",
        **_INCEPTION,
    ),
    "inception_tf": Family(
        title="Inception (TensorFlow's resizing)",
        prepare=partial(inception.prepare, variant="tensorflow"),
        preparation="299legacy",
        **_INCEPTION,
    ),
    "efficientnet_lite0": Family(
        title="EfficientNet-Lite0",
        size=efficientnet.FEATURES,
        load=_load_efficientnet,
        prepare=efficientnet.prepare,
        preparation="224antialias",
    ),
    **towers.FAMILIES,
    # Sees colours and coarse shapes only. For trying things out, and for tests.
    "pixels": Family(
        title="Pixels (random projection)",
        size=_PIXELS_SIZE,
        load=_load_pixels,
        prepare=_prepare_pixels,
        preparation="8antialias",
    ),
}
