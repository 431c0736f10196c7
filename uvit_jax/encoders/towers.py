"""Vision transformers as image encoders, with weights from files: CLIP, DINO, DINOv2.

Their features are those of the class token: projected for CLIP, after the last norm for DINO.
"""

from functools import partial
from pathlib import Path

import jax

from uvit_jax.encoders import clip_weights, preparation, vit_weights, weights
from uvit_jax.encoders.clip import Clip, VisionConfig
from uvit_jax.encoders.clip import prepare as prepare_clip
from uvit_jax.encoders.encoder_spec import EncoderSpec, LoadedEncoder
from uvit_jax.encoders.preparation import Preparation
from uvit_jax.errors import UvitError
from uvit_jax.models.model import Params


def clip_spec(name: str, config: VisionConfig) -> EncoderSpec:
    """The vision tower of a CLIP of this size."""

    def load(path: Path | None) -> LoadedEncoder:
        path = _given(path, name, "the CLIP")
        tower, params = clip_weights.load_vision(path)
        if tower.config != config:
            raise UvitError(f"{path} is a CLIP of another size than {name}: {tower.config}")
        return LoadedEncoder(params=params, sha256=_sha256(path), apply=apply)

    def apply(params: Params, x_BHWC: jax.Array) -> dict[str, jax.Array]:
        return {"pool": Clip(config).apply(params, x_BHWC)["embeds"]}

    return EncoderSpec(
        title=f"CLIP ({name.removeprefix('clip_')})",
        size=config.projection,
        load=load,
        prepare=partial(prepare_clip, size=config.image_size),
        preparation=f"{config.image_size}bicubic",
    )


def dino_spec(
    name: str,
    *,
    width: int,
    depth: int,
    patch_size: int,
    registers: int = 0,
    prepare: Preparation = preparation.DINO,
) -> EncoderSpec:
    """A DINO or DINOv2 of this size. Its file determines the interpolation of positions and the
    epsilon of the norms."""
    wanted = dict(width=width, depth=depth, patch_size=patch_size, registers=registers)
    wanted["layer_scale"] = name.startswith("dinov2")

    def load(path: Path | None) -> LoadedEncoder:
        path = _given(path, name, "it")
        tower, params = vit_weights.load_vit(path)
        actual = {key: getattr(tower.config, key) for key in wanted}
        if actual != wanted:
            differs = [f"{key}={actual[key]}" for key in wanted if actual[key] != wanted[key]]
            raise UvitError(f"{path} is not {name}: its network has {', '.join(differs)}")

        def apply(params: Params, x_BHWC: jax.Array) -> dict[str, jax.Array]:
            return {"pool": tower.apply(params, x_BHWC)["pooled"]}

        return LoadedEncoder(params=params, sha256=_sha256(path), apply=apply)

    return EncoderSpec(
        title=name.replace("_vit", " ViT-").replace("dinov2", "DINOv2").replace("dino", "DINO"),
        size=width,
        load=load,
        prepare=prepare,
        preparation=prepare.word,
    )


def _given(path: Path | None, name: str, what: str) -> Path:
    if path is None:
        raise UvitError(
            f"the encoder {name} needs its weights, which are not part of this package: pass "
            f"the folder of {what}, or its file (.safetensors, .pth), as weights (--weights)"
        )
    return path


def _sha256(path: Path) -> str:
    return weights.sha256(clip_weights.resolve(path, "vision")[0])


_CLIP_B = dict(width=768, depth=12, num_heads=12, mlp_width=3072, projection=512, image_size=224)
# OpenAI's towers.
_CLIPS = {
    "clip_vit_b32": VisionConfig(**_CLIP_B, patch_size=32),
    "clip_vit_b16": VisionConfig(**_CLIP_B, patch_size=16),
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
_SIZES = {
    "s": dict(width=384, depth=12),
    "b": dict(width=768, depth=12),
    "l": dict(width=1024, depth=24),
}
_DINOS = [(f"dino_vit{size}{p}", size, p, 0) for size in "sb" for p in (8, 16)]
_DINOS += [
    (f"dinov2_vit{size}14{'_reg' if registers else ''}", size, 14, registers)
    for size in "sbl"
    for registers in (0, 4)
]

TOWERS: dict[str, EncoderSpec] = {
    **{name: clip_spec(name, config) for name, config in _CLIPS.items()},
    **{
        name: dino_spec(
            name,
            **_SIZES[size],
            patch_size=patch_size,
            registers=registers,
            prepare=preparation.DINOV2 if "v2" in name else preparation.DINO,
        )
        for name, size, patch_size, registers in _DINOS
    },
}
"""Encoders by name."""
