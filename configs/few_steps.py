"""Emoji in few network evaluations: guidance distilled into the network, and mean velocities.

    python -m experiments.train --config=configs/quickstart.py
    python -m experiments.train --config=configs/few_steps.py:distilled
    python -m experiments.train --config=configs/few_steps.py:mean_flow_distilled
    python -m experiments.train --config=configs/few_steps.py:mean_flow
    python -m experiments.sample --workdir=workdirs/few_steps_mean_flow_distilled --steps=1 \\
        --prompt="skull, twemoji"

`distilled` starts from the quickstart's network, in workdirs/quickstart, and learns its guided
prediction for every scale in [0, 2]: --guidance is then an input, and a step of sampling is one
evaluation instead of two. The other two learn the mean velocity between two times (Geng et al.
2025), with guidance of scale 1 in its target, and sample in 1 to 4 steps: `mean_flow_distilled`
that of the quickstart's network, from which it starts; `mean_flow` that of the data, from nothing.

Data and model are the quickstart's, but for a token with the scale or the interval. The sinusoid of
the time has a period fifty times as long where there are mean velocities, whose target has the
network's derivative by the time.

Cost: a step of `distilled` takes two more forward passes than the quickstart's, one of `mean_flow`
one more and a forward-mode derivative, one of `mean_flow_distilled` two more and the derivative.
"""

from ml_collections import ConfigDict

from uvit_jax.models.presets import uvit

NAMES = ("distilled", "mean_flow_distilled", "mean_flow")


def get_config(name: str = "distilled") -> ConfigDict:
    """The config of a run, one of `NAMES`."""
    mean, taught = name.startswith("mean_flow"), name != "mean_flow"
    setting = "interval" if mean else "guidance"
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
    config.model["segments"][setting] = dict(kind="setting", sets=setting)
    config.model["sequence"] = (setting, *config.model["sequence"])
    config.diffusion = dict(
        schedule=dict(name="rectified_flow"),
        prediction="x0",
        time_sampling="logit_normal",
        logit_mean=0.5,
        objective="distill",
        guidance=2.0,
    )
    if mean:
        config.diffusion = dict(
            schedule=dict(name="rectified_flow", time_scale=20.0),
            prediction="x0" if taught else "velocity",
            time_sampling="logit_normal",
            logit_mean=0.5 if taught else 0.0,
            objective="mean_flow",
            unequal=0.75 if taught else 0.25,
            guidance=1.0,
            adaptive=1.0,
        )
    config.optimizer = dict(
        learning_rate=5e-4 if taught else 2e-3,
        schedule="cosine",
        warmup_steps=50,
        b1=0.9,
        b2=0.99,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    config.train = dict(
        steps=600 if taught else 4000,
        batch_size=16,
        ema_decay=0.99,
        drop={"text": 0.1},
        checkpoint_every=250,
        log_every=10,
        sample_every=250,
        teacher="workdirs/quickstart" if taught else "",
    )
    names = (
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
    sampler = dict(name="mean_flow", steps=2)
    if not mean:
        sampler = dict(name="dpm_solver_pp", method="multistep", order=2, steps=8)
    config.sample = dict(
        sampler=sampler,
        guidance_scale=0.0 if mean else 1.0,
        clip=0.0 if mean else 1.0,
        count=16,
        prompts=tuple(f"{name}, twemoji" for name in names),
    )
    return config
