"""The comparison on photographs: DreamBench's folder, your trained networks, DINO and CLIP.

    python -m experiments.compare --config=configs/dreambench.py --config.path=dreambench \
        --config.networks.context.load=workdirs/unified --config.networks.text.load=workdirs/text \
        --config.weights.dino_vits16=dino.pth --config.weights.clip_vit_b32=clip.safetensors

The folder has one sub-folder of photographs per subject, and `prompts_and_classes.txt` or
`prompts.txt`. The networks are workdirs of `experiments.train`, one with references in its sequence
and one with text alone, trained on photographs whose captions call subjects `@1`.

Cost: a LoRA for each of the 30 subjects with 1, 2 and 3 views; hours on one accelerator.
"""

from typing import Any


def get_config() -> dict[str, Any]:
    """The comparison."""
    subjects = dict(subjects=30, prompts=25)
    return dict(
        world="dreambench",
        path="dreambench",
        networks=dict(
            context=dict(load="workdirs/unified"),
            text=dict(load="workdirs/text"),
        ),
        arms=dict(
            unified=dict(network="context", title="Unified sequence"),
            lora=dict(network="text", title="LoRA a subject", method="lora"),
        ),
        baseline="unified",
        settings=dict(identities_1v=subjects, identities_2v=subjects, identities_3v=subjects),
        main="identities_3v",
        samples=4,
        encoders=("dino_vits16", "clip_vit_b32"),
        weights=dict(dino_vits16="dino.pth", clip_vit_b32="clip.safetensors"),
        grid=dict(ranks=(4, 16), rates=(1e-4, 5e-4), steps=(100, 200, 400, 800)),
        validation=4,
        prior=200,
    )
