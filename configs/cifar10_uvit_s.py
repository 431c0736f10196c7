"""U-ViT-S/2 on CIFAR-10, unconditional (Bao et al. 2023, table 1: FID 3.11; 44.26M parameters).

    tfds build cifar10 --file_format=array_record
    python -m experiments.train --config=configs/cifar10_uvit_s.py --workdir=/data/cifar10_uvit_s

The published recipe: VP-SDE, eps prediction, AdamW 2e-4, 500k steps of 128, Euler-Maruyama with
1000 steps on the average of the parameters.

Expected: the loss falls below 0.04 within the first 10k steps and ends near 0.03. The FID has not
been reproduced here: it wants an accelerator (12.2 GMAC a forward pass, 4.7e18 FLOPs in all).
"""

from ml_collections import ConfigDict

from uvit_jax.models.presets import uvit


def get_config() -> ConfigDict:
    """The config of this run."""
    config = ConfigDict()
    config.seed = 0
    config.data = dict(name="cifar10", flip=True)
    config.model = uvit.preset("S", (32, 32, 3), patch_size=2)
    config.diffusion = dict(schedule=dict(name="vp_linear"), prediction="eps")
    config.optimizer = dict(
        learning_rate=2e-4, warmup_steps=2500, b1=0.99, b2=0.999, weight_decay=0.03
    )
    config.train = dict(
        steps=500_000,
        batch_size=128,
        ema_decay=0.9999,
        ema_warmup=False,
        checkpoint_every=10_000,
        log_every=100,
        sample_every=50_000,
    )
    config.sample = dict(sampler=dict(name="euler_maruyama", steps=1000), count=64)
    return config
