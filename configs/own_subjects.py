"""A unified model of your own subjects: images whose captions name them, with reference images.

    python -m experiments.inspect_data --config=configs/own_subjects.py:photos
    python -m experiments.train --config=configs/own_subjects.py:photos,init=shipped:totems
    python -m experiments.sample --workdir=workdirs/own_subjects --references=photos/rex \\
        --prompt="@1 on a beach"

`photos` is a folder with a sub-folder for each subject, or a manifest (docs/data.md). Settings may
follow it: `configs/own_subjects.py:photos,subjects=1,width=192,depth=6`. In a folder, every image
has one subject; in a manifest, as many as its caption names.

`init` is a stored run with references, of whose model and parameters the run starts: a workdir, a
file, or `shipped:totems`, which has learned from rendered subjects to read references and captions.
Its size, width, depth and text length are the stored run's.

Cost: by default 64×64 pixels and up to three subjects in 9M parameters. With `init=shipped:totems`,
or the smaller settings above with attention="blocked" and products="flat", a step takes about 0.7 s
of one CPU core.
"""

from typing import Any

from ml_collections import ConfigDict

from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.presets import unified

SETTINGS = dict(subjects=3, views=2, size=64, text=32, width=256, depth=8)
"""Of an image, the most subjects, and references of each; its pixels; the tokens of a caption."""

DIFFUSION = dict(
    schedule=dict(name="rectified_flow"),
    prediction="x0",
    weighting="velocity",
    time_sampling="logit_normal",
    logit_mean=0.8,
)
WORDS = 4143
"""Words that the model has room for, beside those of a stored run."""


def get_config(text: str = "") -> ConfigDict:
    """The config of a run on a folder or manifest.

    Args:
      text: its path, and settings: `photos,subjects=1`.

    Raises:
      UvitError: for an unknown setting, one that is not a positive integer, or one without a path.
    """
    path, *given = text.split(",")
    if "=" in path and path.partition("=")[0] in (*SETTINGS, "init"):
        raise UvitError(f"{path!r} is a setting; the path comes first, such as photos,{path}")
    given = dict(_setting(item) for item in given)
    stored = given.pop("init", "")
    if stored:
        model, diffusion, s = _stored_model(stored, given)
    else:
        s = SETTINGS | given
        model, diffusion = _model(s), DIFFUSION
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
    config.model = model
    config.diffusion = diffusion
    config.optimizer = dict(
        name="muon",
        learning_rate=1e-3 if stored else 2e-3,
        schedule="cosine",
        warmup_steps=100,
        b1=0.9,
        b2=0.99,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    config.train = dict(
        init_from=stored,
        steps=2000 if stored else 20_000,
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


def _model(s: dict[str, int]) -> dict[str, Any]:
    return unified.preset(
        "uvit",
        (s["size"], s["size"], 3),
        patch_size=max(s["size"] // 8, 1),
        subjects=s["subjects"],
        views=s["views"],
        text=dict(shape=(s["text"],), vocab_size=257 + WORDS),
        position="sincos",
        width=s["width"],
        depth=s["depth"],
        num_heads=max(s["width"] // 32, 1),
        init="xavier",
    )


def _stored_model(
    path: str, given: dict[str, int]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """The model of a stored run with more words, its objective, and the settings that it has."""
    from uvit_jax.config import to_dict
    from uvit_jax.training.stored_run import open_run

    run = to_dict(open_run(path).read_run())
    model = run["model"]
    if not {"image", "text", "ref_1_1"} <= model["segments"].keys():
        raise UvitError(
            f"init={path} has no references of images and text; give a run that has, such as "
            "shipped:totems"
        )
    if fixed := sorted(given.keys() - {"subjects", "views"}):
        raise UvitError(f"{fixed[0]}={given[fixed[0]]}: with init={path} it is the stored run's")
    s = dict(subjects=1, views=2) | given
    for key in ("subjects", "views"):
        if s[key] > (most := model[f"max_{key}"]):
            raise UvitError(f"{key}={s[key]}: the model of init={path} takes at most {most}")
    model = unified.with_references(model, s["subjects"], s["views"])
    text = model["segments"]["text"]
    text["vocab_size"] += WORDS
    return (
        model,
        run["diffusion"],
        s | dict(size=model["segments"]["image"]["shape"][0], text=text["shape"][0]),
    )


def _setting(item: str) -> tuple[str, Any]:
    key, _, value = item.partition("=")
    if key == "init":
        if not value:
            raise UvitError("init= is empty; give a workdir, a file, or shipped:totems")
        return key, value
    if key not in SETTINGS:
        raise UvitError(f"{key!r} is not a setting of this config{nearest(key, SETTINGS)}")
    if not (value.isascii() and value.isdigit() and int(value)):
        raise UvitError(f"{key}={value} must be a positive integer, such as {key}={SETTINGS[key]}")
    return key, int(value)
