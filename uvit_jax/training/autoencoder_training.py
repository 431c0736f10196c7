"""Trains a causal video autoencoder on a data set's videos or images.

    train_autoencoder(parse_autoencoder_run(config), "workdirs/autoencoder")

The loss is mean |x - x̂| + kl_weight · KL, with the mean over a latent's numbers of their
divergence from N(0, 1) (Kingma & Welling 2014, appendix B), and x̂ decoded from a sample. Every
`evaluate_every` steps PSNR and SSIM of the averaged parameters are measured on held-out clips.
"""

import dataclasses
import functools
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon

from uvit_jax import io
from uvit_jax.autoencoders.causal_video import (
    VideoAutoencoder,
    VideoAutoencoderConfig,
    build_video_autoencoder,
)
from uvit_jax.autoencoders.causal_video_weights import save_video_autoencoder
from uvit_jax.autoencoders.kl import LOGVAR_RANGE
from uvit_jax.config import Config, parse, to_dict
from uvit_jax.data import pipeline
from uvit_jax.data.batches import batches
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.dataset import Dataset
from uvit_jax.data.video_frames import joined_frames
from uvit_jax.errors import UvitError
from uvit_jax.evaluation.reconstruction import psnr, ssim
from uvit_jax.models.model import Params
from uvit_jax.parallel.distributed import StopSignal
from uvit_jax.paths import local_path
from uvit_jax.training.checkpoint import Checkpointer
from uvit_jax.training.optimizer import UPDATE_RMS
from uvit_jax.training.state import TrainState, initial_state

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderTraining(Config):
    """The loop.

    Attributes:
      steps: optimizer steps (betas .9 and .99, cosine to 0). batch_size: clips a step.
      optimizer: `adamw`, or `muon` for the kernels of convolutions and linear layers, as matrices
        from all inputs of an output (see `OptimizerConfig`), and AdamW for the rest.
      learning_rate: the peak, after `warmup_steps`. clip_norm: of the gradient.
      kl_weight: see the module.
      initial_logvar: what is added to the encoder's log-variances at the start. At 0 a short run is
        spent on making noise of deviation 1 small; -6 begins with 0.05.
      ema_decay: of the averaged parameters, which are evaluated and saved.
      checkpoint_every, log_every, evaluate_every: in steps.
      held_out: clips that PSNR and SSIM are measured on.
      file_dtype: of the weights in the file at the end, `float32` or `bfloat16`.
    """

    steps: int
    batch_size: int
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    clip_norm: float = 1.0
    kl_weight: float = 1e-4
    initial_logvar: float = 0.0
    ema_decay: float = 0.999
    checkpoint_every: int = 500
    log_every: int = 20
    evaluate_every: int = 500
    held_out: int = 64
    file_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        super().__post_init__()
        for key in ("steps", "batch_size", "checkpoint_every", "log_every", "evaluate_every"):
            if getattr(self, key) < 1:
                raise UvitError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.held_out < 2 or not 0 <= self.ema_decay < 1:
            raise UvitError("held_out must be at least 2, and ema_decay lie in [0, 1)")
        if self.learning_rate <= 0 or min(self.kl_weight, self.warmup_steps) < 0:
            raise UvitError("learning_rate must be positive, kl_weight and warmup_steps at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderRun(Config):
    """A run of `experiments.train_autoencoder`.

    Attributes:
      autoencoder: its shape. data: the clips. train: the loop. seed: of parameters, order, noise.
      validation: the keys in which the held-out clips' data config differs, such as `split`, or
        `path` for clips of one's own.
    """

    autoencoder: VideoAutoencoderConfig
    data: DataConfig
    train: AutoencoderTraining
    validation: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        known = {field.name for field in dataclasses.fields(DataConfig)}
        if unknown := sorted(set(self.validation) - known):
            raise UvitError(f"validation.{unknown[0]} is not a key of config.data")
        if not self.validation:
            raise UvitError(
                "validation must say how held-out clips differ from data, such as "
                "dict(split='validation'), or dict(path='other/videos')"
            )

    @property
    def held_out_data(self) -> DataConfig:
        """The data config of the held-out clips."""
        return dataclasses.replace(self.data, **self.validation)


def parse_autoencoder_run(config: Mapping[str, Any]) -> AutoencoderRun:
    """Builds an `AutoencoderRun`; UvitError on a wrong key or value, naming it."""
    return parse(AutoencoderRun, config)


def train_autoencoder(run: AutoencoderRun, workdir: str | os.PathLike) -> dict[str, Any]:
    """Trains until `run.train.steps`, resuming from the newest checkpoint in `workdir`.

    Writes `config.json`, `metrics.jsonl`, `checkpoints/`, `samples/STEP.png` (originals above
    reconstructions) and, at the end, `autoencoder.safetensors`: the averaged parameters with Wan's
    names, and latents normalised by their mean and standard deviation on training clips.

    Returns:
      `step`, `stopped` (by a signal, after saving), `psnr`, `ssim` and `path` of the weights, empty
      if it was stopped.

    Raises:
      UvitError: if the clips do not fit the autoencoder, or the folder is another run's (nothing is
        overwritten), or the loss is not finite.
    """
    folder, train = local_path(workdir), run.train
    autoencoder = build_video_autoencoder(run.autoencoder)
    data, held_out = pipeline.dataset(run.data), pipeline.dataset(run.held_out_data)
    if data.buckets is not None:
        raise UvitError("an autoencoder takes clips of one size; give config.data.sizes one entry")
    example = _clips(data.batch([0]))
    autoencoder.latent_shape(example.shape[1:])
    test = _clips(held_out.batch(range(min(train.held_out, len(held_out)))))
    _claim(folder, json.loads(json.dumps(to_dict(run))))
    optimizer = _optimizer(train)
    state = initial_state(
        functools.partial(_initial, autoencoder, train), optimizer, jax.random.key(run.seed)
    )
    checkpointer = Checkpointer(folder, keep=2)
    try:
        restored = checkpointer.restore(state, jax.tree.map(lambda a: a.sharding, state))
        state, position = restored or (state, 0)
        logger.info("%s, %s at step %d", autoencoder, folder, int(state.step))
        step_function = jax.jit(
            functools.partial(_step, autoencoder, optimizer, train), donate_argnums=0
        )
        loader = batches(data, batch_size=train.batch_size, seed=run.seed, start=position)
        stop, scores, began = StopSignal(), {}, time.perf_counter()
        stop.listen()
        start, stopped = int(state.step), False
        for step in range(start + 1, train.steps + 1):
            state, metrics = step_function(state, _clips(next(loader)))
            last, stopping = step == train.steps, stop.requested(step)
            if step % train.log_every == 0 or step == start + 1 or last or stopping:
                values = {name: float(value) for name, value in metrics.items()}
                if not np.isfinite(values["loss"]):
                    raise UvitError(
                        f"the loss of step {step} is {values['loss']}; lower "
                        "config.train.learning_rate. Checkpoints of good steps are kept"
                    )
                seconds = (time.perf_counter() - began) / (step - start)
                values["seconds_per_step"] = seconds
                if last or step % train.evaluate_every == 0:
                    scores = _evaluate(autoencoder, state.ema, test, folder / "samples", step)
                    logger.info("step %d: %s", step, scores)
                _log(folder / "metrics.jsonl", {"step": step, **values, **scores})
            if last or stopping or step % train.checkpoint_every == 0:
                checkpointer.save(state, loader.position)
            if stopping:
                stopped = True
                break
        stop.close()
        loader.close()
    finally:
        checkpointer.close()
    path = ""
    if not stopped:
        if not scores:
            scores = _evaluate(autoencoder, state.ema, test, folder / "samples", int(state.step))
        path = str(folder / "autoencoder.safetensors")
        params = jax.device_get(state.ema)
        normalised = _normalised(autoencoder, params, data, train)
        save_video_autoencoder(path, normalised, params, dtype=train.file_dtype)
    return {"step": int(state.step), "stopped": stopped, **scores, "path": path}


def reconstruction_loss(
    autoencoder: VideoAutoencoder,
    params: Params,
    key: jax.Array,
    video: jax.Array,
    kl_weight: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of the module's docstring, (), and its parts `l1` and `kl`."""
    moments = autoencoder.encode(params, video)
    mean, logvar = jnp.split(moments, 2, axis=-1)
    logvar = jnp.clip(logvar, *LOGVAR_RANGE)
    latents = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
    l1 = jnp.mean(jnp.abs(autoencoder.decode(params, latents) - video))
    kl = jnp.mean(0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar))
    loss = l1 + kl_weight * kl
    return loss, {"loss": loss, "l1": l1, "kl": kl}


def _initial(autoencoder: VideoAutoencoder, train: AutoencoderTraining, key: jax.Array) -> Params:
    params = autoencoder.init(key)
    last = params["encoder"]["quant_conv"]
    C = autoencoder.config.latent_channels
    return params | {
        "encoder": params["encoder"]
        | {"quant_conv": last | {"bias": last["bias"].at[C:].add(train.initial_logvar)}}
    }


def _step(autoencoder, optimizer, train, state, video):
    key = jax.random.fold_in(state.key, state.step)
    gradient = jax.grad(
        lambda p: reconstruction_loss(autoencoder, p, key, video, train.kl_weight), has_aux=True
    )
    grads, metrics = gradient(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(train.ema_decay, (1 + state.step) / (10 + state.step))
    ema = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state.ema, params)
    state = TrainState(
        step=state.step + 1, params=params, ema=ema, opt_state=opt_state, key=state.key
    )
    return state, metrics | {"grad_norm": optax.global_norm(grads)}


def _optimizer(train: AutoencoderTraining) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, train.learning_rate, train.warmup_steps, max(train.steps, train.warmup_steps + 1)
    )
    if train.optimizer == "muon":
        update = muon(
            schedule,
            adam_b1=0.9,
            adam_b2=0.99,
            adam_weight_decay=1e-4,
            weight_decay=1e-4,
            muon_weight_dimension_numbers=_kernels,
            consistent_rms=UPDATE_RMS,
        )
    else:
        update = optax.adamw(schedule, b1=0.9, b2=0.99, weight_decay=1e-4)
    return optax.chain(optax.clip_by_global_norm(train.clip_norm), update)


def _kernels(params: Params) -> Any:
    """For Muon: kernels are matrices from all but the last axis to the last."""

    def one(leaf):
        inputs = tuple(range(leaf.ndim - 1))
        return MuonDimensionNumbers(inputs, leaf.ndim - 1) if inputs else None

    return jax.tree.map(one, params)


def _clips(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """The videos of a batch, (B, T, H, W, C); images are videos of one frame."""
    return joined_frames(batch) if "video" in batch else batch["image"][:, None]


def _claim(folder: Path, config: dict[str, Any]) -> None:
    """Writes config.json; UvitError if the folder has another one, or is not empty."""
    file = folder / "config.json"
    if not file.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UvitError(f"workdir {folder} is not empty and has no run; give a new folder")
        io.write_text(file, json.dumps(config, indent=2) + "\n")
        return
    old = io.read_json(file, remedy="; give another --workdir")
    changed = sorted(
        f"{group}.{key}"
        for group in config
        for key in (config[group] if isinstance(config[group], dict) else [""])
        if f"{group}.{key}" not in FREE and _at(old, group, key) != _at(config, group, key)
    )
    if changed:
        raise UvitError(
            f"{folder} has a run of another config ({', '.join(changed)}); give another --workdir"
        )


FREE = (
    *("train.checkpoint_every", "train.log_every", "train.evaluate_every", "train.file_dtype"),
    "data.workers",
)
"""The keys that may change when a run is resumed."""


def _at(config: Mapping[str, Any], group: str, key: str) -> Any:
    value = config.get(group)
    return value.get(key) if key and isinstance(value, dict) else value


def _log(path: Path, row: dict[str, Any]) -> None:
    with io.named_errors(path), path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _evaluate(
    autoencoder: VideoAutoencoder, params: Params, test: np.ndarray, folder: Path, step: int
) -> dict[str, float]:
    """PSNR and SSIM of clips decoded from their mean latents; writes the first eight as a PNG."""
    decoded = []
    for start in range(0, len(test), 8):
        rows = np.arange(start, start + 8) % len(test)  # of one shape, compiled once
        moments, _ = autoencoder._encode_chunk(params, test[rows], None)
        mean = moments[..., : autoencoder.config.latent_channels]
        decoded.append(jax.device_get(autoencoder._decode_chunk(params, mean, None)[0]))
    decoded = np.clip(np.concatenate(decoded)[: len(test)], -1, 1)
    pairs = np.stack([test[:8], decoded[:8]], axis=1).reshape(-1, *test.shape[1:])
    grid = io.grid(io.frames_as_images(pairs), columns=1, cell=64 * test.shape[1])
    io.save_png(grid, folder / f"{step:08d}.png")
    return {"psnr": float(psnr(test, decoded).mean()), "ssim": float(ssim(test, decoded).mean())}


def _normalised(
    autoencoder: VideoAutoencoder, params: Params, data: Dataset, train: AutoencoderTraining
) -> VideoAutoencoder:
    """The autoencoder whose latents have mean 0 and deviation 1 on training clips."""
    count = min(max(64, train.batch_size), len(data))
    means = []
    for start in range(0, count, 8):
        rows = [(start + i) % count for i in range(8)]
        moments, _ = autoencoder._encode_chunk(params, _clips(data.batch(rows)), None)
        means.append(np.asarray(moments[..., : autoencoder.config.latent_channels]))
    means = np.concatenate(means).reshape(-1, autoencoder.config.latent_channels)
    return build_video_autoencoder(
        dataclasses.replace(
            autoencoder.config,
            latent_mean=tuple(means.mean(axis=0).round(5).tolist()),
            latent_std=tuple(means.std(axis=0).clip(1e-4).round(5).tolist()),
        )
    )
