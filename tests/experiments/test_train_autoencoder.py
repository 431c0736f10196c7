"""`experiments.train_autoencoder`: metrics, weights, resuming, folders of other runs."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train_autoencoder
from uvit_jax.autoencoders.causal_video import encode_in_chunks
from uvit_jax.autoencoders.causal_video_weights import load_video_autoencoder
from uvit_jax.data.pipeline import DataConfig, dataset
from uvit_jax.errors import UvitError
from uvit_jax.evaluation.reconstruction import psnr, ssim
from uvit_jax.training import autoencoder_training
from uvit_jax.training.autoencoder_training import AutoencoderTraining, parse_autoencoder_run

CONFIG = """
def get_config():
    return dict(
        autoencoder=dict(
            widths=(8,), temporal=(), num_blocks=1, latent_channels=4, patch_size=4,
            mid_attention=False, convolutions="2d",
        ),
        data=dict(name="totem_videos", image_size=16, frames=2, max_views=0, workers=0),
        validation=dict(split="validation"),
        train=dict(steps=4, batch_size=2, warmup_steps=1, held_out=2, log_every=1,
                   checkpoint_every=2, evaluate_every=4, initial_logvar=-3.0),
    )
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The arguments of a command, its workdir, and its results."""
    root = tmp_path_factory.mktemp("autoencoder")
    (root / "config.py").write_text(CONFIG)
    args = [f"--config={root / 'config.py'}", f"--workdir={root / 'run'}"]
    assert train_autoencoder.main([*args, f"--json={root / 'out.json'}"]) == 0
    return args, root / "run", json.loads((root / "out.json").read_text())


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_it_writes_metrics_samples_and_normalised_latents(run):
    _, workdir, results = run
    last = rows(workdir)[-1]
    assert last["step"] == 4 and last["psnr"] == results["psnr"] > 0 and -1 < last["ssim"] < 1
    assert (workdir / "samples" / "00000004.png").exists()
    autoencoder, params = load_video_autoencoder(results["path"])
    data = dataset(DataConfig(name="totem_videos", image_size=16, frames=2, max_views=0))
    moments = encode_in_chunks(autoencoder, params, data.batch(range(64))["video"])
    assert np.allclose(moments[..., :4].mean((0, 1, 2, 3)), 0, atol=1e-3)
    assert np.allclose(moments[..., :4].std((0, 1, 2, 3)), 1, atol=1e-3)


def test_a_stopped_run_resumes_to_the_same_end_and_writes_half_the_bytes_in_bfloat16(run):
    args, workdir, results = run
    first, size = rows(workdir), Path(results["path"]).stat().st_size
    shutil.rmtree(workdir / "checkpoints" / "4")
    assert train_autoencoder.main([*args, "--config.train.file_dtype=bfloat16"]) == 0
    assert Path(results["path"]).stat().st_size < 0.6 * size
    again = rows(workdir)[len(first) :]
    assert [row["step"] for row in again] == [3, 4]
    assert again[-1]["loss"] == first[-1]["loss"] and again[-1]["psnr"] == first[-1]["psnr"]


def test_another_runs_folder_is_left_alone(run, tmp_path):
    args, workdir, _ = run
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UvitError, match=r"another config \(train\.kl_weight\)"):
        train_autoencoder.main([*args, "--config.train.kl_weight=0.5"])
    assert (workdir / "config.json").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UvitError, match="not empty"):
        train_autoencoder.main([args[0], f"--workdir={tmp_path}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.validation={}", "validation must say"),
        ("--config.validation.splt=test", "validation.splt"),
        ("--config.autoencoder.patch_size=32", "multiples of 32"),
        ("--config.train.batch_size=0", "batch_size must be at least 1"),
        ("--config.train.optimizer=moun", "moun.*'muon'"),
    ],
)
def test_errors_name_the_key(run, tmp_path, override, message):
    with pytest.raises(UvitError, match=message):
        train_autoencoder.main([run[0][0], f"--workdir={tmp_path / 'new'}", override])
    assert not (tmp_path / "new").exists()


def test_muon_moves_kernels_along_all_directions_alike():
    train = AutoencoderTraining(steps=9, batch_size=1, optimizer="muon", warmup_steps=0)
    optimizer = autoencoder_training._optimizer(train)
    params = {"kernel": jnp.zeros((1, 2, 2, 4)), "bias": jnp.zeros(4)}
    gradient = {"kernel": jnp.diag(jnp.float32([1, 2, 4, 8])).reshape(1, 2, 2, 4)}
    gradient["bias"] = -jnp.arange(1.0, 5)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    moved = np.abs(np.diag(np.asarray(updates["kernel"]).reshape(4, 4)))
    assert moved.max() < 2 * moved.min() and (updates["bias"] > 0).all()


def test_scores_of_reconstructions():
    rng = np.random.default_rng(0)
    a = rng.uniform(-0.5, 0.5, (2, 3, 16, 16, 3))
    assert np.allclose(psnr(a, a + 0.2), 20) and np.isinf(psnr(a, a)).all()
    assert np.allclose(ssim(a, a), 1)
    noisy = [ssim(a, a + level * rng.normal(size=a.shape)).mean() for level in (0.1, 0.4, 1.0)]
    assert 1 > noisy[0] > noisy[1] > noisy[2]


def test_a_misspelt_key_is_named():
    with pytest.raises(UvitError, match=r"config\.trian is not a known key"):
        parse_autoencoder_run(dict(trian={}))
