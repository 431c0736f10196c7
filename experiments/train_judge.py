"""Trains a judge of totems, or calibrates judges.

    python -m experiments.train_judge --seed=0 --out=judges/totems_0.safetensors
    python -m experiments.train_judge --calibrate --out=docs/subjects/judges.md

A judge is a network that embeds a subject and classifies its factors. It is trained on training
identities and near misses, which differ from them in one factor; never on identities of validation
or test (any two of which differ in three). The embedding has a cosine softmax loss with a margin
over the identities of a batch, half of which are near misses of the others, in views that show the
difference; the heads are trained on the factors visible in a view.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from experiments import cli
from uvit_jax.errors import UvitError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = cli.Parser(__doc__, config=False)
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    parser.add_argument("--steps", type=int, default=800, help="of the optimizer")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="of the weights (required), or of --calibrate's table",
    )
    parser.add_argument("--calibrate", action="store_true", help="calibrate instead of training")
    parser.add_argument(
        "--judges", nargs="+", default=["0", "1"], help="to calibrate: seeds or files"
    )
    args = parser.parse(argv)
    from experiments.subjects import totem_judge
    from experiments.subjects.judge_training import train
    from uvit_jax.io import write_text

    if args.calibrate:
        from experiments.subjects import judge_calibration

        names = [int(j) if j.isdecimal() else j for j in args.judges]
        table = judge_calibration.calibrate([totem_judge.load(name) for name in names])
        text = judge_calibration.to_markdown(table)
        print(text)
        if args.out:
            write_text(args.out, text)
        cli.write_json(args.json, table)
        return 0
    if args.steps < 1 or args.seed < 0:
        raise UvitError("--steps must be at least 1, and --seed not negative")
    if not args.out:
        raise UvitError("pass --out=FILE.safetensors, where the weights are written")
    out = Path(args.out).expanduser()
    if out.suffix != ".safetensors":
        raise UvitError(f"--out={out} must end in .safetensors")
    if out.exists():
        raise UvitError(f"--out={out} exists; give another file, or move it away")
    began = time.perf_counter()
    judge, loss = train(args.seed, args.steps, lambda judge: totem_judge.save(out, judge))
    totem_judge.save(out, judge)
    seconds = time.perf_counter() - began
    print(f"{out}: {args.steps} steps, loss {loss:.3f}, {seconds:.0f} s")
    cli.write_json(args.json, {"judge": str(out), "loss": loss, "seconds": seconds})
    return 0


if __name__ == "__main__":
    cli.run(main)
