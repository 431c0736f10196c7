"""The smallest run there is: a few emoji, a two-block U-ViT, seconds on one core."""

from ml_collections import ConfigDict

from uvit_jax.models.presets import uvit


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        name="emoji",
        image_size=16,
        keep_vendors=("twemoji",),
        keep_groups=("smileys-emotion",),
        labels="subgroup",
        flip=True,
    )
    config.model = uvit.preset(
        "S", (16, 16, 3), patch_size=4, num_classes=128, width=32, depth=2, num_heads=2
    )
    config.optimizer = dict(learning_rate=1e-3, warmup_steps=5, clip_norm=1.0)
    config.train = dict(
        steps=20,
        batch_size=16,
        drop={"label": 0.2},
        checkpoint_every=5,
        log_every=1,
    )
    config.sample = dict(
        sampler=dict(name="dpm_solver", steps=4), guidance_scale=1.0, clip=1.0, count=4
    )
    return config
