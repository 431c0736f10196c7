"""What `encoders` and its families agree on."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from uvit_jax.models.model import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """An encoder's network with its weights.

    Attributes:
      params: its parameters. sha256: of the file that they are from.
      apply: from parameters and input to `pool` (B, D) and, if it classifies, `logits` (B, K).
    """

    params: Params
    sha256: str
    apply: Callable[[Params, jax.Array], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of encoder.

    Attributes:
      title: for people. size: features D.
      load: from a file of weights (or None, for the default) to the network.
      prepare: from float32 pixels (B, H, W, 3) in [0, 255] to the network's input.
      preparation: a word that changes whenever `prepare` does, for the version.
      official: the hash of the weights with which figures have their well-known names.
    """

    title: str
    size: int
    load: Callable[[Path | None], Network]
    prepare: Callable[[jax.Array], jax.Array]
    preparation: str
    official: str = ""
