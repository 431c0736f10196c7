"""Draws pictures from a trained model and writes them as a grid and as arrays.

    python -m experiments.sample --workdir=workdirs/quickstart --prompt="grinning face, twemoji"
    python -m experiments.sample --workdir=workdirs/cifar10_uvit_s --count=64 --steps=50 --seed=1
    python -m experiments.sample --workdir=workdirs/coco_uvit_s --prompt="a red bus" \\
        --text_encoder=clip-vit-large-patch14 --autoencoder=vae.safetensors
    python -m experiments.sample --workdir=workdirs/emoji_text --prompt="@1 bear" \\
        --adapter=bear.safetensors --adapter=style.safetensors:0.5
    python -m experiments.sample --workdir=workdirs/subjects --prompt="@1 left of @2" \\
        --references=photos

The sampler, its steps, the guidance, the autoencoder and the text encoder are the run's own unless
flags say otherwise. References are a folder for each subject, @1, @2, … by the folders' names, or
the pictures of one subject. The npz holds each image segment by its name, in about [-1, 1], and
what the model itself drew, if that were latents, as NAME_latents.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import cli, sampling_flags


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = cli.Parser(__doc__, config=False)
    parser.add_argument("--workdir", metavar="DIR", required=True, help="of experiments.train")
    parser.add_argument("--step", type=int, help="which checkpoint; default the newest")
    parser.add_argument("--raw", action="store_true", help="the raw parameters, not their average")
    parser.add_argument(
        "--label", action="append", default=[], help="a class, by name or number; may be repeated"
    )
    parser.add_argument("--prompt", action="append", default=[], help="a caption; may be repeated")
    parser.add_argument(
        "--references", metavar="FOLDER", help="of a folder for each subject, or of one's pictures"
    )
    parser.add_argument(
        "--count", type=int, help="how many pictures; default one a label or prompt, or the run's"
    )
    sampling_flags.add_flags(parser)
    parser.add_argument(
        "--text_encoder", metavar="DIR", help="for a model of a text encoder's features, its CLIP"
    )
    sampling_flags.add_adapter_flags(parser)
    sampling_flags.add_attention_flag(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", metavar="FILE", help="the PNG; an .npz stands beside it; default in the workdir"
    )
    args = parser.parse(argv)

    import jax
    import numpy as np

    from uvit_jax import io, load
    from uvit_jax.errors import UvitError
    from uvit_jax.parallel import cpu
    from uvit_jax.parallel.mesh import MeshConfig, make_mesh
    from uvit_jax.parallel.sharding import jit_replicated, shardings
    from uvit_jax.sampling import decoding
    from uvit_jax.sampling.conditions import conditions_for, nulls_of, text_encoder_of
    from uvit_jax.sampling.reference_folder import from_folder
    from uvit_jax.sampling.sampler import batches, make_sampler
    from uvit_jax.training.run_config import parse_run
    from uvit_jax.training.workdir import Workdir

    if not 0 <= args.seed < 2**32:
        raise UvitError(f"--seed must lie in [0, 2**32), got {args.seed}")
    if args.out and not args.out.endswith(".png"):
        raise UvitError(f"--out={args.out} must end in .png; the arrays stand beside it as .npz")
    if args.batch_size < 1:
        raise UvitError(f"--batch_size must be at least 1, got {args.batch_size}")
    folder = Workdir(args.workdir)
    run = parse_run(folder.read_config())
    vocabulary = folder.read_vocabulary()
    changes: dict[str, Any] = {}
    if args.label or args.prompt:
        changes |= {"labels": tuple(args.label), "prompts": tuple(args.prompt)}
        changes["count"] = max(len(args.label), len(args.prompt))
    if args.count is not None:
        changes["count"] = args.count
    if args.text_encoder is not None:
        changes["text_encoder"] = args.text_encoder
    config = sampling_flags.sample_config(run.sample, args, **changes)
    cpu.keep_freed_memory()
    model, params = load(folder.path, step=args.step, ema=not args.raw)
    model = sampling_flags.with_attention(model, args.attention)
    params = sampling_flags.adapted(model, params, args)

    decode = decoding.decoder(model.layout, config)
    vocabulary, encode_text = text_encoder_of(model.layout, vocabulary, config)
    shown = from_folder(model.layout, args.references, decode) if args.references else {}
    conditions, captions = conditions_for(
        model, vocabulary, config, encode_text, list(shown.values())
    )
    if vocabulary.tokenizer is not None and encode_text is None:
        strange = [w for p in config.prompts for w in vocabulary.tokenizer.unknown(p)]
        if strange:
            strange = ", ".join(dict.fromkeys(strange))
            print(f"note: no known words, spelled in bytes: {strange}", file=sys.stderr)
    nulls = nulls_of(model.layout, vocabulary)
    mesh = make_mesh(MeshConfig())
    draw = jit_replicated(make_sampler(model, run.diffusion, config, nulls), mesh)
    params = jax.device_put(params, shardings(params, mesh))
    parts = []
    with jax.set_mesh(mesh):
        for key_and_batch in batches(conditions, min(args.batch_size, config.count), args.seed):
            parts.append(jax.device_get(draw(params, key_and_batch)))
    samples = {
        name: np.concatenate([part[name] for part in parts])[: config.count] for name in parts[0]
    }
    samples = decoding.pictures(model.layout, samples, decode)

    step = "" if args.step is None else f"_step{args.step}"
    out = Path(args.out).expanduser() if args.out else None
    out = out or _free(folder.samples / f"sample{step}_seed{args.seed}.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    # A text encoder's features follow from the prompts, and are large.
    kept = {name: value for name, value in conditions.items() if value.ndim < 3}
    np.savez_compressed(out.with_suffix(".npz"), **samples, **kept)
    drawn = [s.name for s in model.layout.noisy if s.modality == "image" and s.name in samples]
    for name in drawn:
        path = out if len(drawn) == 1 else out.with_stem(f"{out.stem}_{name}")
        io.save_png(io.grid(samples[name], captions=captions), path)
        print(path)
    print(out.with_suffix(".npz"))
    if not drawn:
        print(
            "these are latents; to see pictures, name the autoencoder that they are of with "
            "--autoencoder=FILE, or decode the npz with "
            f"uvit_jax.autoencoders.kl.decode_in_batches(…, scale={config.latent_scale})"
        )
    results = {"png": str(out) if drawn else None, "npz": str(out.with_suffix(".npz"))}
    results |= {
        "captions": captions,
        "references": list(shown),
        "seed": args.seed,
        "count": config.count,
    }
    results |= sampling_flags.how(config) | {"adapters": args.adapter}
    cli.write_json(args.json, results)
    return 0


def _free(path: Path) -> Path:
    """`path`, or the first of `path_2`, `path_3`, … where nothing stands yet."""
    candidate, number = path, 1
    while candidate.exists() or candidate.with_suffix(".npz").exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}_{number}")
    return candidate


if __name__ == "__main__":
    cli.run(main)
