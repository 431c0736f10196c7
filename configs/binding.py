"""What makes a network read which reference is which: each cure alone, and the chosen recipe.

    python -m experiments.ablate --config=configs/binding.py

The network is the study's U-ViT, smaller and at 32×32. The metrics are those of the binding probe
(`uvit_jax/training/binding_probe.py`) on held-out scenes of two subjects: the share of scenes in
which the loss is lower with each subject's reference in its own slot (.5 at chance), by noise level
t, and the loss with references exchanged over the right one.

    encoder           trained on captions before the first step, on the words around each word and
                      on what the caption states of each name; frozen; its output at a name is added
                      to that subject's references. The study's recipe.
    trained_along     the same, not frozen
    words_alone       the same encoder, whose output is not added to references
    no_facts          an encoder trained on the words around each word alone
    no_pretraining    an encoder of random weights, trained along, its output added to references
    none              neither pretraining nor its output added to references
    distractors       none, and half of the scenes have a reference of nobody in the image
    high_noise        none, and most noise levels above t = .8

Cost: 24 runs of 600 steps, five minutes of a core each. docs/references.md has the results.
"""

from typing import Any

from configs import subjects
from uvit_jax.models.presets import unified

TEXT = "model.segments.text"
FREE = {"text_pretraining.steps": 0}
UNNAMED = {f"model.segments.ref_{slot}_1.names_from": "" for slot in (1, 2)}
CURES = {
    "encoder": {},
    "trained_along": {"text_pretraining.freeze": False},
    "words_alone": UNNAMED,
    "no_facts": {"text_pretraining.facts": False},
    "no_pretraining": FREE,
    "none": FREE | UNNAMED,
    "distractors": FREE | UNNAMED | {"data.distractors": 0.5},
    "high_noise": FREE | UNNAMED | {"diffusion.logit_mean": 2.5},
}


def get_config() -> dict[str, Any]:
    """The config of the ablation."""
    config = subjects.run("uvit_context")
    config["data"] |= dict(image_size=32, portraits=0.0, distractors=0.0, workers=0)
    config["model"] = unified.preset(
        "uvit",
        (32, 32, 3),
        patch_size=8,
        subjects=2,
        max_subjects=3,
        max_views=3,
        text=dict(
            shape=(subjects.TEXT,),
            vocab_size=320,
            enter="token",
            encoder_depth=2,
            encoder_width=64,
            names=(257, 258, 259),
        ),
        position="sincos",
        width=128,
        depth=4,
        num_heads=4,
        init="xavier",
        unroll=2,
        attention="blocked",
        products="flat",
    )
    config["train"] |= dict(
        steps=600,
        batch_size=32,
        draws=1,
        ema_decay=0.98,
        probe_every=0,  # the ablation measures it
        checkpoint_every=100,
        keep_checkpoints=6,
        sample_every=0,
    )
    return config | {
        "groups": {"cure": CURES},
        "baseline": {"cure": "encoder"},
        "seeds": 3,
        "metrics": dict(
            split="validation",
            validation=512,
            samples=0,
            probe=True,
            curve="binding/preferred_0.75",
        ),
    }
