"""Measures a model of images and captions in both directions, and the pairs that it generates.

    python -m experiments.evaluate_pairs --workdir=workdirs/emoji_joint
    python -m experiments.evaluate_pairs --workdir=DIR --mode=image_to_text --guidance=0

image_to_text: the captions of held-out images, `exact` and by `words`. text_to_image and joint: the
Fréchet distance and the other metrics of `experiments.evaluate` to the training images, and
`match`, the share of images whose caption an independent classifier, fitted to the training pairs,
finds among 100 captions. `match` of real pairs says how good that classifier is. Held out are the
split "held_out" of data with `hold_out`, and "test" of others. Metrics are appended to the
workdir's pairs.jsonl.
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Sequence

import numpy as np

from experiments import cli, sampling_flags

MODES = ("image_to_text", "text_to_image", "joint")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = _arguments(argv)

    from uvit_jax.evaluation.captions import caption_scores
    from uvit_jax.parallel import cpu

    cpu.keep_freed_memory()
    began, pairs = time.perf_counter(), GeneratedPairs(args)
    metrics: dict[str, dict[str, float]] = {}
    if "image_to_text" in args.mode:
        captions = pairs.sampled("image_to_text", "held_out")[1]
        known = pairs.real["held_out"][1]
        metrics["image_to_text"] = caption_scores(captions, known)
        for text, caption in list(zip(known, captions, strict=True))[: args.show]:
            print(f"{text}: {caption}")
    if of_images := [mode for mode in args.mode if mode != "image_to_text"]:
        metrics |= _image_metrics(args, pairs, of_images)
    row = {
        "metrics": metrics,
        "step": pairs.step,
        "count": args.count,
        "held_out": pairs.splits["held_out"],
        "encoder": args.encoder,
        "seed": args.seed,
        **sampling_flags.settings(pairs.config),
        "seconds": round(time.perf_counter() - began, 1),
    }
    pairs.run.folder.outputs.mkdir(parents=True, exist_ok=True)
    with (pairs.run.folder.outputs / "pairs.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    pairs.run.folder.upload()
    cli.write_json(args.json, row)
    for mode, values in metrics.items():
        for name, value in values.items():
            print(f"{mode} {name} {value:.6g}")
    return 0


def _image_metrics(
    args: argparse.Namespace, pairs: "GeneratedPairs", modes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The metrics of modes that generate images, and `match` of the held-out real pairs."""
    from uvit_jax.encoders.image_encoder import encoder
    from uvit_jax.evaluation import image_metrics
    from uvit_jax.evaluation.captions import CaptionMatcher
    from uvit_jax.evaluation.frechet import Moments

    encode = encoder(args.encoder, args.weights)

    def encoded(images: np.ndarray) -> np.ndarray:
        return encode.of_images(list(images), batch_size=args.batch_size)

    def of_features(features: np.ndarray) -> image_metrics.ImageFeatures:
        shuffled = np.random.default_rng(0).permutation(features)
        return image_metrics.ImageFeatures(Moments.of(features).statistics(), shuffled)

    images, training_captions = pairs.real["training"]
    training = encoded(images)
    matcher = CaptionMatcher(training, training_captions)
    match = functools.partial(
        matcher.precision, others=training_captions, candidates=args.candidates
    )
    images, captions = pairs.real["held_out"]
    metrics = {"real": {"match": match(encoded(images), captions)}}
    for mode in modes:
        images, captions = pairs.sampled(mode, "training")
        features = encoded(images)
        metrics[mode] = image_metrics.metrics(encode, of_features(features), of_features(training))
        metrics[mode]["match"] = match(features, captions)
        if mode == "joint":
            known = {*training_captions, *pairs.real["held_out"][1]}
            metrics[mode]["known_captions"] = float(np.mean([c in known for c in captions]))
    return metrics


class GeneratedPairs:
    """The real pairs of a run's data, and what its model generates from them.

    Attributes:
      run: see `sampling_flags.Run`. config: of sampling. step: of the checkpoint.
      splits: of the data, for `training` and `held_out`.
      real: of both, (images, captions): float32 (N, H, W, C) in [-1, 1], and first captions.

    Raises:
      UvitError: if the model does not denoise images and the words of captions, or cannot be read.
    """

    def __init__(self, args: argparse.Namespace):
        from uvit_jax.data import pipeline
        from uvit_jax.data.tokenizer import normalise
        from uvit_jax.errors import UvitError
        from uvit_jax.sampling.modes import modalities

        self.args, self.run = args, sampling_flags.Run(args)
        self.step, model, self._params = self.run.load()
        self._model = sampling_flags.with_attention(model, args.attention)
        segments = modalities(self._model.layout, args.mode[0])
        self._names = {name: own[1][0] for name, own in segments.items()}
        if self._model.layout.by_name[self._names["text"]].kind != "codes":
            raise UvitError(
                f"segment {self._names['text']!r} has features of texts, and this command measures "
                "models that generate the words of captions (kind='codes')"
            )
        data = self.run.data
        held_out = "held_out" if data.hold_out else "test"
        self.splits = {"training": data.split, "held_out": args.held_out or held_out}
        self.config = sampling_flags.sample_config(self.run.config.sample, args)
        self._data, self.real = {}, {}
        for which, split in self.splits.items():
            data = pipeline.dataset(dataclasses.replace(self.run.data, split=split))
            captions = [normalise(data.source[i]["captions"][0]) for i in range(len(data))]
            self._data[which] = data
            self.real[which] = data.batch(range(len(data)))["image"], captions

    def sampled(self, mode: str, which: str) -> tuple[np.ndarray | None, list[str]]:
        """(images, captions) that a mode generates, or is given: for each image of a split its
        caption; `count` images of its captions at random; or `count` pairs."""
        from uvit_jax.sampling.given_data import captions_of

        layout, data = self._model.layout, self._data[which]
        count = len(data) if mode == "image_to_text" else self.args.count
        captions, conditions = [], {}
        if mode == "image_to_text":
            conditions[self._names["image"]] = self.real[which][0]
        elif mode == "text_to_image":
            rng = np.random.default_rng(self.args.seed)
            rows = np.concatenate(
                [rng.permutation(len(data)) for _ in range(-(-count // len(data)))]
            )
            captions = [self.real[which][1][i] for i in rows[:count]]
            segment = layout.by_name[self._names["text"]]
            ids = [data.tokenizer.encode(text, segment.shape[0]) for text in captions]
            conditions[segment.name] = np.asarray(segment.encoded(np.stack(ids)))
        samples = sampling_flags.sampled(
            self._model,
            self._params,
            self.run.config.diffusion,
            dataclasses.replace(self.config, mode=mode, generate=(), times={}, count=count),
            conditions,
            batch_size=self.args.batch_size,
            seed=self.args.seed,
        )
        images = samples.get(self._names["image"])
        return images, captions or captions_of(layout, samples, data.tokenizer)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    from uvit_jax.errors import UvitError

    parser = cli.Parser(__doc__, config=False)
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        required=True,
        help="of experiments.train; or shipped:NAME, or a file of experiments.export_checkpoint",
    )
    parser.add_argument("--step", type=int, help="of the checkpoint; default the newest")
    parser.add_argument("--raw", action="store_true", help="use the raw parameters, not their EMA")
    parser.add_argument(
        "--mode",
        action="append",
        choices=MODES,
        help="what to measure; default all, may be repeated",
    )
    parser.add_argument("--count", type=int, default=1000, help="of generated images and pairs")
    parser.add_argument("--held_out", metavar="SPLIT", help="of the data; default see above")
    parser.add_argument(
        "--candidates", type=int, default=100, help="captions that `match` chooses from"
    )
    parser.add_argument("--show", type=int, default=0, help="print so many generated captions")
    parser.add_argument("--encoder", default="efficientnet_lite0", help="or inception, …")
    parser.add_argument("--weights", metavar="FILE", help="of the encoder")
    sampling_flags.add_flags(parser)
    sampling_flags.add_attention_flag(parser)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse(argv)
    args.mode = args.mode or list(MODES)
    args.data = args.split = None  # of a `sampling_flags.Run`
    for name, least in (("count", 2), ("candidates", 2), ("show", 0), ("seed", 0)):
        if getattr(args, name) < least:
            raise UvitError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    return args


if __name__ == "__main__":
    cli.run(main)
