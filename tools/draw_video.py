"""Draws docs/images/video.webp: clips of unseen subjects in motion, of a comparison's samples.

    python -m tools.draw_video --workdir=workdirs/video_subjects

Each row is an evaluation case: the references, clips of some methods, and the true clip. With
--sheet, a PNG has the frames of each clip in a row.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from experiments.subjects.sample_store import SampleStore
from experiments.subjects.study_config import SettingConfig
from experiments.subjects.video_world import VideoWorld
from uvit_jax import io, video_io

OUT = Path(__file__).parents[1] / "docs/images/video.webp"
ROWS = (  # setting, subjects, prompts, and number of the case
    ("identities_2v", 24, 1, 0),
    ("identities_2v", 24, 1, 1),
    ("identities_2v", 24, 1, 2),
    ("turning", 16, 1, 0),
    ("two_subjects_1v", 16, 1, 0),
    ("two_subjects_1v", 16, 1, 1),
)
METHODS = {
    "unified": "references",
    "composed": "a composed first frame",
}
SIZE, FRAMES, SCALE, GAP, LINE, REFERENCES = 64, 8, 2, 8, 12, 2
SIDE = SIZE * SCALE


def _large(image: np.ndarray) -> Image.Image:
    return Image.fromarray(io.to_uint8(image)).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("workdirs/video_subjects"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="a PNG of all frames")
    args = parser.parse_args(argv)
    world, store = VideoWorld(SIZE, FRAMES), SampleStore(args.workdir / "pictures" / "s0")
    titles = ["references", *METHODS.values(), "the true clip"]
    width, height = SIDE + GAP, SIDE + 2 * LINE + GAP
    columns = [0, *((REFERENCES + i) * width for i in range(len(titles) - 1))]
    frames = [
        Image.new("RGB", (columns[-1] + width, LINE + GAP + len(ROWS) * height), "white")
        for _ in range(FRAMES)
    ]
    sheet = []
    for x, title in zip(columns, titles, strict=True):
        for frame in frames:
            ImageDraw.Draw(frame).text((x + GAP // 2, 2), title, fill="#0b4f9e")
    for row, (setting, subjects, prompts, number) in enumerate(ROWS):
        case = world.cases(setting, SettingConfig(subjects=subjects, prompts=prompts))[number]
        clips = [store.read(name, setting)[number, 0] for name in METHODS] + [world.truth(case)]
        sheet += clips
        y = LINE + GAP + row * height
        shown = [(s, image) for s, views in enumerate(case.references, 1) for image in views]
        camera = [f"{move} asked" for move in case.motion.moves]
        lines = (case.prompt, ", ".join(camera) if not case.motion.worded else "")
        for t, frame in enumerate(frames):
            draw = ImageDraw.Draw(frame)
            for i, (s, image) in enumerate(shown[:REFERENCES]):
                frame.paste(_large(image), (i * width + GAP // 2, y))
                draw.text((i * width + GAP // 2, y + SIDE + LINE), f"@{s}", fill="black")
            for x, clip in zip(columns[1:], clips, strict=True):
                frame.paste(_large(clip[t]), (x + GAP // 2, y))
            draw.text((GAP // 2, y + SIDE + 1), "  ".join(filter(None, lines)), fill="black")
    video = np.stack([np.asarray(f, np.float32) / 127.5 - 1 for f in frames])
    video_io.write_video(video[:, : video.shape[1] // 2 * 2], args.out, fps=6)
    if args.sheet:
        io.save_png(io.grid(np.concatenate(sheet), columns=FRAMES), args.sheet)


if __name__ == "__main__":
    main()
