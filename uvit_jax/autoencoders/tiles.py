"""Large images and clips in overlapping tiles, in memory that does not grow with their size.

    images = in_tiles(decode, latents, tile=64, overlap=16)

Attention and convolutions within a tile see nothing of the others, so that tiles differ a little
from the whole; where they overlap, they are blended linearly.
"""

from collections.abc import Callable

import numpy as np

from uvit_jax.errors import UvitError


def in_tiles(
    function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, *, tile: int, overlap: int
) -> np.ndarray:
    """`function` of an image or a clip in tiles, whose outputs are blended where they overlap.

    Args:
      function: (…, h, w, C) → (…, s·h, s·w, C'), such as an autoencoder's `decode`; all tiles have
        one shape. A scale s < 1 must make tile, overlap and the sides of x whole numbers.
      x: (…, H, W, C). tile: its largest number of rows and columns. overlap: the smallest that
        neighbours share.

    Returns:
      numpy float32 (…, s·H, s·W, C'), equal to `function(x)` if one tile holds all.

    Raises:
      UvitError: unless 0 ≤ overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise UvitError(f"overlap must be at least 0 and less than tile={tile}, got {overlap}")
    tops, lefts = (_starts(size, tile, overlap) for size in x.shape[-3:-1])
    height, width = (min(tile, size) for size in x.shape[-3:-1])
    total = weights = None
    for top in tops:
        for left in lefts:
            part = x[..., top : top + height, left : left + width, :]
            y = np.asarray(function(part), np.float32)
            if len(tops) == len(lefts) == 1:
                return y

            def scaled(n: int, out: int = y.shape[-3]) -> int:
                return n * out // height

            if total is None:
                shape = [scaled(n) for n in x.shape[-3:-1]]
                total = np.zeros((*y.shape[:-3], *shape, y.shape[-1]), np.float32)
                weights = np.zeros((*shape, 1), np.float32)
                ramps = [_ramp(n, scaled(overlap)) for n in y.shape[-3:-1]]
                blend = (ramps[0][:, None] * ramps[1])[..., None]
            at = (
                ...,
                *(
                    slice(scaled(n), scaled(n) + m)
                    for n, m in zip((top, left), y.shape[-3:-1], strict=True)
                ),
                slice(None),
            )
            total[at] += blend * y
            weights[at] += blend
    return total / weights


def tiled(
    function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, tile: int, factor: int = 1
) -> np.ndarray:
    """`in_tiles` of `tile` latent rows and columns, of which neighbours share a third; x has
    `factor` times as many. With tile=0, `function(x)`."""
    if not tile:
        return function(x)
    return in_tiles(function, x, tile=tile * factor, overlap=tile // 3 * factor)


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles start; the last ends at `size`."""
    last = max(size - tile, 0)
    return [*range(0, last, tile - overlap), last]


def _ramp(size: int, overlap: int) -> np.ndarray:
    """Weights (size,) that rise over the first `overlap` pixels and fall over the last."""
    to_edge = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1
    return np.minimum(to_edge / (overlap + 1), 1).astype(np.float32)
