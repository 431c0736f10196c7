"""A unified model of your own subjects: images whose captions name them, with reference images.

    python -m experiments.inspect_data --config=configs/own_subjects.py:photos
    python -m experiments.train --config=configs/own_subjects.py:photos
    python -m experiments.sample --workdir=workdirs/own_subjects --references=photos/rex \\
        --prompt="@1 on a beach"

`photos` is a folder with a sub-folder for each subject, or a manifest (docs/data.md). Settings may
follow it: `configs/own_subjects.py:photos,subjects=1,width=192,depth=6`. In a folder, every image
has one subject; in a manifest, as many as its caption names.

Cost: by default 64×64 pixels and up to three subjects in 9M parameters. With the smaller settings
above, 4.3M, a step takes about 0.7 s of one CPU core with attention="blocked", products="flat".
"""

from ml_collections import ConfigDict

from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.presets import unified

SETTINGS = dict(subjects=3, views=2, size=64, text=32, width=256, depth=8)
"""Of an image, the most subjects, and references of each; its pixels; the tokens of a caption."""


def get_config(text: str = "") -> ConfigDict:
    """The config of a run on a folder or manifest.

    Args:
      text: its path, and settings: `photos,subjects=1`.

    Raises:
      UvitError: for an unknown setting, or one that is not a positive integer.
    """
    path, *given = text.split(",")
    s = SETTINGS | dict(_setting(item) for item in given)
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        name="subjects",
        path=path or "photos",
        image_size=s["size"],
        text=True,
        text_length=s["text"],
        max_subjects=s["subjects"],
        max_views=s["views"],
    )
    config.model = unified.preset(
        "uvit",
        (s["size"], s["size"], 3),
        patch_size=max(s["size"] // 8, 1),
        subjects=s["subjects"],
        views=s["views"],
        text=dict(shape=(s["text"],), vocab_size=4400),
        position="sincos",
        width=s["width"],
        depth=s["depth"],
        num_heads=max(s["width"] // 32, 1),
        init="xavier",
    )
    config.diffusion = dict(
        schedule=dict(name="rectified_flow"),
        prediction="x0",
        weighting="velocity",
        time_sampling="logit_normal",
        logit_mean=0.8,
    )
    config.optimizer = dict(
        name="muon",
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=100,
        b1=0.9,
        b2=0.99,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    config.train = dict(
        steps=20_000,
        batch_size=8,
        draws=2,  # noise levels of each image, for which its references are computed once
        ema_decay=0.999,
        drop={"text": 0.1},
        drop_references=0.1,
        drop_each_reference=0.2,
        checkpoint_every=500,
        log_every=50,
        sample_every=1000,
    )
    config.sample = dict(
        sampler=dict(name="dpm_solver_pp", method="multistep", order=2, steps=20),
        guidance_scale=0.5,
        reference_guidance_scale=1.0,
        guidance_chain="references",
        count=16,
        clip=1.0,
    )
    return config


def _setting(item: str) -> tuple[str, int]:
    key, _, value = item.partition("=")
    if key not in SETTINGS:
        raise UvitError(f"{key!r} is not a setting of this config{nearest(key, SETTINGS)}")
    if not (value.isascii() and value.isdigit() and int(value)):
        raise UvitError(f"{key}={value} must be a positive integer, such as {key}={SETTINGS[key]}")
    return key, int(value)
