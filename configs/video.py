"""Video U-ViTs and DiTs: clip, given frames, references, camera and amplitude in one sequence.

    python -m experiments.train --config=configs/video.py:totems
    python -m experiments.train --config=configs/video.py:totems_dit
    python -m experiments.train --config=configs/video.py:totems_dit_text
    python -m experiments.train --config=configs/video.py:clips --config.data.path=videos
    python -m experiments.compile --config=configs/video.py:uvit_1b-720p-5s --topology=v5p:4x4x4

totems, totems_dit: 8 frames of 64×64 pixels with up to two references, for CPU cores. They start
    from the networks of images of the study of subjects, `configs/subjects.py:uvit_context` (which
    the package has) and `:dit_context` (which has to be trained). One network for text → video,
    image → video, start and end → video and reference → video: the first and the last frame are
    given in 30% of the examples each. 80 minutes of a core.
totems_text, totems_dit_text: the same without references, with equal compute. Half of the captions
    say who a subject is, for a LoRA to have a handle on identity, as in the study of subjects.
clips: text → video and image → video of one's own files, 16 frames of 64×64 pixels at 8 a second.
SIZE-RESOLUTION-LENGTH: on latents of Wan's autoencoder, for pods; sizes of `SIZES`, resolutions of
    `RESOLUTIONS`, and seconds at 16 frames a second. There is no data set of latents of videos yet:
    these are for `experiments.compile` and `--plan`.
"""

from typing import Any

from uvit_jax.data.sources.worlds.factors import SIZES as SIZES_OF_TOTEMS
from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.presets import video

TEXT = 48
SIZES = {  # style, width, depth, number of heads
    "uvit_300m": ("uvit", 1024, 20, 16),
    "uvit_1b": ("uvit", 1536, 28, 24),
    "dit_1b": ("dit", 1536, 24, 24),
}
RESOLUTIONS = {"360p": (360, 640), "720p": (720, 1280), "1080p": (1080, 1920)}
NAMES = ("totems", "totems_dit", "totems_text", "totems_dit_text", "clips", "uvit_1b-720p-5s")
STEPS = {"uvit": 2500, "dit": 2630, "uvit_text": 3270, "dit_text": 3460}
"""Of equal compute, about 2.3e14 FLOPs without the optimizer's, after as many for images."""
IMAGE_MODELS = {
    "uvit": "shipped:totems",
    "dit": "workdirs/subjects_dit_context",
    "uvit_text": "shipped:totems_text",
    "dit_text": "workdirs/subjects_dit_text",
}
"""The runs of `configs/subjects.py` that these start from."""


FILES = dict(name="clips", path="videos", first_frames=1, last_frames=1)
"""The data of one's own video files."""


def run(model: dict[str, Any], data: dict[str, Any], **changes: dict[str, Any]) -> dict[str, Any]:
    """A run of text and image → video; `changes` are fields of its other parts."""
    config = dict(
        model=model,
        data=data,
        diffusion=dict(
            schedule=dict(name="rectified_flow"),
            prediction="x0",
            weighting="velocity",
            time_sampling="logit_normal",
            logit_mean=0.8,
        ),
        optimizer=dict(
            name="muon",
            learning_rate=2e-3,
            schedule="cosine",
            warmup_steps=50,
            b1=0.9,
            b2=0.99,
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        train=dict(
            ema_decay=0.999,
            drop={"text": 0.1},
            given={"first": 0.3, "last": 0.3},
            checkpoint_every=200,
            log_every=10,
            sample_every=1000,
        ),
        sample=dict(
            sampler=dict(name="dpm_solver_pp", method="multistep", order=2, steps=16),
            guidance_scale=2.0,
            count=6,
            clip=1.0,
        ),
    )
    return config | {part: config[part] | fields for part, fields in changes.items()}


def totems(style: str, references: bool = True) -> dict[str, Any]:
    """The run on totems with a backbone of this style, with references or without."""
    width, names = 192, 3 if references else 4
    which = style if references else f"{style}_text"
    model = video.preset(
        style,
        (8, 64, 64, 3),
        patch_size=8,
        first=1,
        last=1,
        camera=5,
        follow_camera=True,
        amplitude=2,
        # Two reference slots, for one view of two subjects or two views of one.
        subjects=2 if references else 0,
        views=1,
        max_subjects=names,
        max_views=3,
        text=dict(
            shape=(TEXT,),
            vocab_size=330,
            enter="token",
            encoder_depth=2,
            encoder_width=64,
            names=tuple(range(257, 257 + names)),  # the tokenizer's first words
            attributes=() if references else SIZES_OF_TOTEMS,
        ),
        position="sincos",
        width=width,
        depth=6 if style == "uvit" else 7,
        num_heads=width // 32,
        init="xavier",
        unroll=3,
        attention="blocked",
        products="flat",
    )
    data = dict(
        name="totem_videos",
        image_size=64,
        frames=8,
        first_frames=1,
        last_frames=1,
        text=True,
        text_length=TEXT,
        max_subjects=2,
        max_views=2 if references else 0,
        places=2 if references else 0,
        portraits=0.05,
        described=0.0 if references else 0.5,
        workers=1,
    )
    return run(
        model,
        data,
        # Frames repeat one another, so that the same noise hides less.
        diffusion=dict(logit_mean=1.1, shared_noise=0.5),
        optimizer=dict(learning_rate=1e-3),
        train=dict(
            steps=STEPS[which],
            batch_size=4,
            init_from=IMAGE_MODELS[which],
            init_segments=dict(video="image", time_first="time", time_last="time"),
            drop={"text": 0.05, "camera": 0.2, "amplitude": 0.3},
            drop_references=0.25 if references else 0.0,
            drop_jointly=0.05,
        ),
        sample=dict(
            guidance_scale=0.5,
            reference_guidance_scale=1.0 if references else 0.0,
            guidance_chain="references",
        ),
    )


def clips() -> dict[str, Any]:
    """The run on one's own video files."""
    model = video.preset(
        "uvit",
        (16, 64, 64, 3),
        patch_size=8,
        text=dict(shape=(TEXT,), vocab_size=4096),
        width=512,
        depth=12,
        num_heads=8,
    )
    return run(
        model,
        FILES | dict(image_size=64, frames=16, fps=8, text=True, text_length=TEXT),
        train=dict(steps=50_000, batch_size=32),
    )


def pod(name: str) -> dict[str, Any]:
    """A run of `SIZE-RESOLUTION-LENGTH` on latents, with context parallelism."""
    size, resolution, seconds = name.split("-")
    style, width, depth, heads = SIZES[size]
    height, side = RESOLUTIONS[resolution]
    frames = 1 + 4 * int(seconds.removesuffix("s"))  # of latents: 1 + 16 · 4 / 16 a second
    # Sides of the latents, in whole patches of 2×2.
    shape = (frames, -(-height // 16) * 2, -(-side // 16) * 2, 16)
    # As much text as makes the sequence a multiple of 64 tokens, which context parallelism divides
    # without padding (and without the mask that padding needs).
    others = frames * shape[1] * shape[2] // 4 + frames + (4 if style == "uvit" else 0)
    text = 256 - (others + 256) % 64
    model = video.preset(
        style,
        shape,
        patch_size=2,
        camera=5,
        amplitude=2,
        # Features of a frozen encoder, of umT5-XXL's width as in Wan.
        text=dict(kind="features", shape=(text, 4096), enter="token"),
        width=width,
        depth=depth,
        num_heads=heads,
        qk_norm="rms",
        remat="full",
        attention="ulysses_splash",
    ) | dict(dtype="bfloat16")
    for part in video.VIDEO_SEGMENTS:
        model["segments"][part]["final_conv"] = "none"
    config = run(
        model,
        FILES | dict(image_size=720, frames=frames),
        optimizer=dict(name="adamw", learning_rate=1e-4, warmup_steps=1000),
        train=dict(
            steps=50_000,
            batch_size=8,
            drop={"text": 0.1, "camera": 0.3, "amplitude": 0.3},
        ),
        sample=dict(guidance_scale=5.0, count=4),
    )
    return config | dict(mesh=dict(data=1, fsdp=-1, context=8))


def get_config(name: str = "totems") -> dict[str, Any]:
    """The config of a run, see the module; UvitError for another name."""
    if name == "clips":
        return clips()
    if name.startswith("totems") and name not in NAMES:
        raise UvitError(f"configs/video.py has no {name!r}{nearest(name, NAMES)}")
    if name.startswith("totems"):
        style = "dit" if "_dit" in name else "uvit"
        return totems(style, references=not name.endswith("_text"))
    return pod(name)
