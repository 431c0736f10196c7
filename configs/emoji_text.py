"""Text-to-image as on MS-COCO at a laptop's size: emoji from captions, by a small text encoder.

    python -m experiments.train --config=configs/emoji_text.py
    python -m experiments.sample --workdir=workdirs/emoji_text --prompt="pouting cat, noto"

The layout is that of `uvit.py:coco-S/2`, tokens [time, text, patches], with a text encoder of two
transformer blocks, trained with the rest, in place of CLIP's frozen one. Captions name a concept
and a vendor, and most concepts have images of both vendors, which the network has to tell apart.
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
        keep_vendors=("twemoji", "noto"),
        keep_groups=("smileys-emotion", "animals-nature"),
        text=True,
        text_length=16,
    )
    config.model = uvit.preset(
        "S",
        (32, 32, 3),
        patch_size=4,
        text_length=16,
        vocab_size=2048,
        width=192,
        depth=6,
        num_heads=6,
        init="xavier",
        unroll=3,
    )
    config.model["segments"]["text"].update(encoder_depth=2, encoder_heads=6)
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
        warmup_steps=100,
        b1=0.9,
        b2=0.99,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    config.train = dict(
        steps=2000,
        batch_size=16,
        ema_decay=0.99,
        drop={"text": 0.1},
        checkpoint_every=500,
        log_every=10,
        sample_every=500,
    )
    names = (
        "grinning face",
        "red heart",
        "skull",
        "pouting cat",
        "frog",
        "fox",
        "tulip",
        "owl",
    )
    vendors = ("twemoji", "noto")
    config.sample = dict(
        sampler=dict(name="dpm_solver_pp", method="multistep", order=2, steps=20),
        guidance_scale=1.0,
        count=16,
        prompts=tuple(f"{name}, {vendor}" for name in names for vendor in vendors),
    )
    return config
