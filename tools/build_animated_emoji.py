"""Builds the embedded animated emoji from npm's `@lobehub/fluent-emoji-anim-1` 1.0.0 (MIT).

    npm pack @lobehub/fluent-emoji-anim-1@1.0.0 && tar xzf lobehub-fluent-emoji-anim-1-1.0.0.tgz
    python tools/build_animated_emoji.py package/assets

Animations without skin tones, of those concepts that the embedded still emoji have, at 64×64 pixels
and 8 frames a second, as WebP on white.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from uvit_jax import video_io
from uvit_jax.data.sources import emoji
from uvit_jax.data.sources.animated_emoji_source import FOLDER

SIZE, FPS, QUALITY, MIN_SECONDS = 64, 8, 60, 1.0


def main(assets: str) -> None:
    """Writes the animations and their manifest into the package."""
    labels = {r["code"].lower().replace("-fe0f", ""): r["label"] for r in emoji.index()}
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = []
    for file in sorted(Path(assets).glob("*.webp")):
        code = file.stem.replace("-fe0f", "")
        if code not in labels:
            continue
        info = video_io.probe(file)
        seconds = info.frames / info.fps
        if info.frames < 2 or seconds < MIN_SECONDS:
            continue
        times = np.arange(0, seconds - 0.5 / info.fps, 1 / FPS)
        frames = [
            Image.fromarray(frame).resize((SIZE, SIZE), Image.Resampling.BOX)
            for frame in video_io.read_frames(file, times.tolist())
        ]
        frames[0].save(
            FOLDER / f"{code}.webp",
            save_all=True,
            append_images=frames[1:],
            duration=1000 // FPS,
            loop=0,
            quality=QUALITY,
            method=6,
        )
        rows.append({"file": f"{code}.webp", "caption": labels[code]})
        print(code, labels[code], len(frames), (FOLDER / f"{code}.webp").stat().st_size)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (FOLDER / "manifest.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
