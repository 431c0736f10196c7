"""UniDiffuser, v0 and v1 (Bao et al., "One Transformer Fits All Distributions in Multi-Modal
Diffusion at Scale", ICML 2023): one network for images and texts.

The names are VERSION-RESOLUTION. Each is one run, on images with captions of any data set:

    python -m experiments.encode_latents --data.name=coco_captions --data.image_size=512 \\
        --data.text=True --autoencoder=vae.safetensors --out=latents/pairs512
    python -m experiments.encode_text --latents=latents/pairs512 \\
        --encoder=clip-vit-large-patch14 --caption_decoder=caption_decoder.pth
    python -m experiments.encode_image_features --latents=latents/pairs512 \\
        --encoder=clip-vit-base-patch32
    python -m experiments.train --config=configs/unidiffuser.py:v1-512 --workdir=/data/unidiffuser
    python -m experiments.sample --workdir=/data/unidiffuser --mode=text_to_image \\
        --prompt="a red bus" --text_encoder=clip-vit-large-patch14 --caption_decoder=captions \\
        --autoencoder=vae.safetensors

or, to sample from or fine-tune the official weights,

    python -m experiments.import_checkpoint --checkpoint=uvit_v1.pth --workdir=/data/unidiffuser

Expected and cost: 952.5M parameters; 1,163 GMAC a forward pass at 512×512, 330 at 256×256; with
the published steps 5.6e21 FLOPs at 256×256 (batch 11264), then 6.2e21 at 512×512 (batch 2112). The
training code was never released, and no training has been reproduced here.

The published recipe: eps prediction of latents, CLIP image feature and text with two independent
times, the sum of the mean squared errors, Stable Diffusion's schedule; AdamW, learning rate 2e-4,
weight decay 0.03, betas (0.9, 0.9), 5,000 steps of warm-up. 250k steps at 256×256 with positions
interpolated from 512×512, then 420k at 512×512. Sampling: DPM-Solver++, 50 evaluations, guidance 7,
noise drawn anew at each of them.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.presets import unidiffuser


class Stage(NamedTuple):
    """The training at one resolution: `steps` in thousands, `latents` the side of the latents."""

    latents: int
    steps: int
    batch: int


STAGES = {"256": Stage(32, 250, 11264), "512": Stage(64, 420, 2112)}
NAMES = tuple(f"{version}-{size}" for version in unidiffuser.VERSIONS for size in STAGES)


def get_config(name: str = "v1-512") -> ConfigDict:
    """The config of the run `name`, one of `NAMES`."""
    if name not in NAMES:
        raise UvitError(f"configs/unidiffuser.py:{name} is not a known run{nearest(name, NAMES)}")
    version, size = name.split("-")
    stage = STAGES[size]
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        name="latents", path=f"latents/pairs{size}", features=True, image_features=True
    )
    config.model = unidiffuser.preset(version, (stage.latents, stage.latents, 4))
    if stage.latents != 64:
        config.model["segments"]["image"]["trained_shape"] = (64, 64, 4)
    config.model["dtype"] = "bfloat16"
    config.model["backbone"]["remat"] = "full"
    config.mesh = dict(data=1, fsdp=-1)
    config.diffusion = dict(schedule=dict(name="sd"), prediction="eps")
    config.optimizer = dict(
        learning_rate=2e-4, warmup_steps=5000, b1=0.9, b2=0.9, weight_decay=0.03
    )
    config.train = dict(
        steps=1000 * stage.steps,
        batch_size=stage.batch,
        ema_decay=0.9999,
        ema_warmup=False,
        checkpoint_every=5000,
        log_every=100,
    )
    config.sample = dict(
        mode="joint",
        sampler=dict(name="dpm_solver_pp", steps=50),
        guidance_scale=7.0,
        fresh_noise=True,
        count=16,
    )
    return config
