"""Flags that `experiments.sample`, `experiments.evaluate` and `experiments.finetune_lora` share.

add_flags(parser)
config = sample_config(run.sample, args, count=16)    # the run's, with the flags' values
model = with_attention(model, args.attention)         # if the run's is not available here
samples, record = Run(args).samples(mesh)             # with the data's conditions, to be evaluated
"""

import argparse
import dataclasses
import math
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
        "sde_dpm_solver_pp or unipc (see docs/sampling.md); default the run's",
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


class Run:
    """The run of `args.workdir` for `experiments.evaluate`: its data and its samples."""

    def __init__(self, args: argparse.Namespace):
        from uvit_jax.training.workdir import Workdir

        self.args = args
        self.folder = Workdir(args.workdir)
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
        if args.split and data.path:
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

        if self._dataset is None:
            self._dataset = pipeline.dataset(self.data)
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
        step, model, params = self._load()
        model = with_attention(model, args.attention)
        sample = sample_config(self.config.sample, args, count=count, labels=(), prompts=())
        decoder = decoding.decoder(model.layout, sample)
        image_sets.image_segment(model, decoder, latents=self.config.of_latents)
        conditions, vocabulary, source = self.conditions(model, count)
        record = {
            "source": str(self.folder.path),
            "step": step,
            "ema": not args.raw,
            "params_sha256": image_metrics.params_sha256(params),
            "conditions": source,
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
            name=f"{self.folder.path} at step {step}",
            vocabulary=vocabulary,
            decoder=decoder,
        )
        return samples, record

    def _load(self) -> tuple[int, Any, Any]:
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
        raise UvitError(f"{self.folder.checkpoints} has no checkpoint yet")
