"""Exports a model's weights: in our own form, with the official names, or for diffusers.

    python -m experiments.export_checkpoint --workdir=workdirs/quickstart --out=model.safetensors
    python -m experiments.export_checkpoint --workdir=workdirs/uvit_l --format=official \\
        --out=uvit_l.pth
    python -m experiments.export_checkpoint --checkpoint=DiT-XL-2-256x256.pt --format=diffusers \\
        --out=dit
    python -m experiments.export_checkpoint --workdir=workdirs/quickstart \\
        --push_to_hub=OWNER/NAME

The weights are the EMA, or with --raw the parameters themselves: float32 bit for bit, or with
--dtype=bfloat16 rounded, in half the bytes. Our own form
supports any model and stores its config and vocabulary; the others support their own families.
--push_to_hub uploads our own form with a model card, which `hf://OWNER/NAME` then loads.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments import cli, hub_flags


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = cli.Parser(__doc__, config=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", metavar="DIR", help="of experiments.train")
    source.add_argument("--checkpoint", metavar="PATH", help="a file or folder of weights")
    parser.add_argument("--out", metavar="PATH", help="must not exist yet")
    hub_flags.add_flags(parser)
    parser.add_argument("--format", default="own", help="own (default), official or diffusers")
    parser.add_argument("--step", type=int, help="of the checkpoint; default the newest")
    parser.add_argument(
        "--raw", action="store_true", help="the raw parameters instead of their EMA"
    )
    parser.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16")
    parser.add_argument("--num_heads", type=int, help="of a --checkpoint, if not implied by shapes")
    parser.add_argument("--num_classes", type=int, help="without the null class")
    parser.add_argument("--image_size", type=int, help="side of the image in pixels or latents")
    parser.add_argument("--text_tokens", type=int, help="of a model of text features")
    args = parser.parse(argv)

    if not (args.out or args.push_to_hub):
        raise cli.UvitError("give --out=PATH, or --push_to_hub=OWNER/NAME, or both")
    if args.push_to_hub and args.format != "own":
        raise cli.UvitError("--push_to_hub uploads our own form; drop --format")

    import uvit_jax
    from uvit_jax.errors import UvitError
    from uvit_jax.interop.exporting import export
    from uvit_jax.remote import MODEL_FILE
    from uvit_jax.training.model_card import model_card, run_metrics
    from uvit_jax.training.workdir import Workdir

    names = ("num_heads", "num_classes", "image_size", "text_tokens")
    hints = {key: getattr(args, key) for key in names}
    run = vocabulary = None
    if args.workdir:
        if any(value is not None for value in hints.values()):
            raise UvitError(f"{', '.join(names)} need --checkpoint; drop them")
        folder_of_run = Workdir(args.workdir)
        run, vocabulary = folder_of_run.read_run(), folder_of_run.read_vocabulary()
    model, params = uvit_jax.load(
        args.workdir or args.checkpoint, step=args.step, ema=not args.raw, **hints
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(args.out or f"{folder}/{MODEL_FILE}").expanduser()
        options = dict(run=run, vocabulary=vocabulary, dtype=args.dtype)
        form = export(out, model, params, args.format, **options)
        size = sum(p.stat().st_size for p in [*out.rglob("*"), out] if p.is_file())
        about = f"{form}, {model.num_params / 1e6:.2f}M parameters, {size / 1e6:.1f} MB"
        if args.out:
            print(f"{args.out}: {about}")
        if args.push_to_hub:
            metrics = run_metrics(folder_of_run) if args.workdir else {}
            card = model_card(args.push_to_hub, model, run, metrics)
            print(f"{hub_flags.push(args, {MODEL_FILE: out}, card)}: {about}")
    cli.write_json(
        args.json,
        {"out": args.out, "hub": args.push_to_hub, "format": args.format, "bytes": size},
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
