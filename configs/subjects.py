"""Subject consistency and its cost: one sequence against DiT + LoRA. Totems, two CPU cores.

    python -m experiments.compare --config=configs/subjects.py
    python -m experiments.compare --config=configs/subjects.py --quick
    python -m experiments.compare --config=configs/subjects.py --networks=DIR  # finished networks
    python -m experiments.compare --config=configs/subjects.py:emoji         # of emoji scenes
    python -m experiments.compare --config=configs/subjects.py:size          # three widths
    python -m experiments.compare --config=configs/subjects.py:three         # three subjects
    python -m experiments.train --config=configs/subjects.py:uvit_text_s1    # one network of it

Four networks, {U-ViT, DiT} × {references in the sequence, text alone}, each with three seeds, have
equal width and equal training compute: those without references have shorter sequences, and so more
scenes a step. The first two get references as input; for the others a LoRA and the vector of a word
of its own are trained for each subject, on its references and on scenes with these pasted in, with
the recipe and guidance chosen on validation subjects. Training scenes have one or two subjects with
two references in total; three subjects, or three views, are never trained. `three` trains the U-ViT
that the package has for 500 further steps, on scenes of up to three subjects: 16 minutes of a core.

On a pod: --config.networks.uvit_context.model.backbone.width=768 and so on, or other sizes below.

Cost: two hours of a core for each of the twelve networks, and about fifteen core-hours for
fine-tuning, sampling and evaluation. --quick takes less than ten minutes; its samples are not
recognisable.
"""

from typing import Any

from ml_collections import ConfigDict

from uvit_jax.data.sources.worlds import sprites
from uvit_jax.data.sources.worlds.factors import SIZES
from uvit_jax.models.presets import unified

WIDTH, TEXT, SHAPE, PATCH = 192, 24, (64, 64, 3), 8
DEPTH = {"uvit": 6, "dit": 7}  # a U-ViT has a block in the middle as well
SEEDS = (0, 1, 2)
STEPS = {"uvit_context": 5000, "dit_context": 5320, "uvit_text": 5280, "dit_text": 5660}
SCENES = {"uvit_context": 8, "dit_context": 8, "uvit_text": 12, "dit_text": 12}
"""Scenes a step, each with `DRAWS` noise levels. Equal compute for all networks, about 3.7e14 FLOPs
without the optimizer's: two hours of a core."""

DRAWS = 3
QUICK_STEPS = {"uvit_context": 30, "dit_context": 31, "uvit_text": 34, "dit_text": 35}
LORA_SETTINGS = ("identities_2v", "identities_1v", "two_subjects_1v")
WIDTHS = (96, 144, 192)
BINDING = dict(
    title="Two subjects, one reference each: swapped in less than 10 % of the places",
    method="unified",
    metric="swapped",
    setting="two_subjects_1v",
    test="below",
    margin=0.1,
)
# Ten times the adapters' rate: a word's vector grows from 0 to the size of others.
FINETUNE = dict(batch_size=2, lora=dict(init="kaiming"), word_rate=10.0, drop_text=0.1)
DESCRIBED = 0.5
"""The share of the scenes of networks without references whose captions describe their subjects."""


def model(
    name: str, width: int = WIDTH, attributes: tuple[int, ...] = SIZES, references: int = 2
) -> dict[str, Any]:
    """A network's model: a backbone, with or without references in its sequence.

    Args:
      attributes: of described names, for a network without references.
      references: slots of a network with references, each for a view of any subject.
    """
    style, kind, *_ = name.split("_")
    context = kind == "context"
    subjects = 3 if context else 4
    return unified.preset(
        style,
        SHAPE,
        patch_size=PATCH,
        subjects=references if context else 0,
        views=1,
        max_subjects=subjects,
        max_views=3,
        text=dict(
            shape=(TEXT,),
            vocab_size=320,
            enter="token",
            encoder_depth=2,
            encoder_width=64,
            names=tuple(range(257, 257 + subjects)),  # the tokenizer's first words
            attributes=() if context else attributes,
        ),
        position="sincos",
        width=width,
        depth=DEPTH[style],
        num_heads=width // 32,
        init="xavier",
        unroll=3,
        attention="blocked",
        products="flat",
    )


def run(name: str) -> dict[str, Any]:
    """The training run of a network, such as `uvit_context` or, of another seed, `uvit_context_s1`.

    The encoder of captions reads before training starts and is frozen; references take its output
    at their subject's name. In a trial at 32×32, this brought the share of scenes in which the
    right arrangement has the lower loss from chance to .98 in 400 steps of 32 two-subject scenes.
    The captions of a network without references say in half of its scenes who a subject is
    (`data.described`), for a LoRA to have a handle on identity. The others' do not: they would
    learn to read it there, and a new subject has no description, only references.
    """
    style, kind, *seed = name.split("_")
    which, context = f"{style}_{kind}", kind == "context"
    config = ConfigDict()
    config.seed = int(seed[0].removeprefix("s")) if seed else 0
    config.data = dict(
        name="totems",
        image_size=SHAPE[0],
        text=True,
        text_length=TEXT,
        max_subjects=2,
        max_views=2 if context else 0,
        places=2 if context else 0,
        portraits=0.1,
        distractors=0.3 if context else 0.0,
        described=0.0 if context else DESCRIBED,
        workers=1,
    )
    config.model = model(which)
    config.diffusion = dict(
        schedule=dict(name="rectified_flow"),
        prediction="x0",
        weighting="velocity",
        time_sampling="logit_normal",
        logit_mean=0.8,
    )
    # The encoder also reads captions of three subjects, which are tested and never trained.
    several = dict(max_subjects=3) | (dict(places=3) if context else {})
    config.text_pretraining = dict(steps=400, data=several)
    config.optimizer = dict(
        name="muon",  # after 300 steps a loss of 0.074, where AdamW had 0.100
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=50,
        b1=0.9,
        b2=0.99,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    config.train = dict(
        steps=STEPS[which],
        batch_size=SCENES[which],
        draws=DRAWS,
        ema_decay=0.999,
        drop={"text": 0.05},
        drop_references=0.1 if context else 0.0,
        drop_jointly=0.05,
        probe_every=500 if context else 0,
        checkpoint_every=200,
        log_every=10,
        sample_every=1000,
        keep_checkpoints=2,
    )
    config.sample = dict(
        sampler=dict(name="dpm_solver_pp", method="multistep", order=2, steps=20),
        guidance_scale=0.5,
        reference_guidance_scale=1.0 if context else 0.0,  # of .5, 1, 2: on validation subjects
        guidance_chain="references",
        count=16,
        clip=1.0,
    )
    return config.to_dict()


def get_config(name: str = "") -> dict[str, Any]:
    """The comparison on totems or `emoji` scenes, either as a smoke test (`quick`, `emoji_quick`);
    the comparison of three widths (`size`); the network of `three` subjects; or the run of one
    network."""
    if name.rpartition("_s")[0] in STEPS or name in STEPS:
        return run(name)
    if name.startswith("emoji"):
        return _of_emoji(get_config(name.removeprefix("emoji").strip("_")))
    if name == "size":
        return _of_widths(get_config())
    if name == "three":
        return _of_three(get_config())
    lora = dict(settings=LORA_SETTINGS, compose=("fused",))
    config = dict(
        world="totems",
        networks={name: run(name) for name in STEPS},
        seeds=SEEDS,
        arms=dict(
            unified=dict(network="uvit_context", title="Unified sequence (U-ViT)"),
            dit_context=dict(network="dit_context", title="DiT, references in context"),
            dit_lora=dict(network="dit_text", title="DiT + LoRA a subject", method="lora", **lora),
            uvit_lora=dict(
                network="uvit_text", title="U-ViT + LoRA a subject", method="lora", **lora
            ),
            uvit_words=dict(
                network="uvit_text",
                title="U-ViT + a word vector a subject",
                method="words",
                compose=("sum",),
                settings=LORA_SETTINGS,
                seeds=SEEDS[:1],
                grid=dict(ranks=(8,), rates=(1e-3, 4e-3), priors=(0.0,), steps=(100, 300)),
            ),
        ),
        baseline="unified",
        settings={
            "identities_2v": dict(subjects=64, finetuned=32),
            "identities_1v": dict(subjects=64, finetuned=32),
            "identities_3v": dict(subjects=64),
            "two_subjects_1v": dict(subjects=32, finetuned=16),
            "three_subjects_1v": dict(subjects=32),
            "two_subjects": dict(subjects=32),
            **{f"two_subjects_{side}": dict(subjects=32, prompts=1) for side in ("left", "right")},
            "three_subjects_left": dict(subjects=32, prompts=1),
            **{f"distractors_{n}": dict(subjects=32, prompts=1) for n in (1, 2, 3, 5)},
            "compositions": dict(subjects=32, prompts=1),
            "pairs": dict(subjects=32, prompts=1),
        },
        main="identities_2v",
        primary=dict(
            context_lora=dict(
                title="References in context against the best valid LoRA: identity",
                method="unified",
                against=("dit_lora", "uvit_lora", "uvit_words"),
                metric="identity_a",
            ),
            backbone=dict(
                title="U-ViT against DiT, both in context: identity within 0.03",
                method="unified",
                against=("dit_context",),
                metric="identity_a",
                test="equivalence",
                margin=0.03,
            ),
            binding=dict(BINDING),
        ),
        finetune=FINETUNE,
        pasted=16,
        grid=dict(ranks=(8,), rates=(1e-3, 4e-3), priors=(0.0, 0.3), steps=(100, 300)),
        validation=16,
        guidance=(0.5, 1.0, 2.0),
        at_once=16,
        shipped={"uvit_context_s0": "totems", "uvit_text_s0": "totems_text"},
    )
    if name == "quick":
        for which, given in config["networks"].items():
            given["train"] |= dict(steps=QUICK_STEPS[which], sample_every=0, probe_every=0)
            given["train"]["batch_size"] //= 2
            given["text_pretraining"]["steps"] = 50
            depth = 2 if which.startswith("uvit") else 3
            given["model"]["backbone"] |= dict(width=64, num_heads=2, depth=depth)
            given["sample"]["sampler"]["steps"] = 8
        grid = dict(ranks=(4,), rates=(4e-3,), priors=(0.0, 0.3), steps=(5, 10))
        config["arms"]["uvit_words"]["grid"] = grid | dict(priors=(0.0,))
        del config["arms"]["dit_lora"]
        config["primary"]["context_lora"]["against"] = ("uvit_lora", "uvit_words")
        settings = ("identities_2v", "identities_1v", "two_subjects_1v", "distractors_3")
        config |= dict(
            seeds=(0,),
            settings={name: dict(subjects=3, finetuned=2, prompts=1) for name in settings},
            grid=grid,
            validation=2,
            guidance=(0.5, 1.0),
            pasted=4,
            prior=16,
            tolerance=0.1,
            at_once=2,
            encoders=(),
            shipped={},
            notes=("A smoke test: after a minute of training, samples are not recognisable.",),
        )
    return config


def _of_emoji(config: dict[str, Any]) -> dict[str, Any]:
    """The comparison on emoji scenes, with one vendor held out, evaluated by EfficientNet-Lite0."""
    for given in config["networks"].values():
        given["data"]["name"] = "emoji_scenes"
        text = given["model"]["segments"]["text"]
        if text["attributes"]:
            text["attributes"] = sprites.attributes()
    settings = config["settings"]
    for totems_alone in ("compositions", "pairs"):
        settings.pop(totems_alone, None)
    metric, primary = "identity_efficientnet_lite0", config["primary"]
    for one in primary.values():
        one["metric"] = metric
    del primary["binding"]  # its judges do not tell who is who
    settings["vendor"] = settings["identities_1v"]
    return config | dict(world="emoji_scenes", shipped={}, encoders=("efficientnet_lite0",))


def _of_widths(config: dict[str, Any]) -> dict[str, Any]:
    """The U-ViT with references in three widths, of one recipe and one seed."""
    networks, arms = {}, {}
    for width in WIDTHS:
        networks[f"width_{width}"] = run("uvit_context") | dict(model=model("uvit_context", width))
        arms[f"width_{width}"] = dict(network=f"width_{width}", title=f"U-ViT, width {width}")
    names = ("identities_2v", "identities_1v", "two_subjects_1v", "three_subjects_1v")
    return config | dict(
        networks=networks,
        arms=arms,
        seeds=(0,),
        baseline=f"width_{WIDTHS[-1]}",
        settings={name: config["settings"][name] for name in names},
        primary={},
        shipped={},
        tolerance=100.0,
        title="One sequence, three widths",
    )


def _of_three(config: dict[str, Any]) -> dict[str, Any]:
    """The U-ViT with references, trained further on scenes of up to three subjects."""
    network = run("uvit_context") | dict(model=model("uvit_context", references=3))
    network["data"] |= dict(max_subjects=3, places=3)
    network["text_pretraining"] = dict(steps=0)  # the encoder is that of the network before
    network["optimizer"] |= dict(learning_rate=7e-4, warmup_steps=30)
    further = dict(steps=500, init_from="shipped:totems", ema_decay=0.99)
    network["train"] |= further | dict(probe_every=0, checkpoint_every=100, sample_every=0)
    settings = ("three_subjects_1v", "two_subjects_1v", "identities_2v")
    return config | dict(
        networks=dict(uvit_three=network),
        arms=dict(
            three=dict(network="uvit_three", title="U-ViT, trained on three subjects as well")
        ),
        seeds=(0,),
        baseline="three",
        settings={name: dict(subjects=32) for name in settings},
        main="three_subjects_1v",
        primary=dict(
            binding=BINDING
            | dict(
                title="Three subjects, one reference each: swapped in less than 10 % of the places",
                method="three",
                setting="three_subjects_1v",
            )
        ),
        shipped={},
        title="One sequence, three subjects",
    )
