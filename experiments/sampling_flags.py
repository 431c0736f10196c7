"""Flags that `experiments.sample`, `experiments.evaluate` and `experiments.finetune_lora` share.

add_flags(parser)
config = sample_config(run.sample, args, count=16)    # the run's, with the flags' values
model = with_attention(model, args.attention)         # if the run's is not available here
samples, record = Run(args).samples(mesh)             # with the data's conditions, to be evaluated
"""

import argparse
import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvit_jax.sampling.sampler import SampleConfig

FLAGS = {
    "guidance": "guidance_scale",
    "guidance_channels": "guidance_channels",
    "autoencoder": "autoencoder",
}
"""The fields of a `SampleConfig` by the flags that override them."""
RECORDED_ELSEWHERE = (
    "count", "labels", "prompts", "autoencoder", "latent_scale", "text_encoder", "image_encoder",
    "caption_decoder",
)  # fmt: skip
"""The fields of a `SampleConfig` that results record in other forms."""


def add_flags(parser: Any) -> None:
    """Adds the flags of sampling to a parser or one of its groups; None is the run's value."""
    parser.add_argument("--batch_size", type=int, default=64, help="samples generated at once")
    parser.add_argument(
        "--sampler",
        help="ddpm, ddim, euler_maruyama, euler, heun, dpm_solver, dpm_solver_pp, "
        "sde_dpm_solver_pp, unipc or mean_flow (see docs/sampling.md); default the run's",
    )
    parser.add_argument("--steps", type=int, help="of the sampler; default the run's")
    parser.add_argument(
        "--guidance",
        type=float,
        help="s in cond + s (cond - uncond), 0 is none (DiT's and diffusers' scale - 1); default "
        "the run's",
    )
    parser.add_argument(
        "--guidance_channels",
        type=int,
        help="the first N channels are guided; 0 for all; default the run's",
    )
    parser.add_argument(
        "--autoencoder", metavar="FILE", help="weights of the autoencoder, if the model has latents"
    )


def sample_config(sample: "SampleConfig", args: argparse.Namespace, **changes) -> "SampleConfig":
    """A run's `SampleConfig` with the flags' values and `changes` of other fields.

    Raises:
      UvitError: if a value is impossible.
    """
    sampler = sample.sampler
    if args.sampler and args.sampler != sampler.name:
        # The other settings of one sampler may not apply to another.
        sampler = type(sampler)(name=args.sampler, steps=sampler.steps)
    if args.steps is not None:
        sampler = dataclasses.replace(sampler, steps=args.steps)
    given = {field: getattr(args, flag) for flag, field in FLAGS.items()}
    given = {field: value for field, value in given.items() if value is not None}
    return dataclasses.replace(sample, sampler=sampler, **given, **changes)


def settings(sample: "SampleConfig") -> dict[str, Any]:
    """The settings of sampling that results record, as plain JSON."""
    from uvit_jax.config import to_dict

    return {key: value for key, value in to_dict(sample).items() if key not in RECORDED_ELSEWHERE}


def add_size_flag(parser: Any, *aliases: str) -> None:
    """Adds `--size`, also by other names."""
    parser.add_argument(
        "--size",
        *aliases,
        metavar="H×W",
        help="of the images to generate, such as 32×48 (or 32x48), or the side of a square: in "
        "pixels, or latents of a model of latents; positions are interpolated from the trained "
        "size",
    )


def at_size(model: Any, size: str | None) -> Any:
    """The model for images of `--size`.

    Raises:
      UvitError: if it is no size, or the model's patches do not divide it.
    """
    if size is None:
        return model
    height_width = parsed_size(size)
    noisy = model.layout.noisy_images
    return model.resized({s.name: (*s.shape[:-3], *height_width, s.shape[-1]) for s in noisy})


def parsed_size(size: str | None) -> tuple[int, int] | None:
    """(H, W) of `--size`; UvitError if it is no size."""
    from uvit_jax.errors import UvitError

    if size is None:
        return None
    numbers = size.replace("×", "x").split("x")
    if len(numbers) > 2 or not all(re.fullmatch("[1-9][0-9]{0,5}", n) for n in numbers):
        raise UvitError(f"--size={size} must be HEIGHT×WIDTH, such as 32×48, or one number")
    return int(numbers[0]), int(numbers[-1])


def add_attention_flag(parser: Any) -> None:
    """Adds `--attention`."""
    parser.add_argument(
        "--attention",
        metavar="NAME",
        help="instead of the run's: xla, blocked, splash, cudnn, …; equal up to rounding",
    )


def with_attention(model: Any, name: str | None) -> Any:
    """The model with the attention that `--attention` names, or its own, on the available devices.

    Raises:
      UvitError: if there is no such attention, or it does not run here.
    """
    import jax

    from uvit_jax import build
    from uvit_jax.parallel.attention.implementations import check_platform

    if name:
        backbone = dataclasses.replace(model.config.backbone, attention=name)
        model = build(dataclasses.replace(model.config, backbone=backbone))
    check_platform(
        model.config.backbone.attention,
        jax.devices()[0].platform,
        remedy="use --attention=xla, which is equal up to rounding",
    )
    return model


def add_adapter_flags(parser: Any) -> None:
    """Adds `--adapter` and `--any_base`."""
    parser.add_argument(
        "--adapter",
        metavar="FILE[:WEIGHT]",
        action="append",
        default=[],
        help="of experiments.finetune_lora or PEFT; may be repeated, and adapters add up",
    )
    parser.add_argument(
        "--any_base",
        action="store_true",
        help="accept adapters of other base parameters of the same shapes",
    )


def adapted(model: Any, params: Any, args: argparse.Namespace) -> Any:
    """Parameters with the adapters of `--adapter` merged into them.

    Raises:
      UvitError: if an adapter cannot be read, or is of another model or base.
    """
    if not args.adapter:
        return params
    from uvit_jax.evaluation.image_metrics import params_sha256
    from uvit_jax.interop import adapters
    from uvit_jax.models import lora

    base = params_sha256(params)
    for given in args.adapter:
        file, weight = _weighted(given)
        factors, record = adapters.load(file, model, base=base, any_base=args.any_base)
        params = lora.merge(params, factors, weight * record.lora.scale)
    return params


def _weighted(given: str) -> tuple[str, float]:
    """`FILE:WEIGHT` or `FILE` as both."""
    file, colon, weight = given.rpartition(":")
    try:
        value = float(weight) if colon else 1.0
    except ValueError:  # a colon in the file's own name
        return given, 1.0
    if not math.isfinite(value):
        from uvit_jax.errors import UvitError

        raise UvitError(f"--adapter={given}: the weight must be a finite number")
    return (file, value) if colon else (given, 1.0)


def sampled(
    model: Any,
    params: Any,
    diffusion: Any,
    config: "SampleConfig",
    conditions: dict[str, Any],
    *,
    batch_size: int,
    seed: int,
    vocabulary: Any = None,
) -> dict[str, Any]:
    """`config.count` samples by segment, generated on all local devices.

    Args:
      conditions: by segment, leaves (config.count, …).
      vocabulary: see `make_sampler`.
    """
    import jax

    from uvit_jax.parallel.mesh import MeshConfig, make_mesh
    from uvit_jax.parallel.sharding import jit_replicated, shardings
    from uvit_jax.sampling.sampler import make_sampler, sample_all

    mesh = make_mesh(MeshConfig())
    size = min(batch_size, config.count)
    sampler = jit_replicated(
        make_sampler(model, diffusion, config, batch_size=size, vocabulary=vocabulary), mesh
    )
    params = jax.device_put(params, shardings(params, mesh))
    with jax.set_mesh(mesh):
        return sample_all(
            lambda *batch: sampler(params, batch), conditions, config.count, size, seed
        )


class Run:
    """The run of `args.workdir` for `experiments.evaluate`: its data and its samples. Of data of
    several sizes, both are of one, by default the first."""

    def __init__(self, args: argparse.Namespace):
        from uvit_jax.training.stored_run import open_run

        self.args = args
        self.folder = open_run(args.workdir, raw=bool(args.raw))
        self.config = self.folder.read_run()
        self.data = self._data_config()
        self._dataset = None

    def _data_config(self) -> Any:
        """The config of the run's data, with the given folder or split, without augmentation."""
        from uvit_jax.errors import UvitError

        args, data = self.args, self.config.data
        if args.data and not data.path:
            raise UvitError(
                f"--data={args.data} names a folder, and the run's data are {data.name!r}; choose "
                "a part of them with --split"
            )
        if args.split and data.path and data.name != "huggingface":
            raise UvitError(
                f"the run's data are the folder {data.path}, which has no splits; name another "
                "folder with --data"
            )
        changes = {"path": args.data or data.path, "split": args.split or data.split}
        return dataclasses.replace(data, flip=False, **changes)

    @property
    def data_name(self) -> str:
        """Its data set and split, or its folder."""
        return f"{self.data.name}/{self.data.split}" if not self.data.path else self.data.path

    def dataset(self) -> Any:
        """The data, opened once."""
        from uvit_jax.data import pipeline
        from uvit_jax.errors import UvitError

        if self._dataset is None:
            data = pipeline.dataset(self.data)
            size = parsed_size(self.args.size) or data.sizes[0]
            if data.buckets is not None and size not in data.sizes:
                known = ", ".join(f"{h}×{w}" for h, w in data.sizes)
                raise UvitError(f"--size={self.args.size}: the run's data have {known}; choose one")
            self._dataset = data.one_size(size)
        return self._dataset

    def conditions(self, model: Any, count: int) -> tuple[dict[str, Any], Any, str | None]:
        """(the conditions of the samples, their vocabulary, the name of their source)."""
        from uvit_jax.autoencoders.encoded_dataset import open_data
        from uvit_jax.errors import UvitError
        from uvit_jax.sampling.conditions import conditions_like, uniform_labels, with_features

        seed, vocabulary = self.args.seed, self.folder.read_vocabulary()
        if self.args.labels == "uniform":
            return uniform_labels(model, vocabulary, count, seed), vocabulary, "uniform labels"
        kinds = {s.kind for s in model.layout.conditions}
        if not kinds:
            return {}, vocabulary, None
        try:
            data = open_data(self.data) if self.data.autoencoder else self.dataset()
        except UvitError as problem:
            if kinds == {"label"}:
                raise UvitError(
                    f"{problem}; or use --labels=uniform, which needs no data"
                ) from None
            raise
        if data.features is not None:
            vocabulary = with_features(vocabulary, data.features)
        return (
            conditions_like(model, data, vocabulary, count, seed),
            vocabulary,
            self.data_name,
        )

    def samples(self, mesh: Any) -> tuple[Any, dict[str, Any]]:
        """The samples, generated as they are read, and a record of all that they depend on."""
        from uvit_jax.evaluation import image_metrics, image_sets
        from uvit_jax.sampling import decoding

        args, count = self.args, self.args.count or 10_000
        step, model, params = self.load()
        model = at_size(with_attention(model, args.attention), args.size)
        sample = sample_config(self.config.sample, args, count=count, labels=(), prompts=())
        decoder = decoding.decoder(model.layout, sample)
        image_sets.image_segment(model, decoder, latents=self.config.of_latents)
        conditions, vocabulary, source = self.conditions(model, count)
        record = {
            "source": self.folder.source,
            "step": step,
            "ema": not args.raw,
            "params_sha256": image_metrics.params_sha256(params),
            "conditions": source,
            "size": list(model.layout.noisy_images[0].shape[-3:-1]),
            **settings(sample),
            "autoencoder_sha256": decoder and image_metrics.params_sha256(decoder.params),
            "latent_scale": decoder and decoder.scale,
            "seed": args.seed,
            "batch_size": args.batch_size,
        }
        samples = image_sets.of_model(
            model,
            params,
            self.config.diffusion,
            sample,
            conditions,
            count=count,
            batch_size=args.batch_size,
            seed=args.seed,
            mesh=mesh,
            name=self.folder.source + ("" if step is None else f" at step {step}"),
            vocabulary=vocabulary,
            decoder=decoder,
        )
        return samples, record

    def load(self) -> tuple[int | None, Any, Any]:
        """(step, model, parameters) of the checkpoint `--step`, or of the newest readable one."""
        from uvit_jax import load
        from uvit_jax.errors import UvitError

        steps = self.folder.steps[::-1] if self.args.step is None else [self.args.step]
        for step in steps:
            try:
                return step, *load(self.folder.path, step=step, ema=not self.args.raw)
            except UvitError:
                if step == steps[-1]:
                    raise
        raise UvitError(f"{self.folder.path} has no checkpoint yet")
