"""`EncoderSpec`, an entry of the registry of image encoders, and `LoadedEncoder`, its network."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from uvit_jax.models.model import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedEncoder:
    """The network of an encoder with its weights.

    Attributes:
      params: its parameters. sha256: of the file of weights.
      apply: (params, input) → `pool` (B, D) and, for a classifier, `logits` (B, K).
    """

    params: Params
    sha256: str
    apply: Callable[[Params, jax.Array], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """An image encoder: how its weights are loaded and its input is preprocessed.

    Attributes:
      title: for tables. size: number of features D.
      load: a file of weights (or None, for the default) → the network.
      prepare: float32 pixels (B, H, W, 3) in [0, 255] → the input of the network.
      preparation: an identifier that changes whenever `prepare` does, part of the version.
      official: the hash of the weights that standard metrics such as FID are defined with.
    """

    title: str
    size: int
    load: Callable[[Path | None], LoadedEncoder]
    prepare: Callable[[jax.Array], jax.Array]
    preparation: str
    official: str = ""
