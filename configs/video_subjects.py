"""Subject consistency in video: one sequence against LoRAs and a composed first frame.

    python -m experiments.compare --config=configs/video_subjects.py
    python -m experiments.compare --config=configs/video_subjects.py --quick
    python -m experiments.compare --config=configs/video_subjects.py --networks=DIR

One network, `configs/video.py:totems`, has all tasks: references → video, text → video (the anchor
"without references"), and image → video, of the true first frame, of the true first and last ones,
or of a first frame composed of cut-out references, which is what one does without references.
The exact camera and the amplitude are inputs; for `amplitude`, it alone beside the caption. In the
setting `amplitudes` each scene moves with all amplitudes in turn; in `turning` a subject with the
front of one identity and the back of another turns from one to the other.

The other, `configs/video.py:totems_text`, is the same network of equal compute without references,
for which a LoRA and the vector of a word of its own are trained for each subject: on its
references, held still, and on scenes with these pasted in under a moving camera, with the recipe
chosen on validation subjects. `configs/video_subjects.py:dit` has the DiT in its place, which
starts from a network of images that has to be trained first (configs/video.py).

Cost: 80 minutes of a core for each network, half an hour for the samples and scores of the first,
and a few hours for the LoRAs.
"""

from typing import Any

from configs.subjects import BINDING, FINETUNE
from configs.video import get_config as video_config
from uvit_jax.errors import UvitError, nearest


def get_config(name: str = "") -> dict[str, Any]:
    """The comparison, with a U-ViT or a DiT (`dit`) for LoRAs, or its smoke test (`quick`)."""
    if name not in (names := ("", "dit", "quick")):
        raise UvitError(f"configs/video_subjects.py has no {name!r}{nearest(name, names[1:])}")
    context, one = dict(network="video_uvit"), ("identities_2v",)
    base = "totems_dit_text" if name == "dit" else "totems_text"
    config = dict(
        world="totem_videos",
        networks=dict(
            video_uvit=video_config("totems") | dict(seed=0),
            video_text=video_config(base) | dict(seed=0),
        ),
        seeds=(0,),
        arms=dict(
            unified=dict(title="References → video", **context),
            composed=dict(
                title="A composed first frame → video",
                references=False,
                given="composed",
                settings=("identities_2v", "two_subjects_1v", "turning"),
                **context,
            ),
            first=dict(
                title="The true first frame → video",
                references=False,
                given="first",
                settings=one,
                **context,
            ),
            first_last=dict(
                title="The true first and last frames → video",
                references=False,
                given="first_last",
                settings=one,
                **context,
            ),
            amplitude=dict(
                title="References → video, with the amplitude but not the camera",
                controls=("amplitude",),
                settings=("amplitudes",),
                **context,
            ),
            lora=dict(
                network="video_text",
                title=f"Video {'DiT' if name == 'dit' else 'U-ViT'} + LoRA a subject",
                method="lora",
                compose=("fused",),
                settings=("identities_2v", "two_subjects_1v"),
            ),
        ),
        baseline="unified",
        settings={
            "identities_2v": dict(subjects=24, prompts=1, finetuned=16),
            "two_subjects_1v": dict(subjects=16, prompts=1, finetuned=12),
            "amplitudes": dict(subjects=12, prompts=1),
            "turning": dict(subjects=16, prompts=1),
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
        batch_size=4,  # clips
        encoders=(),
    )
    if name == "quick":
        for network in config["networks"].values():
            network["train"] |= dict(steps=20, sample_every=0, init_from="", init_segments={})
            network["model"]["backbone"] |= dict(width=64, num_heads=2, depth=2)
            network["sample"]["sampler"]["steps"] = 4
        del config["settings"]["amplitudes"], config["arms"]["amplitude"]
        for setting in config["settings"].values():
            setting |= dict(subjects=2, prompts=1, finetuned=min(2, setting.get("finetuned", 0)))
        grid = dict(ranks=(4,), rates=(4e-3,), priors=(0.0, 0.3), steps=(5, 10))
        config |= dict(grid=grid, validation=2, at_once=2, pasted=4, prior=8, tolerance=0.5)
        note = "A smoke test: after a minute of training, samples are not recognisable."
        config["notes"] = (note,)
    return config
