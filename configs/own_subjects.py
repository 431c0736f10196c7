"""A unified model of your own subjects: images whose captions name them, with reference images.

    python -m experiments.inspect_data --config=configs/own_subjects.py:photos
    python -m experiments.train --config=configs/own_subjects.py:photos
    python -m experiments.sample --workdir=workdirs/own_subjects --references=photos/rex \\
        --prompt="@1 on a beach"

`photos` is a folder with a sub-folder for each subject, or a manifest (docs/data.md). One to three
subjects, of one or two references each; --config.data.max_subjects and the model's number go
together.

Cost: 64×64 pixels in 12M parameters; a step of 16 images takes a few seconds on two CPU cores.
"""

from ml_collections import ConfigDict

from uvit_jax.models.presets import unified

SUBJECTS, VIEWS, SIZE, TEXT = 3, 2, 64, 32


def get_config(path: str = "") -> ConfigDict:
    """The config of the run on the folder or manifest `path`."""
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        name="subjects",
        path=path or "photos",
        image_size=SIZE,
        text=True,
        text_length=TEXT,
        max_subjects=SUBJECTS,
        max_views=VIEWS,
    )
    config.model = unified.preset(
        "uvit",
        (SIZE, SIZE, 3),
        patch_size=8,
        subjects=SUBJECTS,
        views=VIEWS,
        text=dict(shape=(TEXT,), vocab_size=4400),
        position="sincos",
        width=256,
        depth=8,
        num_heads=8,
        init="xavier",
    )
    config.diffusion = dict(
        schedule=dict(name="rectified_flow"),
        prediction="x0",
        time_sampling="logit_normal",
    )
    config.optimizer = dict(
        learning_rate=5e-4, schedule="cosine", warmup_steps=100, b2=0.99, clip_norm=1.0
    )
    config.train = dict(
        steps=20_000,
        batch_size=16,
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
        guidance_scale=1.0,
        count=16,
    )
    return config
