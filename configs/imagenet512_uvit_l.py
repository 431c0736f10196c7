"""U-ViT-L/4 on ImageNet 512×512 latents (Bao et al. 2023, table 1: FID 4.67; 286.86M parameters).

    tfds build imagenet2012 --file_format=array_record
    python -m experiments.encode_latents --data.name=imagenet2012 --data.image_size=512 \\
        --data.labels=label --autoencoder=vae.safetensors --mirror --out=latents/imagenet512
    python -m experiments.train --config=configs/imagenet512_uvit_l.py \\
        --workdir=/data/imagenet512_uvit_l

The published recipe: VP-SDE, eps prediction, AdamW 2e-4, 500k steps of 1024, labels dropped in 15%
of the examples, DPM-Solver with 50 evaluations and guidance 0.7.

The data are the latents of Stable Diffusion's autoencoder, 64×64×4, of every picture and its mirror
image, encoded once (168 GB in float16) and sampled anew at every step. `vae.safetensors` is that
autoencoder's file, `diffusion_pytorch_model.safetensors` in the `vae` folder of Stable Diffusion.

Expected: FID 4.67 (50k samples). The FID has not been reproduced here: it wants accelerators.

Cost: 76.5 GMAC a forward pass, 2.4e20 FLOPs in all.
"""

from ml_collections import ConfigDict

from uvit_jax.models.presets import uvit


def get_config() -> ConfigDict:
    """The config of this run."""
    config = ConfigDict()
    config.seed = 0
    config.data = dict(name="latents", path="latents/imagenet512", labels="label", flip=True)
    config.model = uvit.preset("L", (64, 64, 4), patch_size=4, num_classes=1000)
    config.model["dtype"] = "bfloat16"
    config.model["backbone"]["remat"] = "full"
    config.diffusion = dict(schedule=dict(name="vp_linear"), prediction="eps")
    config.optimizer = dict(
        learning_rate=2e-4, warmup_steps=5000, b1=0.99, b2=0.99, weight_decay=0.03
    )
    config.train = dict(
        steps=500_000,
        batch_size=1024,
        ema_decay=0.9999,
        ema_warmup=False,
        drop={"label": 0.15},
        checkpoint_every=5000,
        log_every=100,
        sample_every=0,
    )
    config.sample = dict(sampler=dict(name="dpm_solver", steps=50), guidance_scale=0.7, count=16)
    config.mesh = dict(data=1, fsdp=-1)
    return config
