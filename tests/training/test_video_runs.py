"""Video models train on totem videos and sample: tasks, exact given frames, extension, errors."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import uvit_jax
from experiments import sample
from experiments.cli import read_config
from tests.helpers.running import ROOT
from uvit_jax import io, video_io
from uvit_jax.config import replaced
from uvit_jax.data import pipeline
from uvit_jax.data.sources.worlds.scene_motion import CAMERA_FIELDS, Motion
from uvit_jax.errors import UvitError
from uvit_jax.models.presets.video import VIDEO_SEGMENTS
from uvit_jax.sampling import video_tasks
from uvit_jax.sampling.sampler import make_sampler
from uvit_jax.training.check_data import check_data
from uvit_jax.training.loop import train
from uvit_jax.training.run_config import parse_run

SMALL = {
    "model.backbone.width": 32,
    "model.backbone.depth": 2,
    "model.backbone.num_heads": 2,
    "train.steps": 2,
    "train.batch_size": 2,
    "train.checkpoint_every": 2,
    "sample.count": 2,
    "sample.sampler.steps": 1,
    "sample.sampler.order": 1,
    "data.workers": 0,
    "train.init_from": "",
    "train.init_segments": {},
}


def read(name="totems", **changes):
    config = read_config(f"{ROOT}/configs/video.py:{name}", {})
    return replaced(config, SMALL | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(run config, workdir, rows of metrics)."""
    workdir = tmp_path_factory.mktemp("video") / "run"
    config = parse_run(read())
    train(config, workdir)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return config, workdir, rows


def test_it_trains_and_writes_one_strip_of_frames_for_each_clip(run):
    _, workdir, rows = run
    assert {"loss/first", "loss/video", "loss/last"} <= rows[-1].keys()
    assert np.isfinite(rows[-1]["loss"])
    assert [file.name for file in (workdir / "samples").iterdir()] == ["00000002.png"]


def test_given_frames_are_exact_and_a_clip_is_extended(run):
    config, workdir, _ = run
    model, params = uvit_jax.load(workdir)
    batch = pipeline.dataset(config.data).batch([0, 1])
    conditions = {name: batch[name] for name in model.layout.conditions_in(batch)}
    task, given = video_tasks.task(model.layout, config.sample, first=batch["first"])
    assert set(task.generate) == {"video", "last"}
    sampler = jax.jit(make_sampler(model, config.diffusion, task, batch_size=2))

    def generate(first, number):
        samples = jax.device_get(
            sampler(params, jax.random.key(number), conditions | dict(first=first))
        )
        return video_tasks.clip_of({"first": first}, samples)

    clip = generate(given["first"], 0)
    assert clip.shape == (2, 8, 64, 64, 3) and (clip[:, :1] == batch["first"]).all()
    longer = video_tasks.extended(generate, clip, overlap=1, times=2)
    assert longer.shape[1] == 8 + 2 * 7 and (longer[:, :8] == clip).all()


def test_the_command_writes_clips_that_begin_with_the_given_frame(run, tmp_path):
    _, workdir, _ = run
    pixels = np.random.default_rng(0).uniform(-1, 1, (64, 64, 3))
    io.save_png(Image.fromarray(io.to_uint8(pixels)), tmp_path / "start.png")
    (tmp_path / "refs").mkdir()
    io.save_png(Image.fromarray(io.to_uint8(-pixels)), tmp_path / "refs" / "a.png")
    out = tmp_path / "out.png"
    args = [f"--workdir={workdir}", f"--references={tmp_path / 'refs'}", f"--out={out}"]
    args += [f"--first_frame={tmp_path / 'start.png'}", "--extend=1", "--count=1", "--steps=1"]
    args += ["--camera=pan=0.3,roll=6", "--amplitude=large", f"--json={tmp_path / 'out.json'}"]
    assert sample.main(args) == 0
    video = np.load(out.with_suffix(".npz"))["video"]
    assert video.shape == (1, 15, 64, 64, 3)
    assert (io.to_uint8(video[0, 0]) == io.to_uint8(pixels)).all()
    results = json.loads((tmp_path / "out.json").read_text())
    info = video_io.probe(Path(results["video"]))
    assert info.fps == 8 and info.frames == 15
    for wrong, message in (
        ("--camera=turn=3", "'turn' is unknown"),
        ("--camera=roll=400", "outside of the trained range"),
        ("--camera=zoom=-1", "NAME=NUMBER"),
        ("--frames=2", "--frames=2 must be more than the 2"),
        ("--fps=0", r"--fps must lie in"),
    ):
        with pytest.raises(UvitError, match=message):
            sample.main([*args, wrong])


def test_a_camera_path_is_that_of_the_data():
    layout = parse_run(read()).model.layout()
    inputs = video_tasks.path_input(layout, 2, {"x": 0.3, "roll": -0.1}, CAMERA_FIELDS)
    expected = Motion(x=0.3, roll=-0.1).camera_path(8)
    np.testing.assert_allclose(inputs["camera"], np.stack([expected] * 2), atol=1e-6)
    with pytest.raises(UvitError, match="camera 'yaw' is unknown"):
        video_tasks.path_input(layout, 1, {"yaw": 1.0}, CAMERA_FIELDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.first_frames": 2}, r"segment 'first' has shape=\(1, 64, 64, 3\)"),
        ({"data.frames": 9}, "segment 'video' has shape"),
        (
            {f"model.segments.{name}.follow_camera": False for name in VIDEO_SEGMENTS}
            | {"model.segments.camera.shape": (8, 3)},
            r"segment 'camera' takes \(8, 3\)",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(changes, message):
    run = parse_run(read(**changes))
    with pytest.raises(UvitError, match=message):
        check_data(uvit_jax.build(run.model), pipeline.dataset(run.data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.given.frist": 0.5}, "given.frist is not a noisy segment.*'first'"),
        ({"train.given.first": 1.5}, r"given.first must lie in \[0, 1\]"),
        ({"train.given.video": 0.5}, "another noisy segment that is never given"),
    ],
)
def test_what_is_given_is_checked(changes, message):
    with pytest.raises(UvitError, match=message):
        parse_run(read(**changes))


def test_given_frames_of_another_shape_are_refused():
    run = parse_run(read())
    with pytest.raises(UvitError, match=r"first has shape \(1, 16, 16, 3\)"):
        video_tasks.task(run.model.layout(), run.sample, first=np.zeros((16, 16, 3)))


@pytest.mark.parametrize("name", ["totems_dit", "clips", "uvit_1b-720p-5s", "dit_1b-1080p-16s"])
def test_configs_are_whole(name):
    run = parse_run(read_config(f"{ROOT}/configs/video.py:{name}", {}))
    layout = run.model.layout()
    assert {"first", "video", "last"} <= layout.by_name.keys()
    assert run.mesh.context == 1 or layout.num_tokens % 64 == 0
