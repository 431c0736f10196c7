"""Emoji from their names, on a laptop: a U-ViT of 3.8M parameters on 159 faces, cats and hearts.

    python -m experiments.train --config=configs/quickstart.py
    python -m experiments.sample --workdir=workdirs/quickstart --prompt="skull, twemoji"

Expected: the loss (of x0, over all noise levels) falls below 0.1 in 200 steps and ends near 0.035;
the grid in `samples/` shows sixteen emoji, most of them recognisable at a glance.

Cost: 1200 steps of 16 images at 32×32, 5-12 minutes on two CPU cores.

Departures from the published U-ViT, each of which makes samples recognisable earlier at this size:
the network predicts x0 rather than eps, positions are fixed sinusoids, and initial weights are
larger.
"""

from ml_collections import ConfigDict

from uvit_jax.models.presets import uvit


def get_config() -> ConfigDict:
    """The config of this run."""
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        name="emoji",
        image_size=32,
        keep_vendors=("twemoji",),
        keep_groups=("smileys-emotion",),
        text=True,
        text_length=12,
    )
    config.model = uvit.preset(
        "S",
        (32, 32, 3),
        patch_size=4,
        text_length=12,
        vocab_size=2048,
        width=192,
        depth=6,
        num_heads=6,
        init="xavier",
        unroll=3,
    )
    config.model["segments"]["image"]["position"] = "sincos"
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
        weight_decay=0.01,
        clip_norm=1.0,
    )
    config.train = dict(
        steps=1200,
        batch_size=16,
        ema_decay=0.99,
        drop={"text": 0.1},
        checkpoint_every=250,
        log_every=10,
        sample_every=250,
    )
    config.sample = dict(
        sampler=dict(name="dpm_solver_pp", method="multistep", order=2, steps=20),
        guidance_scale=1.0,
        count=16,
        prompts=tuple(
            f"{name}, twemoji"
            for name in (
                "grinning face",
                "smiling face with sunglasses",
                "red heart",
                "face with tears of joy",
                "skull",
                "alien",
                "pile of poo",
                "pouting cat",
                "smiling face with heart-eyes",
                "angry face with horns",
                "clown face",
                "see-no-evil monkey",
                "broken heart",
                "star-struck",
                "robot",
                "crying face",
            )
        ),
    )
    return config
