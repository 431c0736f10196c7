"""The judge of totems: a small CNN that embeds a subject and classifies its factors.

    judge = totem_judge.load(0)                      # 0 or 1: two independently trained judges
    outputs = judge(crops.crop(images, centre, half, totem_judge.SIZE))
    outputs["embedding"] @ outputs["embedding"].T    # cosine similarities

The weights are in `judges/`, trained by `python -m experiments.train_judge` on training identities
only. docs/subjects/judges.md has their calibration.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from uvit_jax.data.sources.worlds import backgrounds, factors
from uvit_jax.errors import UvitError
from uvit_jax.interop.files import write_tensors

SIZE, EMBEDDING = 32, 128
FOLDER = Path(__file__).parent / "judges"
HEADS = {
    **dict(zip(factors.NAMES, factors.SIZES, strict=True)),
    "background": len(backgrounds.NAMES) + 1,  # the last is the plain one
    "present": 2,
}
"""Number of classes by head. `background` takes a whole image, the others a crop; `present` is
whether the crop holds a subject."""

MEASURED = ("profile", "second_hue", "front", "back", "top", "arm")
"""The factors that both judges classify with an accuracy of at least .8 on ground-truth images. Hue
(.75: neighbouring hues are close) and pattern (.52) are below (docs/subjects/judges.md)."""

_CONVOLUTIONS = ((12, 32, 1), (32, 64, 2), (64, 96, 1), (96, 128, 2))
"""Input and output channels and stride. The input is space-to-depth by 2: 16²×12."""
_TRUNK = 256


class TotemJudgeNetwork(nnx.Module):
    """(B, 32, 32, 3) in [-1, 1] → unit `embedding` (B, 128), and logits (B, K) of each head."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.convolutions = nnx.List(
            [nnx.Conv(i, o, (3, 3), strides=s, rngs=rngs) for i, o, s in _CONVOLUTIONS]
        )
        self.trunk = nnx.Linear(16 * _CONVOLUTIONS[-1][1], _TRUNK, rngs=rngs)
        self.embedding = nnx.Linear(_TRUNK, EMBEDDING, rngs=rngs)
        self.heads = nnx.Linear(_TRUNK, sum(HEADS.values()), rngs=rngs)

    def __call__(self, x_BHWC: jax.Array) -> dict[str, jax.Array]:
        B = len(x_BHWC)
        h = x_BHWC.reshape(B, SIZE // 2, 2, SIZE // 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
        h = h.reshape(B, SIZE // 2, SIZE // 2, 12)
        for convolution in self.convolutions:
            h = nnx.relu(convolution(h))
        h = nnx.relu(self.trunk(h.reshape(len(h), -1)))
        e_BD = self.embedding(h)
        e_BD = e_BD * jax.lax.rsqrt(jnp.sum(e_BD**2, axis=-1, keepdims=True) + 1e-8)
        bounds = np.cumsum(list(HEADS.values()))[:-1]
        logits = jnp.split(self.heads(h), bounds.tolist(), axis=-1)
        return {"embedding": e_BD, **dict(zip(HEADS, logits, strict=True))}


class TotemJudge:
    """A trained judge, a function of crops, float32 (B, 32, 32, 3) in [-1, 1].

    It returns the unit `embedding`, float32 (B, 128), and class probabilities, float32 (B, K), for
    each of `HEADS`.

    Raises:
      UvitError: if `params` are not those of a judge.
    """

    def __init__(self, params: Mapping[str, np.ndarray], name: str):
        self.name = name
        graph, state = nnx.split(nnx.eval_shape(lambda: TotemJudgeNetwork(rngs=nnx.Rngs(0))))
        shapes = _flat(state)
        wrong = {k: getattr(params.get(k), "shape", None) for k in shapes}
        wrong = [k for k, shape in wrong.items() if shape != shapes[k].shape]
        if wrong or len(params) != len(shapes):
            what = f"{wrong[0]} is missing or has another shape" if wrong else "unexpected tensors"
            raise UvitError(f"{name} is not a judge of totems: {what}")
        structure = jax.tree.structure(state)
        values = [np.asarray(params[k], np.float32) for k in shapes]
        state = jax.tree.unflatten(structure, values)

        def apply(x_BHWC):
            outputs = nnx.merge(graph, state)(x_BHWC)
            return {k: v if k == "embedding" else jax.nn.softmax(v) for k, v in outputs.items()}

        self._apply = jax.jit(apply)

    def __call__(self, images_BHWC: np.ndarray, batch_size: int = 256) -> dict[str, np.ndarray]:
        B = len(images_BHWC)
        if images_BHWC.shape[1:] != (SIZE, SIZE, 3) or not B:
            raise UvitError(
                f"a judge of totems takes (B, {SIZE}, {SIZE}, 3), got {images_BHWC.shape}; "
                "crop the subjects with crops.crop"
            )
        parts = []
        for first in range(0, B, batch_size):
            part = np.asarray(images_BHWC[first : first + batch_size], np.float32)
            short = batch_size - len(part)  # one shape, one compilation
            padded = np.pad(part, ((0, short), (0, 0), (0, 0), (0, 0)))
            outputs = self._apply(padded)
            parts.append({k: np.asarray(v)[: len(part)] for k, v in outputs.items()})
        return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


def load(which: int | str | Path) -> TotemJudge:
    """Loads a shipped judge by its seed (0 or 1), or a file.

    Raises:
      UvitError: if the file is missing or not a judge.
    """
    path = FOLDER / f"totems_{which}.safetensors" if isinstance(which, int) else Path(which)
    if not path.is_file():
        raise UvitError(
            f"there is no judge {path}; `python -m experiments.train_judge --out=FILE` trains one"
        )
    try:
        params = load_file(path)
    except Exception as error:  # safetensors has an exception of its own, not an OSError
        raise UvitError(f"cannot read the judge {path}: {error}") from error
    return TotemJudge(params, path.stem)


def save(path: str | Path, module: TotemJudgeNetwork) -> None:
    """Writes a judge's parameters as float16; the file appears whole or not at all."""
    state = nnx.split(module)[1]
    tensors = {k: np.asarray(v, np.float16) for k, v in _flat(state).items()}
    write_tensors(Path(path), tensors)


def _flat(state) -> dict[str, jax.Array]:
    """Path → leaf, in the order of the tree's leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {_name(path): leaf for path, leaf in leaves}


def _name(path) -> str:
    keys = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    return "/".join(key for key in keys if key not in (".value", "value"))
