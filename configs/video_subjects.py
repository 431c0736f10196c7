"""Subject consistency in video: references in one sequence against a composed first frame.

    python -m experiments.compare --config=configs/video_subjects.py
    python -m experiments.compare --config=configs/video_subjects.py --quick
    python -m experiments.compare --config=configs/video_subjects.py --networks=DIR

One network, `configs/video.py:totems`, has all tasks: references → video, text → video (the anchor
"without references"), and image → video, of the true first frame, of the true first and last ones,
or of a first frame composed of cut-out references, which is what one does without references.
Camera and amplitude are told exactly; `amplitude` is told nothing but the amplitude.

Cost: two hours of a core for the network, and half an hour for samples and scores.
"""

from typing import Any

from configs.video import get_config as video_config


def get_config(name: str = "") -> dict[str, Any]:
    """The comparison, or its smoke test (`quick`)."""
    context = dict(network="video_uvit")
    config = dict(
        world="totem_videos",
        networks=dict(video_uvit=video_config("totems") | dict(seed=0)),
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
        ),
        baseline="unified",
        settings={
            "identities_2v": dict(subjects=48),
            "identities_1v": dict(subjects=48, prompts=1),
            "two_subjects_1v": dict(subjects=48, prompts=1),
            "compositions": dict(subjects=32, prompts=1),
        },
        main="identities_2v",
        primary=dict(
            composed=dict(
                title="References against a composed first frame: identity of what moves",
                method="unified",
                against=("composed",),
                metric="moving_identity",
            ),
            binding=dict(
                title="Two subjects, one reference each: swapped in less than 10 % of the places",
                method="unified",
                metric="swapped",
                setting="two_subjects_1v",
                test="below",
                margin=0.1,
            ),
        ),
        title="Video: references in one sequence against a composed first frame",
        samples=1,
        encoders=(),
    )
    if name == "quick":
        network = config["networks"]["video_uvit"]
        network["train"] |= dict(steps=20, batch_size=4, sample_every=0)
        network["text_pretraining"]["steps"] = 30
        network["model"]["backbone"] |= dict(width=64, num_heads=2, depth=2)
        network["sample"]["sampler"]["steps"] = 4
        del config["settings"]["compositions"]
        for setting in config["settings"].values():
            setting |= dict(subjects=3, prompts=1)
        note = "A smoke test: after a minute of training, samples are not recognisable."
        config["notes"] = (note,)
    return config
