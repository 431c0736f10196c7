"""The ablations of "All are Worth Words" (section 4.1) on emoji, at the size of one CPU core.

    python -m experiments.ablate --config=configs/ablations.py --group=long_skip,time
    python -m experiments.ablate --config=configs/ablations.py --group=positions --seeds=5 \\
        --config.data.name=cifar10 --config.data.keep_groups="()" --config.train.steps=50000 \\
        --config.train.checkpoint_every=6250

The data are 629 faces, cats and hearts of four vendors, unconditional; `validation_loss` is
computed on the 47 images of held-out concepts. The differences from the paper make samples
recognisable within 480 steps of 16 images: the network predicts x0 (with eps, samples are still
noise after 300 such steps), initial weights are larger, and the learning rate is ten times the
published one. So the ablations are those of the paper, but early in training instead of after
500,000 steps on CIFAR-10.

Cost: a run takes about 4 minutes on one core; two groups with three seeds (21 runs) 80 minutes.
"""

from typing import Any

from ml_collections import ConfigDict

from uvit_jax.models.presets import uvit

GROUPS = {
    "long_skip": {
        "concat": {},
        "add": {"model.backbone.skip": "add"},
        "linear_of_sum": {"model.backbone.skip": "linear_of_sum"},
        "sum_of_linear": {"model.backbone.skip": "sum_of_linear"},
        "none": {"model.backbone.skip": "none"},
    },
    "time": {
        "token": {},
        "adaln": {"model.segments.time.enter": "adaln", "model.backbone.modulation": "adaln"},
        "adaln_zero": {
            "model.segments.time.enter": "adaln",
            "model.backbone.modulation": "adaln_zero",
        },
    },
    "final_conv": {
        "after": {},
        "before": {"model.segments.image.final_conv": "before"},
        "none": {"model.segments.image.final_conv": "none"},
    },
    "patch_embed": {
        "linear": {},
        "conv_stack": {"model.segments.image.patch_embed": "conv_stack"},
    },
    "positions": {
        "learned": {},
        "sincos": {"model.segments.image.position": "sincos"},
        "rope": {"model.segments.image.position": "rope"},
        "none": {"model.segments.image.position": "none"},
    },
    "depth": {str(depth): {"model.backbone.depth": depth} for depth in (8, 4, 6, 12)},
    "width": {str(width): {"model.backbone.width": width} for width in (96, 48, 192)},
    "patch_size": {str(size): {"model.segments.image.patch_size": size} for size in (4, 2, 8)},
}


def get_config() -> dict[str, Any]:
    """The config of these ablations. A plain dict: a ConfigDict takes no dotted keys."""
    config = ConfigDict()
    config.seed = 0
    config.data = dict(name="emoji", image_size=32, keep_groups=("smileys-emotion",))
    config.model = uvit.preset(
        "S",
        (32, 32, 3),
        patch_size=4,
        width=96,
        depth=8,
        num_heads=3,
        init="xavier",
        unroll=4,
    )
    config.diffusion = dict(
        schedule=dict(name="rectified_flow"),
        prediction="x0",
        time_sampling="logit_normal",
        logit_mean=0.5,
    )
    config.optimizer = dict(
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=50,
        b1=0.9,
        b2=0.99,
        weight_decay=0.03,
        clip_norm=1.0,
    )
    config.train = dict(
        steps=480,
        batch_size=16,
        ema_decay=0.99,
        checkpoint_every=120,
        keep_checkpoints=8,
        log_every=20,
    )
    config.sample = dict(
        sampler=dict(name="dpm_solver_pp", method="multistep", order=2, steps=20), clip=1.0
    )
    return {
        **config.to_dict(),
        "groups": GROUPS,
        # The published choice is the first of each group.
        "baseline": {group: next(iter(variants)) for group, variants in GROUPS.items()},
        "seeds": 3,
        "metrics": dict(split="test", validation=1024, samples=256, batch_size=64),
    }
