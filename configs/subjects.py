"""One sequence against DiT + LoRA: who keeps a subject, at what cost. On totems, on two CPU cores.

python -m experiments.compare --config=configs/subjects.py
python -m experiments.compare --config=configs/subjects.py --quick
python -m experiments.train --config=configs/subjects.py:uvit_context    # one network of it
"""

from typing import Any

from ml_collections import ConfigDict

from uvit_jax.models import unified

WIDTH, TEXT = 160, 24
SHAPE = (32, 32, 3)
STEPS = {"uvit_context": 2400, "dit_context": 2540, "uvit_text": 6500, "dit_text": 6980}


def network(name: str) -> dict[str, Any]:
    """The model config of a network: a backbone, with references in its sequence or without."""
    style, _, kind = name.partition("_")
    model = unified.preset(
        style,
        SHAPE,
        patch_size=4,
        subjects=2 if kind == "context" else 0,
        views=1,
        max_subjects=3 if kind == "context" else 4,
        max_views=3,
        text_length=TEXT,
        vocab_size=320,
        text_enter="token",
        positions="sincos2d",
        width=WIDTH,
        depth={"uvit": 6, "dit": 7}[style],
        num_heads=WIDTH // 32,
        init="xavier",
        unroll=7,
    )
    return model


def run(name: str) -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        name="totems",
        image_size=32,
        text=True,
        text_length=TEXT,
        max_subjects=2,
        max_views=2 if name.endswith("context") else 0,
        places=2 if name.endswith("context") else 0,
        portraits=0.1,
        workers=1,
    )
    config.model = network(name)
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
        steps=STEPS[name],
        batch_size=16,
        ema_decay=0.995,
        drop={"text": 0.1},
        drop_references=0.1 if name.endswith("context") else 0.0,
        checkpoint_every=200,
        log_every=10,
        sample_every=400,
    )
    config.sample = dict(
        sampler=dict(name="dpm_solver_pp", method="multistep", order=2, steps=20),
        guidance_scale=0.5,
        count=16,
        clip=1.0,
    )
    return config


def get_config(name: str = "uvit_context") -> Any:
    return run(name)
