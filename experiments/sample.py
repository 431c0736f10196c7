"""Samples from a trained model, as a grid of images and as arrays.

    python -m experiments.sample --workdir=workdirs/quickstart --prompt="grinning face, twemoji"
    python -m experiments.sample --workdir=workdirs/uvit_cifar10-S_2 --count=64 --steps=50 --seed=1
    python -m experiments.sample --workdir=workdirs/mine --prompt="a grey cat" --size=32×48
    python -m experiments.sample --workdir=workdirs/uvit_coco-S_2 --prompt="a red bus" \\
        --text_encoder=clip-vit-large-patch14 --autoencoder=vae.safetensors
    python -m experiments.sample --workdir=workdirs/emoji_text --prompt="@1 bear" \\
        --adapter=bear.safetensors --adapter=style.safetensors:0.5
    python -m experiments.sample --workdir=workdirs/subjects --prompt="@1 left of @2" \\
        --references=photos
    python -m experiments.sample --workdir=workdirs/unidiffuser --mode=image_to_text \\
        --image=photo.jpg --image_encoder=pipeline --caption_decoder=pipeline --autoencoder=vae
    python -m experiments.sample --workdir=workdirs/video_totems --prompt="@1 in the snow" \\
        --references=photos --first_frame=start.png --camera=pan=0.3,roll=6 --extend=2

Sampler, steps, guidance, autoencoder and text encoder are those of the run's config unless flags
override them. --references is a folder with a sub-folder per subject, @1, @2, … in the order of
their names, or with the images of one subject. With --references=none, or an adapter and no
references, a model that takes references does without. --mode says what a model of images and texts
generates from what; captions are written under the grid and to --json. The npz has the image
segments by name, roughly in [-1, 1], and, for latent models, the latents as NAME_latents.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import cli, sampling_flags, video_flags

NO_REFERENCES = "none"
"""The value of --references with which a model that takes some does without."""


def add_flags(parser: cli.Parser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        required=True,
        help="of experiments.train; or shipped:NAME, or a file of experiments.export_checkpoint",
    )
    parser.add_argument("--step", type=int, help="of the checkpoint; default the newest")
    parser.add_argument("--raw", action="store_true", help="use the raw parameters, not their EMA")
    parser.add_argument(
        "--label", action="append", default=[], help="a class, by name or number; may be repeated"
    )
    parser.add_argument("--prompt", action="append", default=[], help="a caption; may be repeated")
    parser.add_argument(
        "--mode",
        help="of a model of images and texts: text_to_image, image_to_text, joint, image, text, "
        "image_variation or text_variation",
    )
    parser.add_argument(
        "--image",
        metavar="FILE",
        action="append",
        default=[],
        help="that a mode is given, or a folder of them; may be repeated",
    )
    parser.add_argument(
        "--data_type", type=int, help="of UniDiffuser v1: 0 web, 1 internal; default 1"
    )
    parser.add_argument(
        "--references",
        metavar="FOLDER",
        help="a folder with a sub-folder per subject, or with one subject's images; or none",
    )
    parser.add_argument(
        "--count", type=int, help="number of samples; default one per label or prompt, or the run's"
    )
    sampling_flags.add_size_flag(parser, "--image_size")
    sampling_flags.add_flags(parser)
    parser.add_argument(
        "--text_encoder", metavar="DIR", help="CLIP, if the model has its text features"
    )
    parser.add_argument(
        "--image_encoder", metavar="FILE", help="CLIP, if the model has its image features"
    )
    parser.add_argument(
        "--caption_decoder", metavar="DIR", help="if the model generates features of texts"
    )
    video_flags.add_flags(parser)
    sampling_flags.add_adapter_flags(parser)
    sampling_flags.add_attention_flag(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", metavar="FILE", help="the PNG, with an .npz beside it; default in the workdir"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = _parse(argv)

    from uvit_jax.errors import UvitError
    from uvit_jax.parallel import cpu
    from uvit_jax.sampling import decoding
    from uvit_jax.sampling.conditions import (
        conditions_for,
        reference_conditions,
        text_encoder_of,
    )
    from uvit_jax.sampling.given_data import GivenData
    from uvit_jax.sampling.reference_folder import from_folder, with_slots
    from uvit_jax.training.stored_run import open_run

    folder = open_run(args.workdir, raw=bool(args.raw))
    run, vocabulary = folder.read_run(), folder.read_vocabulary()
    config = sampling_flags.sample_config(run.sample, args, **_changes(args))
    if args.image and not config.mode:
        raise UvitError(f"--image={args.image[0]} needs --mode, such as image_to_text")
    cpu.keep_freed_memory()
    model, params = _load(folder.path, args)
    decode = decoding.decoder(model.layout, config)
    config, frames = video_flags.task(args, model.layout, config, decode)

    vocabulary, encode_text = text_encoder_of(model.layout, vocabulary, config)
    latents, subjects = run.of_latents, {}
    if model.layout.references and (
        args.references == NO_REFERENCES or (args.adapter and not args.references)
    ):
        model = model.without_references()
        config = dataclasses.replace(config, reference_guidance_scale=0.0)
    elif args.references and args.references != NO_REFERENCES:
        model = with_slots(model, args.references)
        subjects = from_folder(model.layout, args.references, decode, latents=latents)
    given = GivenData(model.layout, config, vocabulary, decode) if config.mode else None
    if given is not None:
        conditions, captions = given.inputs(args.image)
        if subjects:
            views = list(subjects.values())
            conditions |= reference_conditions(model.layout, views, config.count)
        else:  # a model of images and texts, to which they are added, does without
            model = model.without_references()
    else:
        conditions, captions = conditions_for(
            model,
            vocabulary,
            config,
            encode_text,
            list(subjects.values()),
            video_flags.conditions(args, model.layout, config.count),
        )
    conditions |= _data_type(model, args.data_type, config.count)
    if encode_text is None and (given is None or given.of_words):
        _warn_of_unknown_words(vocabulary, config.prompts)

    def sample(config: Any, frames: Any, seed: int) -> dict[str, Any]:
        return sampling_flags.sampled(
            model,
            params,
            run.diffusion,
            config,
            conditions | frames,
            batch_size=args.batch_size,
            seed=seed,
            vocabulary=vocabulary,
        )

    samples = sample(config, frames, args.seed)
    samples = video_flags.clips(args, model.layout, config, samples, frames, sample, decode)
    if given is not None:
        captions = given.captions(samples) or captions
    samples = decoding.decoded(model.layout, samples, decode, latents=latents)

    step = "" if args.step is None else f"_step{args.step}"
    out = Path(args.out).expanduser() if args.out else None
    out = out or _free(folder.samples / f"sample{step}_seed{args.seed}.png")
    shown = {} if given is None else given.pixels
    images = _write(out, model, samples, conditions, captions, shown)
    if given is not None and given.generates_text:
        print(*captions, sep="\n")
    if not images and any(f"{s.name}_latents" in samples for s in model.layout.noisy_images):
        print(
            "these are latents; to decode them, pass their autoencoder with --autoencoder=FILE, or "
            "use uvit_jax.autoencoders.kl.decode_in_batches(…, "
            f"scale={config.latent_scale}) on the npz"
        )
    video = video_flags.write(args, out, samples) if images else ""
    results = {"png": str(out) if images else None, "npz": str(out.with_suffix(".npz"))}
    results |= {"video": video} if video else {}
    results |= {"captions": captions, "references": list(subjects)}
    results |= {"seed": args.seed, "count": config.count}
    results |= sampling_flags.settings(config) | {"adapters": args.adapter}
    folder.upload()
    cli.write_json(args.json, results)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    from uvit_jax.errors import UvitError

    parser = cli.Parser(__doc__, config=False)
    add_flags(parser)
    args = parser.parse(argv)
    if not 0 <= args.seed < 2**32:
        raise UvitError(f"--seed must lie in [0, 2**32), got {args.seed}")
    if args.out and not args.out.endswith(".png"):
        raise UvitError(f"--out={args.out} must end in .png; the arrays get the same name in .npz")
    if args.batch_size < 1:
        raise UvitError(f"--batch_size must be at least 1, got {args.batch_size}")
    return args


def _load(workdir: Path, args: argparse.Namespace) -> tuple[Any, Any]:
    """The model and its parameters, with the flags' attention, image size and adapters."""
    from uvit_jax import load

    model, params = load(workdir, step=args.step, ema=not args.raw)
    model = sampling_flags.with_attention(model, args.attention)
    video_flags.check(args, model.layout)
    model = sampling_flags.at_size(video_flags.resized(args, model), args.size)
    return model, sampling_flags.adapted(model, params, args)


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of the run's `SampleConfig` that flags of this command override."""
    from uvit_jax.sampling.given_data import image_files

    changes: dict[str, Any] = {}
    if args.label or args.prompt:
        changes |= {"labels": tuple(args.label), "prompts": tuple(args.prompt)}
        changes["count"] = max(len(args.label), len(args.prompt))
    if args.mode is not None:
        changes |= {"mode": args.mode, "generate": (), "times": {}}
        changes["count"] = max(len(args.prompt), len(image_files(args.image)), 1)
    if args.count is not None:
        changes["count"] = args.count
    for name in ("text_encoder", "image_encoder", "caption_decoder"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    return changes


def _data_type(model: Any, given: int | None, count: int) -> dict[str, Any]:
    """The input of `--data_type`; UvitError if the model has no such segment."""
    import numpy as np

    from uvit_jax.errors import UvitError

    if given is None:
        return {}
    segment = model.layout.by_name.get("data_type")
    if segment is None:
        raise UvitError(
            f"the model has no segment 'data_type', as UniDiffuser v1 has; drop --data_type={given}"
        )
    if not 0 <= given < segment.num_classes:
        raise UvitError(f"--data_type={given} must lie in [0, {segment.num_classes})")
    return {segment.name: np.full((count,), given, np.int32)}


def _warn_of_unknown_words(vocabulary: Any, prompts: Sequence[str]) -> None:
    if vocabulary.tokenizer is None:
        return
    unknown = [word for prompt in prompts for word in vocabulary.tokenizer.unknown(prompt)]
    if unknown:
        words = ", ".join(dict.fromkeys(unknown))
        print(f"note: words unknown to the model, spelled in bytes: {words}", file=sys.stderr)


def _write(
    out: Path, model: Any, samples: dict, conditions: dict, captions: list[str], shown: dict
) -> list[str]:
    """Writes the npz and a grid of each image segment; returns the names of those segments.

    Args:
      shown: images that are shown where none were generated.
    """
    import numpy as np

    from uvit_jax import io

    out.parent.mkdir(parents=True, exist_ok=True)
    # A text encoder's features follow from the prompts, and are large.
    small = {name: value for name, value in conditions.items() if value.ndim < 3}
    with io.atomic(out.with_suffix(".npz")) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **samples, **small)
    by_name = shown | samples
    names = [s.name for s in model.layout.noisy_images if s.name in by_name]
    for name in names:
        path = out if len(names) == 1 else out.with_stem(f"{out.stem}_{name}")
        images = io.frames_as_images(by_name[name])
        io.save_png(io.grid(images, captions=captions), path)
        print(path)
    print(out.with_suffix(".npz"))
    return names


def _free(path: Path) -> Path:
    """`path`, or the first of `path_2`, `path_3`, … that does not exist yet."""
    candidate, number = path, 1
    while candidate.exists() or candidate.with_suffix(".npz").exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}_{number}")
    return candidate


if __name__ == "__main__":
    cli.run(main)
