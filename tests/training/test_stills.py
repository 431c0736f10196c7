"""Images mixed with clips are videos of one frame, in batches and programs of their own."""

import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import uvit_jax
from uvit_jax import io, video_io
from uvit_jax.data.batches import batches
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.pipeline import dataset
from uvit_jax.errors import UvitError
from uvit_jax.models.cost import forward_cost
from uvit_jax.models.presets import video
from uvit_jax.training.check_data import sized_models
from uvit_jax.training.loop import train
from uvit_jax.training.loss import corrupt, diffusion_loss
from uvit_jax.training.run_config import parse_run

FRAMES, CLIPS, STILLS = 3, 4, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    for i in range(CLIPS):
        clip = rng.uniform(-1, 1, (FRAMES + 1, 8, 8, 3))
        video_io.write_video(clip, root / f"{i}.webp", fps=10)
    for i in range(STILLS):
        io.save_png(Image.new("RGB", (8, 8), ("teal", "gold", "navy")[i]), root / f"still{i}.png")
    return root


def data_config(folder, **changes):
    config = dict(name="clips", path=str(folder), image_size=8, frames=FRAMES, workers=0)
    return config | dict(first_frames=1, stills=True) | changes


def run_config(folder, style="uvit"):
    model = video.preset(
        style, (FRAMES, 8, 8, 3), patch_size=4, last=0, width=16, depth=2, num_heads=1
    )
    return parse_run(
        dict(
            model=model,
            data=data_config(folder),
            diffusion=dict(schedule=dict(name="rectified_flow"), prediction="velocity"),
            train=dict(steps=7, batch_size=2, log_every=1, given={"first": 0.5}),
            sample=dict(sampler=dict(name="euler", steps=1), count=2),
        )
    )


def test_every_batch_is_of_one_kind_and_every_example_is_there_once_an_epoch(folder):
    data = dataset(DataConfig(**data_config(folder)))
    assert data.counts() == {(8, 8): CLIPS, (1, 8, 8): STILLS}
    loader, seen = batches(data, batch_size=1, seed=0), Counter()
    for _ in range(CLIPS + STILLS):
        batch = next(loader)
        seen[int(batch["index"][0])] += 1
        kinds = {name: value.shape[1] for name, value in batch.items() if name != "index"}
        assert kinds in ({"first": 1}, {"first": 1, "video": FRAMES - 1})
    assert set(seen.values()) == {1} and len(seen) == CLIPS + STILLS
    parts = data.by_size()
    assert len(parts[8, 8]) == CLIPS and len(parts[1, 8, 8]) == STILLS
    still = parts[1, 8, 8].batch([0])
    assert still.keys() == {"first"} and np.ptp(still["first"], axis=(1, 2, 3)).max() < 0.01


@pytest.mark.parametrize("style", ["uvit", pytest.param("dit", marks=pytest.mark.slow)])
def test_an_image_is_the_first_frame_without_the_others_and_cheaper(folder, style):
    run = run_config(folder, style)
    model, data = uvit_jax.build(run.model), dataset(run.data)
    models = sized_models(model, data)
    still = models[1, 8, 8]
    assert [s.name for s in still.layout.noisy] == ["first"]
    assert still.layout.time_keys == ("first",)
    assert forward_cost(still).total < 0.6 * forward_cost(model).total

    def loss(params, key, batch):
        made = corrupt(key, still, batch, run.diffusion, given=run.train.given)
        return diffusion_loss(still, params, *made)

    batch = data.by_size()[1, 8, 8].batch([0, 1])
    losses, metrics = jax.eval_shape(loss, model.abstract_params, jax.random.key(0), batch)
    assert losses.shape == (2,) and losses.dtype == jnp.float32 and "loss/video" not in metrics


@pytest.mark.slow
def test_a_run_trains_on_both(folder, tmp_path):
    train(run_config(folder), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 7 and np.isfinite([row["loss"] for row in rows]).all()
    kinds = Counter("loss/video" in row for row in rows)
    assert kinds[True] == 4 and kinds[False] == 3  # two epochs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(first_frames=0), "set first_frames to 1"),
        (dict(last_frames=1), "last_frames to 0"),
        (dict(frames=9), "has no clip of 9 frames"),
    ],
)
def test_what_cannot_be_mixed_is_refused(folder, changes, message):
    with pytest.raises(UvitError, match=message):
        dataset(DataConfig(**data_config(folder, **changes)))
