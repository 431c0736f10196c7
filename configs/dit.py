"""DiT on ImageNet latents, every published size and conditioning (Peebles & Xie, ICCV 2023).

    tfds build imagenet2012 --file_format=array_record
    python -m experiments.encode_latents --data.name=imagenet2012 --data.image_size=256 \\
        --data.labels=label --autoencoder=vae.safetensors --mirror --out=latents/imagenet256
    python -m experiments.train --config=configs/dit.py:XL/2-256 --workdir=/data/dit_xl_2

The variants are SIZE/PATCH-RESOLUTION: S, B, L or XL, 2, 4 or 8, 256 or 512; and, as a suffix,
`-in_context`, `-cross` or `-adaln` for another conditioning on time and label than adaLN-Zero.

The published recipe: DDPM's linear schedule, eps prediction with a learned range of variances (MSE
and variational bound), AdamW 1e-4 without warm-up or decay, batch 256, labels dropped in 10% of the
examples, 250 respaced DDPM steps, for XL/2 with guidance on three of the four channels. DiT's scale
1.5 is 0.5 here. bfloat16 stands in for the original's TF32.

Expected, as published (50k samples): 400k steps without guidance give the FIDs

        GMAC    FID             GMAC    FID             GMAC    FID
  S/8   0.36  153.60      S/4   1.41  100.41      S/2   6.06  68.40
  B/8   1.42  122.74      B/4   5.57   68.38      B/2  23.01  43.47
  L/8   5.01  118.87      L/4  19.70   45.64      L/2  80.70  23.33
  XL/8  7.39  106.41      XL/4 29.04   43.01      XL/2 118.62 19.50

and XL/2 with in_context 35.24, cross 26.14, adaln 25.21. XL/2-256 ends at 2.27 after 7M steps and
XL/2-512 at 3.04 after 3M, with guidance. None has been reproduced here: that takes accelerators.

Cost: 1536 · GMAC FLOPs per step of 256, that is 1.3e21 FLOPs for XL/2-256 and 2.2e17 for S/8-256.
"""

import itertools

from ml_collections import ConfigDict

from uvit_jax.models.presets.dit import PATCHES, RESOLUTIONS, SIZES, parse_variant

NAMES = tuple(f"{s}/{p}-{px}" for s, p, px in itertools.product(SIZES, PATCHES, RESOLUTIONS))
STEPS = {256: 7_000_000, 512: 3_000_000}  # of the released XL/2; all others have 400k


def get_config(variant: str = "XL/2-256") -> ConfigDict:
    """The config of this run."""
    which = parse_variant(variant)
    config = ConfigDict()
    config.seed = 0
    path = f"latents/imagenet{which.resolution}"
    config.data = dict(name="latents", path=path, labels="label", flip=True)
    config.model = which.model()
    config.model["dtype"] = "bfloat16"
    config.model["backbone"]["remat"] = "full"
    config.diffusion = dict(schedule=dict(name="ddpm_linear"), prediction="eps")
    config.optimizer = dict(learning_rate=1e-4, warmup_steps=0, b1=0.9, b2=0.999, weight_decay=0.0)
    config.train = dict(
        steps=STEPS[which.resolution] if which.published else 400_000,
        batch_size=256,
        ema_decay=0.9999,
        ema_warmup=False,
        drop={"label": 0.1},
        checkpoint_every=10_000,
        log_every=100,
        sample_every=0,
    )
    config.sample = dict(
        sampler=dict(name="ddpm", steps=250, variance="learned"),
        guidance_scale=0.5 if which.published else 0.0,
        guidance_channels=3,
        count=16,
    )
    config.mesh = dict(data=1, fsdp=-1)
    return config
