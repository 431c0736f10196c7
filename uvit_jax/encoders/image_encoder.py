"""Image encoders by name: images to the features that metrics are computed from.

    encode = encoder("efficientnet_lite0")
    encode.features(images)["pool"]           # (B, 1280)

Every metric records its encoder and the hash of its weights: metrics of different encoders, or of
other weights, are not comparable.
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
from uvit_jax.encoders.encoder_spec import EncoderSpec, LoadedEncoder
from uvit_jax.encoders.preparation import Preparation
from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.model import Params
from uvit_jax.parallel.mesh import batch_shards
from uvit_jax.parallel.sharding import BATCH
from uvit_jax.paths import local_path


class Encoder:
    """Images to features, jitted, with batches sharded over the mesh. Built by `encoder`.

    Attributes:
      name: in `ENCODERS`. title: for tables. size: number of features D.
      weights_sha256: of the file of weights.
      version: identifies name, preprocessing and weights; features of equal versions are
        comparable.
      official: whether the weights are those that standard metrics such as FID are defined with.
    """

    def __init__(self, name: str, spec: EncoderSpec, path: Path | None, mesh: Mesh | None):
        self.name, self.title, self.size = name, spec.title, spec.size
        network = spec.load(path)
        self.weights_sha256 = network.sha256
        self.version = f"{name}-{spec.preparation}-{self.weights_sha256[:12]}"
        self.official = bool(spec.official) and self.weights_sha256 == spec.official
        self.preprocess = spec.prepare
        self._network, self._mesh = network, mesh
        replicated = None if mesh is None else NamedSharding(mesh, P())
        self._params = jax.device_put(network.params, replicated)
        # Features are replicated, so that every process can read them.
        self._run = jax.jit(self._features, out_shardings=replicated)
        self._prepare = jax.jit(self._prepared)
        self._apply = jax.jit(network.apply, out_shardings=replicated)

    def __repr__(self) -> str:
        return f"Encoder({self.version})"

    def features(self, images: np.ndarray | jax.Array) -> dict[str, jax.Array]:
        """Encodes a batch.

        Floats are rounded to 256 levels first, since published metrics are computed from image
        files. Grey images are repeated to three channels. There is one compilation per shape.

        Args:
          images: (B, H, W, C), C 1 or 3: uint8, or floats in [-1, 1] (clipped). On a mesh of
            several processes, the full batch on each of them, or a global array.

        Returns:
          `pool` float32 (B, D) and, for a classifier, `logits` (B, K). An image with NaN has NaN
          features.

        Raises:
          UvitError: if the images have another shape or dtype.
        """
        self._check(images)
        count = images.shape[0]
        if isinstance(images, np.ndarray) and self._mesh is not None:
            images = spread(images, self._mesh)
        return {name: value[:count] for name, value in self._run(self._params, images).items()}

    def of_images(self, images: Sequence[np.ndarray], *, batch_size: int = 32) -> np.ndarray:
        """The features `pool`, float32 (n, D), of images of different sizes.

        The network is compiled once per size of its input, preprocessing once per image size.

        Args:
          images: each (H, W, C) as in `features`.

        Raises:
          UvitError: without images, or as `features`.
        """
        if not len(images):
            raise UvitError(f"{self.title} needs one or more images")
        by_shape: dict[tuple[int, ...], list[int]] = {}
        prepared = []
        for i, image in enumerate(images):
            image = np.asarray(image)[None]
            self._check(image)
            prepared.append(np.asarray(self._prepare(image)[0]))
            by_shape.setdefault(prepared[-1].shape, []).append(i)
        features: list[Any] = [None] * len(prepared)
        for rows in by_shape.values():
            size = min(batch_size, len(rows))
            for start in range(0, len(rows), size):
                # Padded to full batches: one compilation.
                chosen = [rows[k % len(rows)] for k in range(start, start + size)]
                pool = self._apply(self._params, np.stack([prepared[i] for i in chosen]))["pool"]
                for i, row in zip(rows[start : start + size], np.asarray(pool), strict=False):
                    features[i] = row
        return np.stack(features)

    def _check(self, images: Any) -> None:
        if np.ndim(images) != 4 or images.shape[-1] not in (1, 3):
            raise UvitError(f"{self.title} takes images (B, H, W, 1 or 3), got {np.shape(images)}")
        if not (images.dtype == np.uint8 or jnp.issubdtype(images.dtype, jnp.floating)):
            raise UvitError(f"images are uint8 or floats in [-1, 1], got {images.dtype}")

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
    """Builds an encoder.

    Args:
      name: one of `ENCODERS`: "inception" (preprocessing of pytorch-fid), "inception_tf" (of the
        original graph), "efficientnet_lite0", "pixels", those of CLIP ("clip_vit_b32", …), DINO
        ("dino_vits16", …) and DINOv2 ("dinov2_vits14", …).
      weights: the file of its weights; optional for EfficientNet, none for pixels.
      mesh: batches are sharded over its batch axes.
      preparation: replaces the preprocessing of DINO, DINOv2 or CLIP, as some benchmarks do (see
        `preparation`).

    Raises:
      UvitError: if the name is unknown, the weights are missing or do not fit, or the encoder
        does not support another preparation.
    """
    if name not in ENCODERS:
        raise UvitError(f"unknown encoder {name!r}{nearest(name, ENCODERS)}")
    spec = ENCODERS[name]
    if preparation is not None:
        if name not in towers.TOWERS:
            raise UvitError(f"the encoder {name} does not support another preparation")
        spec = dataclasses.replace(spec, prepare=preparation, preparation=preparation.word)
    return Encoder(name, spec, local_path(weights) if weights else None, mesh)


def spread(batch: np.ndarray, mesh: Mesh) -> jax.Array:
    """Shards an array (B, ...) that all processes hold over the batch axes of the mesh.

    Its last row is repeated up to a multiple of the number of shards.
    """
    short = -len(batch) % batch_shards(mesh)
    if short:
        batch = np.concatenate([batch, np.repeat(batch[-1:], short, axis=0)])
    sharding = NamedSharding(mesh, BATCH)
    return jax.make_array_from_callback(batch.shape, sharding, lambda index: batch[index])


def _load_inception(path: Path | None) -> LoadedEncoder:
    if path is None:
        raise UvitError(
            "the encoder inception needs its weights, which are not part of this package: "
            "download pt_inception-2015-12-05-6726825d.pth from pytorch-fid's releases and pass it "
            "as weights (--weights)"
        )
    params = weights.read(path, inception.entries(), inception.abstract_params())
    return LoadedEncoder(params=params, sha256=weights.sha256(path), apply=inception.apply)


def _load_efficientnet(path: Path | None) -> LoadedEncoder:
    path = path or efficientnet.packaged_weights()
    params = weights.read(path, efficientnet.entries(), efficientnet.abstract_params())
    return LoadedEncoder(params=params, sha256=weights.sha256(path), apply=efficientnet.apply)


_PIXELS_SIDE, _PIXELS_SIZE = 8, 64


def _load_pixels(path: Path | None) -> LoadedEncoder:
    if path is not None:
        raise UvitError("the encoder pixels has no weights to load")
    inputs = _PIXELS_SIDE**2 * 3
    # RandomState is stable across versions of NumPy.
    square = np.random.RandomState(0).standard_normal((inputs, inputs))
    kernel = np.linalg.qr(square)[0][:, :_PIXELS_SIZE].astype(np.float32)
    # Of seed and shape: the last bits of a factorisation differ between machines.
    digest = hashlib.sha256(f"qr of RandomState(0), {kernel.shape}".encode()).hexdigest()
    return LoadedEncoder(params={"kernel": kernel}, sha256=digest, apply=_apply_pixels)


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

ENCODERS: dict[str, EncoderSpec] = {
    "inception": EncoderSpec(
        title="Inception",
        prepare=partial(inception.prepare, variant="pytorch"),
        preparation="299halfpixel",
        **_INCEPTION,
    ),
    "inception_tf": EncoderSpec(
        title="Inception (TensorFlow's resizing)",
        prepare=partial(inception.prepare, variant="tensorflow"),
        preparation="299legacy",
        **_INCEPTION,
    ),
    "efficientnet_lite0": EncoderSpec(
        title="EfficientNet-Lite0",
        size=efficientnet.FEATURES,
        load=_load_efficientnet,
        prepare=efficientnet.prepare,
        preparation="224antialias",
    ),
    **towers.TOWERS,
    # Sees colours and coarse shapes only; for tests and quick trials.
    "pixels": EncoderSpec(
        title="Pixels (random projection)",
        size=_PIXELS_SIZE,
        load=_load_pixels,
        prepare=_prepare_pixels,
        preparation="8antialias",
    ),
}
