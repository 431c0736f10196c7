"""Exports a model's weights: in our own form, with the official names, or for diffusers.

    python -m experiments.export_checkpoint --workdir=workdirs/quickstart --out=model.safetensors
    python -m experiments.export_checkpoint --workdir=workdirs/uvit_l --format=official \\
        --out=uvit_l.pth
    python -m experiments.export_checkpoint --checkpoint=DiT-XL-2-256x256.pt --format=diffusers \\
        --out=dit

The weights are float32, bit for bit: the EMA, or with --raw the parameters themselves. Our own form
supports any model and stores its config and vocabulary; the others support their own families.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = cli.Parser(__doc__, config=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", metavar="DIR", help="of experiments.train")
    source.add_argument("--checkpoint", metavar="PATH", help="a file or folder of weights")
    parser.add_argument("--out", metavar="PATH", required=True, help="must not exist yet")
    parser.add_argument("--format", default="own", help="own (default), official or diffusers")
    parser.add_argument("--step", type=int, help="of the checkpoint; default the newest")
    parser.add_argument(
        "--raw", action="store_true", help="the raw parameters instead of their EMA"
    )
    parser.add_argument("--num_heads", type=int, help="of a --checkpoint, if not implied by shapes")
    parser.add_argument("--num_classes", type=int, help="without the null class")
    parser.add_argument("--image_size", type=int, help="side of the image in pixels or latents")
    parser.add_argument("--text_tokens", type=int, help="of a model of text features")
    args = parser.parse(argv)

    import uvit_jax
    from uvit_jax.errors import UvitError
    from uvit_jax.interop.exporting import export
    from uvit_jax.training.workdir import Workdir

    names = ("num_heads", "num_classes", "image_size", "text_tokens")
    hints = {key: getattr(args, key) for key in names}
    run = vocabulary = None
    if args.workdir:
        if any(value is not None for value in hints.values()):
            raise UvitError(f"{', '.join(names)} need --checkpoint; drop them")
        folder = Workdir(args.workdir)
        run, vocabulary = folder.read_run(), folder.read_vocabulary()
    model, params = uvit_jax.load(
        args.workdir or args.checkpoint, step=args.step, ema=not args.raw, **hints
    )
    form = export(args.out, model, params, args.format, run=run, vocabulary=vocabulary)
    size = sum(
        p.stat().st_size for p in [*Path(args.out).rglob("*"), Path(args.out)] if p.is_file()
    )
    print(f"{args.out}: {form}, {model.num_params / 1e6:.2f}M parameters, {size / 1e6:.1f} MB")
    cli.write_json(args.json, {"out": args.out, "format": args.format, "bytes": size})
    return 0


if __name__ == "__main__":
    cli.run(main)
