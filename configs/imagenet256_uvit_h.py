"""U-ViT-H/2 on ImageNet 256×256 latents (Bao et al. 2023, table 1: FID 2.29; 500.83M parameters).

    tfds build imagenet2012 --file_format=array_record
    python -m experiments.encode_latents --data.name=imagenet2012 --data.image_size=256 \\
        --data.labels=label --autoencoder=vae.safetensors --mirror --out=latents/imagenet256
    python -m experiments.train --config=configs/imagenet256_uvit_h.py \\
        --workdir=/data/imagenet256_uvit_h

The published recipe: Stable Diffusion's schedule of 1000 steps, eps prediction, AdamW 2e-4, 500k
steps of 1024, labels dropped in 10% of the examples, DPM-Solver++ with 50 evaluations and guidance
0.4.

The data are the latents of Stable Diffusion's autoencoder, 32×32×4, of every picture and its mirror
image, encoded once (42 GB in float16) and sampled anew at every step. `vae.safetensors` is that
autoencoder's file, `diffusion_pytorch_model.safetensors` in the `vae` folder of Stable Diffusion.

Expected: FID 2.29 (50k samples). The FID has not been reproduced here: it wants accelerators.

Cost: 133.2 GMAC a forward pass, 4.1e20 FLOPs in all.
"""

from ml_collections import ConfigDict

from uvit_jax.models.presets import uvit


def get_config() -> ConfigDict:
    """The config of this run."""
    config = ConfigDict()
    config.seed = 0
    config.data = dict(name="latents", path="latents/imagenet256", labels="label", flip=True)
    config.model = uvit.preset("H", (32, 32, 4), patch_size=2, num_classes=1000, final_conv="none")
    config.model["dtype"] = "bfloat16"
    config.model["backbone"]["remat"] = "full"
    config.diffusion = dict(schedule=dict(name="sd"), prediction="eps")
    config.optimizer = dict(
        learning_rate=2e-4, warmup_steps=5000, b1=0.99, b2=0.99, weight_decay=0.03
    )
    config.train = dict(
        steps=500_000,
        batch_size=1024,
        ema_decay=0.9999,
        ema_warmup=False,
        drop={"label": 0.1},
        checkpoint_every=5000,
        log_every=100,
        sample_every=0,
    )
    config.sample = dict(sampler=dict(name="dpm_solver_pp", steps=50), guidance_scale=0.4, count=16)
    config.mesh = dict(data=1, fsdp=-1)
    return config
