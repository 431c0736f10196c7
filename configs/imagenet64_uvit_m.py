"""U-ViT-M/4 on ImageNet 64×64 (Bao et al. 2023, table 1: FID 5.85; 130.94M parameters).

    tfds build imagenet2012 --file_format=array_record
    python -m experiments.train --config=configs/imagenet64_uvit_m.py \\
        --workdir=/data/imagenet64_uvit_m

The published recipe: pixels, VP-SDE, eps prediction, AdamW 3e-4, 300k steps of 1024, labels that
are never dropped, DPM-Solver with 50 evaluations and no guidance.

Expected: FID 5.85 (50k samples). The FID has not been reproduced here: it wants accelerators.

Cost: 35.2 GMAC a forward pass, 6.5e19 FLOPs in all.
"""

from ml_collections import ConfigDict

from uvit_jax.models.presets import uvit


def get_config() -> ConfigDict:
    """The config of this run."""
    config = ConfigDict()
    config.seed = 0
    config.data = dict(name="imagenet2012", image_size=64, labels="label", flip=True)
    config.model = uvit.preset("M", (64, 64, 3), patch_size=4, num_classes=1000, null=False)
    config.model["dtype"] = "bfloat16"
    config.model["backbone"]["remat"] = "full"
    config.diffusion = dict(schedule=dict(name="vp_linear"), prediction="eps")
    config.optimizer = dict(
        learning_rate=3e-4, warmup_steps=5000, b1=0.99, b2=0.99, weight_decay=0.03
    )
    config.train = dict(
        steps=300_000,
        batch_size=1024,
        ema_decay=0.9999,
        ema_warmup=False,
        checkpoint_every=5000,
        log_every=100,
        sample_every=50_000,
    )
    config.sample = dict(sampler=dict(name="dpm_solver", steps=50), count=64)
    config.mesh = dict(data=1, fsdp=-1)
    return config
