"""The encoders, by name: what turns pictures into the features that figures are made of.

    encode = encoder("efficientnet_lite0")
    encode.features(images)["pool"]           # (B, 1280)

An encoder knows its weights by their hash, and every figure carries both: figures of different
encoders, or of one with other weights, are not comparable.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uvit_jax.errors import UvitError, nearest
from uvit_jax.evaluation import efficientnet, inception, layers, weights
from uvit_jax.interop import clip as interop_clip
from uvit_jax.models.clip import Clip, VisionConfig
from uvit_jax.models.clip import prepare as prepare_clip
from uvit_jax.models.model import Params
from uvit_jax.parallel.mesh import batch_shards
from uvit_jax.parallel.sharding import BATCH


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of encoder.

    Attributes:
      title: for people. size: features D.
      load: from a file of weights (or None, for the default) to the parameters and their hash.
      prepare: from float32 pixels (B, H, W, 3) in [0, 255] to the network's input.
      apply: from parameters and input to `pool` (B, D) and, if it classifies, `logits` (B, K).
      preparation: a word that changes whenever `prepare` does, for the version.
      official: the hash of the weights with which figures have their well-known names.
    """

    title: str
    size: int
    load: Callable[[Path | None], tuple[Params, str]]
    prepare: Callable[[jax.Array], jax.Array]
    apply: Callable[[Params, jax.Array], dict[str, jax.Array]]
    preparation: str
    official: str = ""


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
        params, self.weights_sha256 = family.load(path)
        self.version = f"{name}-{family.preparation}-{self.weights_sha256[:12]}"
        self.official = bool(family.official) and self.weights_sha256 == family.official
        self.preprocess = family.prepare
        self._family, self._mesh = family, mesh
        whole = None if mesh is None else NamedSharding(mesh, P())
        self._params = jax.device_put(params, whole)
        # Whole on every process, so that each can read them all.
        self._run = jax.jit(self._features, out_shardings=whole)

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
        if np.ndim(images) != 4 or images.shape[-1] not in (1, 3):
            raise UvitError(
                f"{self.title} takes pictures (B, H, W, 1 or 3), got {np.shape(images)}"
            )
        if not (images.dtype == np.uint8 or jnp.issubdtype(images.dtype, jnp.floating)):
            raise UvitError(f"pictures are uint8 or floats in [-1, 1], got {images.dtype}")
        count = images.shape[0]
        if isinstance(images, np.ndarray) and self._mesh is not None:
            images = spread(images, self._mesh)
        return {name: value[:count] for name, value in self._run(self._params, images).items()}

    def _features(self, params: Params, images: jax.Array) -> dict[str, jax.Array]:
        if images.dtype != jnp.uint8:
            images = jnp.clip(jnp.round((images.astype(jnp.float32) + 1) * 127.5), 0, 255)
        pixels = jnp.broadcast_to(images.astype(jnp.float32), (*images.shape[:-1], 3))
        return self._family.apply(params, self._family.prepare(pixels))


def encoder(
    name: str, weights: str | os.PathLike | None = None, mesh: Mesh | None = None
) -> Encoder:
    """Makes an encoder.

    Args:
      name: one of `ENCODERS`: "inception" (as pytorch-fid feeds it), "inception_tf" (as the
        original graph), "efficientnet_lite0", "clip_vit_b32", "clip_vit_l14", "pixels".
      weights: the file of its weights. Inception and CLIP need one; the others bring theirs.
      mesh: batches are spread over its batch axes.

    Raises:
      UvitError: if the name is unknown, or the weights are missing or do not fit.
    """
    if name not in ENCODERS:
        raise UvitError(f"unknown encoder {name!r}{nearest(name, ENCODERS)}")
    return Encoder(name, ENCODERS[name], Path(weights) if weights else None, mesh)


def spread(batch: np.ndarray, mesh: Mesh) -> jax.Array:
    """A host's array (B, ...), the same on all processes, over the mesh's batch axes.

    It is filled up with its last row to a multiple of the parts.
    """
    short = -len(batch) % batch_shards(mesh)
    if short:
        batch = np.concatenate([batch, np.repeat(batch[-1:], short, axis=0)])
    sharding = NamedSharding(mesh, BATCH)
    return jax.make_array_from_callback(batch.shape, sharding, lambda index: batch[index])


def _load_inception(path: Path | None) -> tuple[Params, str]:
    if path is None:
        raise UvitError(
            "the encoder inception needs its weights, which are not part of this package: "
            "get pt_inception-2015-12-05-6726825d.pth from pytorch-fid's releases and name it "
            "with weights="
        )
    params = weights.read(path, inception.entries(), inception.abstract_params())
    return params, weights.sha256(path)


def _load_efficientnet(path: Path | None) -> tuple[Params, str]:
    path = path or efficientnet.packaged_weights()
    params = weights.read(path, efficientnet.entries(), efficientnet.abstract_params())
    return params, weights.sha256(path)


# The towers of OpenAI's ViT-B/32 and ViT-L/14, whose embeddings are the features.
_CLIPS = {
    "clip_vit_b32": VisionConfig(
        width=768,
        depth=12,
        num_heads=12,
        mlp_width=3072,
        projection=512,
        image_size=224,
        patch_size=32,
    ),
    "clip_vit_l14": VisionConfig(
        width=1024,
        depth=24,
        num_heads=16,
        mlp_width=4096,
        projection=768,
        image_size=224,
        patch_size=14,
    ),
}


def _clip(name: str, config: VisionConfig) -> Family:
    def load(path: Path | None) -> tuple[Params, str]:
        if path is None:
            raise UvitError(
                f"the encoder {name} needs its weights, which are not part of this package: give "
                "the folder of the CLIP, or its model.safetensors, with weights="
            )
        tower, params = interop_clip.load_vision(path)
        if tower.config != config:
            raise UvitError(f"{path} is a CLIP of another size than {name}: {tower.config}")
        return params, weights.sha256(interop_clip.resolve(path, "vision")[0])

    def apply(params: Params, x_BHWC: jax.Array) -> dict[str, jax.Array]:
        return {"pool": Clip(config).apply(params, x_BHWC)["embeds"]}

    return Family(
        title=f"CLIP ({name.removeprefix('clip_')})",
        size=config.projection,
        load=load,
        prepare=partial(prepare_clip, size=config.image_size),
        apply=apply,
        preparation=f"{config.image_size}bicubic",
    )


_PIXELS_SIDE, _PIXELS_SIZE = 8, 64


def _load_pixels(path: Path | None) -> tuple[Params, str]:
    if path is not None:
        raise UvitError("the encoder pixels has no weights to load")
    inputs = _PIXELS_SIDE**2 * 3
    # RandomState's numbers never change between versions of NumPy.
    square = np.random.RandomState(0).standard_normal((inputs, inputs))
    kernel = np.linalg.qr(square)[0][:, :_PIXELS_SIZE].astype(np.float32)
    # Of the seed and shape: the last bits of a factorisation differ between machines.
    digest = hashlib.sha256(f"qr of RandomState(0), {kernel.shape}".encode()).hexdigest()
    return {"kernel": kernel}, digest


def _apply_pixels(params: Params, x_BHWC: jax.Array) -> dict[str, jax.Array]:
    flat = x_BHWC.reshape(x_BHWC.shape[0], -1)
    return {"pool": jnp.dot(flat, params["kernel"], precision=layers.PRECISION)}


def _prepare_pixels(pixels_BHWC: jax.Array) -> jax.Array:
    return layers.resize(pixels_BHWC, _PIXELS_SIDE, "antialias") / 127.5 - 1


_INCEPTION = dict(
    size=inception.FEATURES,
    load=_load_inception,
    apply=inception.apply,
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
        apply=efficientnet.apply,
        preparation="224antialias",
    ),
    **{name: _clip(name, config) for name, config in _CLIPS.items()},
    # Sees colours and coarse shapes only. For trying things out, and for tests.
    "pixels": Family(
        title="Pixels (random projection)",
        size=_PIXELS_SIZE,
        load=_load_pixels,
        prepare=_prepare_pixels,
        apply=_apply_pixels,
        preparation="8antialias",
    ),
}
