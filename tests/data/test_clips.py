"""Clips of video files: formats, rates, lengths, captions, manifests, what is skipped."""

import json

import numpy as np
import pytest
from PIL import Image

from uvit_jax import video_io
from uvit_jax.data.batches import batches
from uvit_jax.data.pipeline import DataConfig, dataset
from uvit_jax.data.sources.animated_emoji_source import FOLDER
from uvit_jax.errors import UvitError

SIZE = 16


def frames(count=10, seed=0):
    """Flat frames, each brighter than the one before, so that codecs keep their order."""
    grey = np.linspace(-0.8, 0.8, count, dtype=np.float32)
    return np.broadcast_to(grey[:, None, None, None], (count, SIZE, SIZE, 3))


def brightness(video):
    return video.mean(axis=(1, 2, 3))


def config(path, **more):
    defaults = dict(name="clips", path=str(path), frames=4, image_size=SIZE, workers=0)
    return DataConfig(**defaults | more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    for name in ("a.mp4", "deep/b.gif", "c.webp"):
        video_io.write_video(frames(), root / name, fps=10)
    (root / "d.frames").mkdir()
    for i, frame in enumerate(frames()):
        Image.fromarray(((frame + 1) * 127.5).astype(np.uint8)).save(root / f"d.frames/{i:03d}.png")
    for name in ("a", "deep/b", "c", "d"):
        suffix = ".TXT" if name == "c" else ".txt"
        (root / f"{name}{suffix}").write_text(f"clip {name[-1]}\n")
    return root


@pytest.mark.parametrize("fps", [0, 5])
def test_every_format_gives_its_frames(folder, fps):
    data = dataset(config(folder, fps=fps))
    # A folder of frames has 24 a second, so these ten are too short for four at 5 a second.
    names = ["a.mp4", "c.webp", *([] if fps else ["d.frames"]), "b.gif"]
    assert [clip.path.name for clip in data.source.clips] == names
    wanted = brightness(frames())
    for i in range(len(data)):
        video = data.decode(data.source[i])["video"]
        assert video.shape == (4, SIZE, SIZE, 3) and video.dtype == np.float32
        rate = data.source.clips[i].frame / data.source.clips[i].step
        taken = (np.arange(4) * rate + 1e-3).astype(int)
        assert np.abs(brightness(video) - wanted[taken]).max() < 0.06, data.source[i]["name"]


def test_training_begins_anywhere_in_the_clip_and_validation_at_its_start(folder):
    data = dataset(config(folder))
    starts = set()
    for batch in (next(batches(data, batch_size=8, seed=s)) for s in range(4)):
        starts |= {round(float(b), 1) for b in brightness(batch["video"][:, 0])}
    assert len(starts) >= 6
    fixed = next(batches(data, batch_size=4, seed=0, train=False))
    assert np.abs(brightness(fixed["video"][:, 0]) + 0.8).max() < 0.06


def test_long_files_are_read_from_a_key_frame(tmp_path):
    video_io.write_video(frames(100), tmp_path / "long.mp4", fps=10)
    (late,) = video_io.read_frames(tmp_path / "long.mp4", [9.5])
    assert abs(late.mean() / 127.5 - 1 - brightness(frames(100))[95]) < 0.06


def test_captions_are_beside_the_files(folder):
    data = dataset(config(folder, text=True))
    texts = [data.tokenizer.decode(data.decode(data.source[i])["text"]) for i in range(4)]
    assert texts == ["clip a", "clip c", "clip d", "clip b"]
    inputs = dataset(config(folder, first_frames=1, last_frames=1)).batch([0])
    assert {name: value.shape[1] for name, value in inputs.items()} == {
        "first": 1,
        "video": 2,
        "last": 1,
    }


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_manifest_names_files_captions_and_parts(folder, kind):
    file = folder / f"list.{kind}"
    if kind == "jsonl":
        rows = [{"file": "a.mp4", "caption": ["one", "two"], "start": 0.4}, {"file": "c.webp"}]
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        file.write_text("file,caption,start,end\na.mp4,one,0.4,\nc.webp,,,0.5\n")
    data = dataset(config(file))
    first = data.decode(data.source[0])["video"]
    assert np.abs(brightness(first) - brightness(frames())[4:8]).max() < 0.06
    with pytest.raises(UvitError, match=r"c\.webp has no caption"):
        dataset(config(file, text=True))


def test_what_cannot_be_used_is_named_and_counted(folder, tmp_path, caplog):
    (tmp_path / "good.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (tmp_path / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:200])
    (tmp_path / "text.gif").write_text("no image")
    video_io.write_video(frames(2), tmp_path / "short.webp", fps=10)
    Image.new("RGB", (20, 20)).save(tmp_path / "still.png")
    source = dataset(config(tmp_path)).source
    assert [clip.path.name for clip in source.clips] == ["good.mp4"]
    reasons = {path.name: reason for path, reason in source.skipped}
    assert set(reasons) == {"cut.mp4", "text.gif", "short.webp", "still.png"}
    assert "cannot be read" in reasons["cut.mp4"] and "too short" in reasons["short.webp"]
    assert "skipped" in caplog.text and "short.webp" in caplog.text
    one = dataset(config(tmp_path, frames=1)).source  # an image is a video of one frame
    assert {c.path.name for c in one.clips} == {"good.mp4", "short.webp", "still.png"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no examples"),
        ('{"file": "missing.mp4"}', "missing.mp4 does not exist"),
        ('{"caption": "x"}', "line 1: it names no video"),
        ("{", "line 1: .*correct them"),
        ('{"file": "m.jsonl", "start": "x"}', "start='x' is not a number"),
        ('{"file": "m.jsonl", "start": 3, "end": 2}', "start must lie before end"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path, content, message):
    (tmp_path / "m.jsonl").write_text(content)
    with pytest.raises(UvitError, match=message):
        dataset(config(tmp_path / "m.jsonl"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(image_size=0), "clips need image_size"),
        (dict(frames=99), "no clip of 99 frames .* of 4 videos"),
        (dict(labels="label"), "leave labels empty"),
    ],
)
def test_errors_name_the_key(folder, more, message):
    with pytest.raises(UvitError, match=message):
        dataset(config(folder, **more))
    with pytest.raises(UvitError, match="nowhere does not exist"):
        dataset(config(folder / "nowhere"))


def test_a_video_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(UvitError, match=r"\.mp4, \.gif or \.webp"):
        video_io.write_video(frames(), tmp_path / "a.avi", fps=8)
    with pytest.raises(UvitError, match="even sides"):
        video_io.write_video(frames()[:, :15], tmp_path / "a.mp4", fps=8)
    assert not list(tmp_path.iterdir())
    video_io.write_video(frames(), tmp_path / "a.webp", fps=8, cell=64)
    back = video_io.read_frames(tmp_path / "a.webp", [0.0])[0]
    assert back.shape == (64, 64, 3)


def test_animated_emoji_are_embedded_small_and_move():
    data = dataset(
        DataConfig(name="animated_emoji", frames=8, image_size=32, text=True, text_length=12)
    )
    assert len(data) > 100 and not data.source.skipped
    assert all(clip.step == 0.125 for clip in data.source.clips)
    batch = data.batch(range(0, len(data), 12))
    assert np.abs(np.diff(batch["video"], axis=1)).mean(axis=(1, 2, 3, 4)).min() > 1e-4
    assert (batch["text"] > 256).any(axis=1).all()
    files = list(FOLDER.iterdir())
    assert sum(file.stat().st_size for file in files) < 4 * 2**20
    assert "MIT License" in (FOLDER / "ATTRIBUTION.md").read_text()
