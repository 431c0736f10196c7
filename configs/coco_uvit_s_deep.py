"""U-ViT-S/2 (deep) on MS-COCO captions (Bao et al. 2023, table 4: FID 5.48; 58.35M parameters).

    tfds build coco_captions --file_format=array_record
    python -m experiments.encode_latents --data.name=coco_captions --data.image_size=256 \\
        --data.text=True --autoencoder=vae.safetensors --scale=0.23010 --out=latents/coco256
    python -m experiments.encode_text --latents=latents/coco256 --encoder=clip-vit-large-patch14
    python -m experiments.train --config=configs/coco_uvit_s_deep.py \\
        --workdir=/data/coco_uvit_s_deep

The published recipe: Stable Diffusion's schedule of 1000 steps, eps prediction, AdamW 2e-4, 1M
steps of 256, captions dropped in 10% of the examples, DPM-Solver++ with 50 evaluations and guidance
1.

The data are latents, 32×32×4, multiplied by 0.23010, beside the 77×768 features that CLIP
ViT-L/14 makes of every caption. The null caption is what it makes of the empty text.

Expected: FID 5.48 (30k captions of the validation set). The FID has not been reproduced here: it
wants accelerators.

Cost: 21.2 GMAC a forward pass, 3.3e19 FLOPs in all.
"""

from ml_collections import ConfigDict

from uvit_jax.models.presets import uvit


def get_config() -> ConfigDict:
    """The config of this run."""
    config = ConfigDict()
    config.seed = 0
    config.data = dict(name="latents", path="latents/coco256", features=True)
    config.model = uvit.preset("S-deep", (32, 32, 4), patch_size=2, text_shape=(77, 768))
    config.model["dtype"] = "bfloat16"
    config.diffusion = dict(schedule=dict(name="sd"), prediction="eps")
    config.optimizer = dict(
        learning_rate=2e-4, warmup_steps=5000, b1=0.9, b2=0.9, weight_decay=0.03
    )
    config.train = dict(
        steps=1_000_000,
        batch_size=256,
        ema_decay=0.9999,
        ema_warmup=False,
        drop={"text": 0.1},
        checkpoint_every=10_000,
        log_every=100,
        sample_every=0,
    )
    config.sample = dict(
        sampler=dict(name="dpm_solver_pp", steps=50),
        guidance_scale=1.0,
        latent_scale=0.23010,
        count=16,
    )
    return config
