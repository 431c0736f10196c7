"""Fine-tunes a trained run to a subject, from one to five images of it, with prior preservation.

    python -m experiments.finetune_lora --workdir=workdirs/emoji_text --images=photos/bear \\
        --prompt="@1 bear" --out=bear.safetensors
    python -m experiments.finetune_lora --workdir=workdirs/emoji_text --subjects=photos \\
        --prompt="@1 {name}" --out=adapters
    python -m experiments.sample --workdir=workdirs/emoji_text --adapter=bear.safetensors \\
        --prompt="@1 bear, twemoji"

With --subjects each sub-folder is a subject, and subjects are trained together. --out is then a
folder with one adapter per subject; rerunning the command trains the missing ones. In a prompt,
{name} is the name of the subject's folder. --out=NAME without .safetensors is a folder in PEFT's
format. --method=full trains all parameters and writes a model, which
`experiments.import_checkpoint` imports into a workdir.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import cli, sampling_flags


def add_flags(parser: cli.Parser) -> None:
    """Adds the flags."""
    parser.add_argument("--workdir", metavar="DIR", required=True, help="of experiments.train")
    parser.add_argument("--step", type=int, help="of the checkpoint; default the newest")
    parser.add_argument("--raw", action="store_true", help="use the raw parameters, not their EMA")
    parser.add_argument("--images", metavar="FOLDER", help="the images of one subject")
    parser.add_argument(
        "--subjects", metavar="FOLDER", help="a folder with one sub-folder per subject"
    )
    parser.add_argument("--prompt", help='caption of the images, such as "@1 bear"')
    parser.add_argument("--class_prompt", help="of the class; default the prompt without @1")
    parser.add_argument("--label", help="the class, if the model has labels")
    parser.add_argument("--out", metavar="FILE", required=True, help="must not exist yet")
    parser.add_argument("--method", default="lora", help="lora or full")
    parser.add_argument("--steps", type=int, default=400, help="of the optimizer")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters")
    parser.add_argument("--alpha", type=float, default=0.0, help="default the rank")
    parser.add_argument(
        "--target", action="append", help="a regex of layers to adapt; may be repeated"
    )
    parser.add_argument(
        "--rate", type=float, default=0.0, help="learning rate; default 2e-4, or 5e-6 for full"
    )
    parser.add_argument("--batch_size", type=int, default=4, help="images of a subject per step")
    parser.add_argument(
        "--prior", type=int, default=200, help="number of class images to sample; 0 for none"
    )
    parser.add_argument(
        "--prior_weight", type=float, default=1.0, help="weight of the loss on class images"
    )
    parser.add_argument("--at_once", type=int, default=16, help="subjects trained together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--autoencoder", metavar="FILE", help="of the latents, if the model has latents"
    )
    parser.add_argument("--text_encoder", metavar="DIR", help="CLIP, if the model has its features")
    parser.add_argument(
        "--image_encoder", metavar="FILE", help="CLIP, if the model has its image features"
    )
    parser.add_argument(
        "--caption_decoder", metavar="DIR", help="if the model generates features of texts"
    )
    sampling_flags.add_attention_flag(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = cli.Parser(__doc__, config=False)
    add_flags(parser)
    args = parser.parse(argv)

    from uvit_jax.errors import UvitError
    from uvit_jax.models.lora import TARGETS, LoraConfig
    from uvit_jax.parallel import cpu
    from uvit_jax.training.finetune import FinetuneConfig

    if bool(args.images) == bool(args.subjects):
        raise UvitError("give the images of one subject with --images, or many with --subjects")
    if args.prior < 0 or args.at_once < 1:
        raise UvitError("--prior must be at least 0 and --at_once at least 1")
    config = FinetuneConfig(
        method=args.method,
        lora=LoraConfig(rank=args.rank, alpha=args.alpha, targets=tuple(args.target or TARGETS)),
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.rate,
        prior_weight=args.prior_weight,
        seed=args.seed,
    )
    folders = _folders(args)
    cpu.keep_freed_memory()
    command = SubjectTuning(args, config)
    todo = {name: out for name, out in _outputs(args, folders).items() if command.is_new(out, name)}
    seconds = 0.0
    names = list(todo)
    for start in range(0, len(names), args.at_once):
        part = {name: folders[name] for name in names[start : start + args.at_once]}
        tuned = command.tune(part)
        seconds += tuned.seconds + tuned.first_step
        for i, name in enumerate(part):
            command.save(todo[name], name, tuned, i)
            print(f"{todo[name]}: loss {tuned.losses[-20:, i].mean():.4f}")
    if len(folders) > len(names):
        print(f"{len(folders) - len(names)} exist already")
    cli.write_json(
        args.json,
        {
            "out": [str(out) for out in todo.values()],
            "base_sha256": command.base,
            "seconds": seconds,
            "config": dataclasses.asdict(config),
        },
    )
    return 0


class SubjectTuning:
    """Fine-tunes the base model of a run to folders of images, and saves the results."""

    def __init__(self, args: Any, config: Any):
        import jax

        from uvit_jax import load
        from uvit_jax.errors import UvitError
        from uvit_jax.evaluation.image_metrics import params_sha256
        from uvit_jax.evaluation.image_sets import image_segment
        from uvit_jax.models.lora import targeted
        from uvit_jax.sampling import decoding
        from uvit_jax.sampling.conditions import conditions_for, text_encoder_of
        from uvit_jax.sampling.given_data import GivenData
        from uvit_jax.training.finetune import Finetuner
        from uvit_jax.training.workdir import Workdir

        self.args, self.config = args, config
        folder = Workdir(args.workdir)
        self.run = folder.read_run()
        model, self.params = load(folder.path, step=args.step, ema=not args.raw)
        # Check the flags before minutes of sampling.
        if config.method == "lora":
            targeted(model.abstract_params, config.lora.targets)
        kinds = {s.kind for s in model.layout.inputs}
        if args.prompt is None and kinds & {"text", "features"}:
            raise UvitError('the model takes text; caption the images, with --prompt="@1 bear"')
        self.model = sampling_flags.with_attention(model, args.attention)
        self.base = params_sha256(self.params)
        self.params = jax.device_put(self.params)  # once, not at every step
        names = ("autoencoder", "text_encoder", "image_encoder", "caption_decoder")
        changes: dict[str, Any] = {k: v for k in names if (v := getattr(args, k))}
        # Of a model that denoises texts too, class images are sampled from their prompts.
        joint = len(model.layout.time_keys) > 1 and not model.layout.conditions
        if joint:
            changes |= {"mode": "text_to_image", "generate": (), "times": {}}
        self.sample = dataclasses.replace(self.run.sample, **changes)
        self.vocabulary = folder.read_vocabulary()
        self._texts, encode = text_encoder_of(self.model.layout, self.vocabulary, self.sample)
        self._conditions = lambda sample: conditions_for(self.model, self._texts, sample, encode)[0]
        config = dataclasses.replace(config, given=self.run.train.given)
        self._tuner = Finetuner(self.model, self.run.diffusion, config)
        self._classes: dict[str, Any] = {}
        self._decoder = decoding.decoder(self.model.layout, self.sample)
        latents = self.run.of_latents
        self._segment = image_segment(self.model, self._decoder, latents=latents)
        self._given = None
        if joint:
            given = model.layout, self.sample, self.vocabulary, self._decoder
            self._given = GivenData(*given)

    def tune(self, folders: dict[str, Path]) -> Any:
        """Fine-tunes to the images in folders, by the names of the subjects."""
        from tqdm import tqdm

        from uvit_jax.training.examples import stacked

        subjects = {name: self._examples(name, folder) for name, folder in folders.items()}
        prior = prior_of = None
        if self.args.prior:
            print(f"sampling {self.args.prior} images of each class", flush=True)
            prompts = [self._prompts(name)[1] for name in folders]
            classes = {prompt: self._class_examples(prompt) for prompt in prompts}
            prior = stacked(classes)
            prior_of = [list(classes).index(prompt) for prompt in prompts]
        with tqdm(total=self.config.steps, desc=", ".join(subjects)[:40], unit="step") as bar:
            return self._tuner(
                self.params,
                stacked(subjects),
                prior=prior,
                prior_of=prior_of,
                progress=lambda step: bar.update(),
            )

    def is_new(self, out: Path, name: str) -> bool:
        """Whether `out` does not exist; UvitError if it is not this subject's adapter."""
        from uvit_jax.errors import UvitError
        from uvit_jax.interop import adapters

        if not out.exists():
            return True
        if self.args.subjects and self.config.method == "lora":
            _, record = adapters.load(out, self.model, any_base=True)
            if record == self._record(name):
                return False
            raise UvitError(f"{out} is of another base model or other flags; give a new --out")
        raise UvitError(f"{out} exists already; give a new name")

    def save(self, out: Path, name: str, tuned: Any, index: int) -> None:
        """Writes the adapter or model of the subject `name`, which is number `index` of `tuned`."""
        from uvit_jax.interop import adapters
        from uvit_jax.interop.exporting import export
        from uvit_jax.training.finetune import tree_index

        trained = tree_index(tuned.trained[self.config.steps], index)
        if self.config.method == "lora":
            adapters.save(out, self.model, trained, self._record(name))
        else:
            export(out, self.model, trained, run=self.run, vocabulary=self.vocabulary)

    def _record(self, name: str) -> Any:
        from uvit_jax.interop.adapters import AdapterRecord

        args, (prompt, class_prompt) = self.args, self._prompts(name)
        training = {
            "steps": self.config.steps,
            "learning_rate": self.config.rate,
            "batch_size": self.config.batch_size,
            "prior": args.prior,
            "prior_weight": self.config.prior_weight,
            "seed": self.config.seed,
            "prompt": prompt,
            "class_prompt": class_prompt,
            "label": args.label,
        }
        return AdapterRecord(lora=self.config.lora, base=self.base, training=training)

    def _prompts(self, name: str) -> tuple[str, str]:
        """The prompts of the subject and of its class."""
        args = self.args
        prompt = (args.prompt or "").replace("{name}", name)
        if args.class_prompt is None:
            return prompt, " ".join(prompt.replace("@1", " ").split())
        return prompt, args.class_prompt.replace("{name}", name)

    def _conditions_for(self, prompt: str, count: int) -> dict[str, Any]:
        """The conditions of `count` images with one prompt, or its data if texts are denoised."""
        if self._given is not None:
            texts = self._given.of_texts((prompt,))
            return {name: value.repeat(count, axis=0) for name, value in texts.items()}
        labels = () if self.args.label is None else (self.args.label,)
        prompts = (prompt,) if self.args.prompt else ()
        return self._conditions(
            dataclasses.replace(self.sample, prompts=prompts, labels=labels, count=count)
        )

    def _examples(self, name: str, folder: Path) -> dict[str, Any]:
        """A subject's images, or their latents, and their conditions, by segment."""
        import numpy as np

        from uvit_jax.data.data_config import DataConfig
        from uvit_jax.data.pipeline import dataset
        from uvit_jax.errors import UvitError
        from uvit_jax.io import to_uint8

        segment = self.model.layout.by_name[self._segment]
        side, channels = segment.shape[-3], segment.shape[-1]
        if self._decoder is not None:
            autoencoder = self._decoder.autoencoder.config
            side, channels = side * autoencoder.factor, autoencoder.image_channels
        data = dataset(
            DataConfig(name="folder", path=str(folder), image_size=side, channels=channels)
        )
        if not 1 <= len(data) <= 100:
            raise UvitError(f"{folder} has {len(data)} images; a subject needs 1 to 100")
        images = np.stack([data.decode(data.source[i])["image"] for i in range(len(data))])
        conditions = self._conditions_for(self._prompts(name)[0], len(images))
        if self._given is not None:
            return self._given.of_images(to_uint8(images)) | conditions
        if self._decoder is not None:
            images = self._decoder.encode(images)
        return {
            s.name: images if s is segment else conditions[s.name] for s in self.model.layout.inputs
        }

    def _class_examples(self, prompt: str) -> dict[str, Any]:
        from uvit_jax.training.examples import class_examples

        if prompt not in self._classes:
            self._classes[prompt] = class_examples(
                self.model,
                self.params,
                self.run.diffusion,
                self.sample,
                self._conditions_for(prompt, self.args.prior),
                count=self.args.prior,
                batch_size=64,
                seed=self.config.seed,
                vocabulary=self._texts,
            )
        return self._classes[prompt]


def _folders(args: Any) -> dict[str, Path]:
    """The subjects' folders by name."""
    from uvit_jax.errors import UvitError

    if args.images:
        path = Path(args.images).expanduser()
        return {path.resolve().name.replace("_", " "): path}
    root = Path(args.subjects).expanduser()
    folders = sorted(p for p in root.glob("*") if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise UvitError(f"{root} has no sub-folders, one per subject; for one subject use --images")
    return {p.name.replace("_", " "): p for p in folders}


def _outputs(args: Any, folders: dict[str, Path]) -> dict[str, Path]:
    """The output path of each subject."""
    out = Path(args.out).expanduser()
    if args.images:
        return dict.fromkeys(folders, out)
    return {name: out / f"{folder.name}.safetensors" for name, folder in folders.items()}


if __name__ == "__main__":
    cli.run(main)
