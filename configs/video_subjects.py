"""Subject consistency in video: one sequence against a DiT with LoRAs and a composed first frame.

    python -m experiments.compare --config=configs/video_subjects.py
    python -m experiments.compare --config=configs/video_subjects.py --quick
    python -m experiments.compare --config=configs/video_subjects.py --networks=DIR

One network, `configs/video.py:totems`, has all tasks: references → video, text → video (the anchor
"without references"), and image → video, of the true first frame, of the true first and last ones,
or of a first frame composed of cut-out references, which is what one does without references.
The exact camera and the amplitude are inputs; for `amplitude`, it alone beside the caption.

The other, `configs/video.py:totems_dit_text`, is a video DiT of equal compute without references,
for which a LoRA and the vector of a word of its own are trained for each subject: on its
references, held still, and on scenes with these pasted in under a moving camera, with the recipe
chosen on validation subjects.

Cost: 95 minutes of a core for each network, half an hour for the samples and scores of the first,
and a few hours for the LoRAs.
"""

from typing import Any

from configs.subjects import BINDING, FINETUNE
from configs.video import get_config as video_config


def get_config(name: str = "") -> dict[str, Any]:
    """The comparison, or its smoke test (`quick`)."""
    context = dict(network="video_uvit")
    config = dict(
        world="totem_videos",
        networks=dict(
            video_uvit=video_config("totems") | dict(seed=0),
            video_dit_text=video_config("totems_dit_text") | dict(seed=0),
        ),
        seeds=(0,),
        arms=dict(
            unified=dict(title="References → video", **context),
            composed=dict(
                title="A composed first frame → video",
                references=False,
                given="composed",
                **context,
            ),
            first=dict(
                title="The true first frame → video", references=False, given="first", **context
            ),
            first_last=dict(
                title="The true first and last frames → video",
                references=False,
                given="first_last",
                **context,
            ),
            amplitude=dict(
                title="References → video, only the amplitude told",
                controls=("amplitude",),
                settings=("identities_2v",),
                **context,
            ),
            lora=dict(
                network="video_dit_text",
                title="Video DiT + LoRA a subject",
                method="lora",
                compose=("fused",),
                settings=("identities_2v", "two_subjects_1v"),
            ),
        ),
        baseline="unified",
        settings={
            "identities_2v": dict(subjects=48, finetuned=16),
            "identities_1v": dict(subjects=48, prompts=1),
            "two_subjects_1v": dict(subjects=48, prompts=1, finetuned=16),
            "compositions": dict(subjects=32, prompts=1),
        },
        main="identities_2v",
        primary=dict(
            baselines=dict(
                title="References against the best of a valid LoRA and a composed first frame",
                method="unified",
                against=("lora", "composed"),
                metric="moving_identity",
            ),
            binding=dict(BINDING),
        ),
        finetune=FINETUNE,
        pasted=16,
        grid=dict(ranks=(8,), rates=(1e-3, 4e-3), priors=(0.0, 0.3), steps=(100, 300)),
        validation=8,
        at_once=8,
        title="Video: references in one sequence against LoRA and a composed first frame",
        samples=1,
        encoders=(),
    )
    if name == "quick":
        for network in config["networks"].values():
            network["train"] |= dict(steps=20, batch_size=4, sample_every=0)
            network["text_pretraining"]["steps"] = 30
            depth = 2 if network is config["networks"]["video_uvit"] else 3
            network["model"]["backbone"] |= dict(width=64, num_heads=2, depth=depth)
            network["sample"]["sampler"]["steps"] = 4
        del config["settings"]["compositions"]
        for setting in config["settings"].values():
            setting |= dict(subjects=2, prompts=1, finetuned=min(2, setting.get("finetuned", 0)))
        grid = dict(ranks=(4,), rates=(4e-3,), priors=(0.0, 0.3), steps=(5, 10))
        config |= dict(grid=grid, validation=2, at_once=2, pasted=4, prior=8, tolerance=0.5)
        note = "A smoke test: after a minute of training, samples are not recognisable."
        config["notes"] = (note,)
    return config
