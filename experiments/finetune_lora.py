"""Fine-tunes a trained run to a subject, from one to five images of it, with prior preservation.

    python -m experiments.finetune_lora --workdir=workdirs/emoji_text --images=photos/bear \\
        --prompt="@1 bear" --out=bear.safetensors
    python -m experiments.finetune_lora --workdir=workdirs/emoji_text --subjects=photos \\
        --prompt="@1 {name}" --out=adapters
    python -m experiments.sample --workdir=workdirs/emoji_text --adapter=bear.safetensors \\
        --prompt="@1 bear, twemoji"

The caption of an image is the text beside it (`1.txt` for `1.png`), or else --prompt. With
--subjects each sub-folder is a subject, and subjects are trained together. --out is then a
folder with one adapter per subject; rerunning the command trains the missing ones. In a prompt,
{name} is the name of the subject's folder. --out=NAME without .safetensors is a folder in PEFT's
format. A model that takes references is fine-tuned and sampled without them. --words trains the
vector of the subject's own word too, in a model whose captions describe subjects
(config.data.described): --prompt="a large @1* from the front", here and in experiments.sample.
--method=full trains all parameters and writes a model, which `experiments.import_checkpoint`
imports into a workdir.

Every --validation_every steps, samples of --validation_prompt are written beside --out, into the
folder NAME_samples, and copies of training images and drift of the class are measured and warned
of. Rerunning a command that was stopped resumes it. --plan prints the size of adapters by rank and
target.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import cli, hub_flags, sampling_flags

ADAPTER_FILE = "adapter_model.safetensors"
"""The name of an adapter's file on the Hub, as PEFT's."""


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
    parser.add_argument("--images", metavar="FOLDER", help="the images of one subject")
    parser.add_argument(
        "--subjects", metavar="FOLDER", help="a folder with one sub-folder per subject"
    )
    parser.add_argument("--prompt", help='caption of the images, such as "@1 bear"')
    parser.add_argument("--class_prompt", help="of the class; default the prompt without @1")
    parser.add_argument("--label", help="the class, if the model has labels")
    parser.add_argument("--out", metavar="FILE", help="must not exist yet")
    parser.add_argument("--plan", action="store_true", help="print costs, and train nothing")
    hub_flags.add_flags(parser)
    parser.add_argument("--method", default="lora", help="lora or full")
    parser.add_argument("--steps", type=int, default=400, help="of the optimizer")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters")
    parser.add_argument("--alpha", type=float, default=0.0, help="default the rank")
    parser.add_argument(
        "--target",
        action="append",
        help="attention, mlp, or a regex of layers to adapt; may be repeated; default both",
    )
    parser.add_argument(
        "--rate", type=float, default=0.0, help="learning rate; default 2e-4, or 5e-6 for full"
    )
    parser.add_argument(
        "--init", default="gaussian", help="of the adapters: gaussian, or kaiming as PEFT's default"
    )
    parser.add_argument(
        "--words", action="store_true", help="train the word vector of @1* in prompts as well"
    )
    parser.add_argument(
        "--word_rate", type=float, default=10.0, help="of word vectors, relative to --rate"
    )
    parser.add_argument(
        "--drop_text", type=float, default=0.0, help="share of images without their prompt"
    )
    parser.add_argument("--batch_size", type=int, default=4, help="images of a subject per step")
    parser.add_argument(
        "--prior", type=int, default=200, help="number of class images to sample; 0 for none"
    )
    parser.add_argument(
        "--prior_weight", type=float, default=1.0, help="weight of the loss on class images"
    )
    parser.add_argument(
        "--validation_prompt",
        action="append",
        help="of samples during training, with {name}; may be repeated; default the prompt",
    )
    parser.add_argument(
        "--validation_every", type=int, default=0, help="in steps; default only the last"
    )
    parser.add_argument(
        "--validation_count", type=int, default=4, help="samples of each prompt; 0 for none"
    )
    parser.add_argument(
        "--checkpoint_every",
        type=int,
        default=100,
        help="interval in steps of the state from which a rerun resumes; 0 for none",
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

    from experiments.tuning_watch import cost_table
    from uvit_jax.errors import UvitError
    from uvit_jax.models import lora
    from uvit_jax.models.lora import LoraConfig
    from uvit_jax.parallel import cpu
    from uvit_jax.training.finetune import FinetuneConfig

    if bool(args.images) == bool(args.subjects):
        raise UvitError("give the images of one subject with --images, or many with --subjects")
    if not (args.out or args.plan):
        raise UvitError("give the adapter's file with --out=NAME.safetensors")
    if args.push_to_hub and args.subjects:
        raise UvitError("--push_to_hub uploads the adapter of one subject; use --images")
    if args.prior < 0 or args.at_once < 1:
        raise UvitError("--prior must be at least 0 and --at_once at least 1")
    for key in ("validation_every", "validation_count", "checkpoint_every"):
        if getattr(args, key) < 0:
            raise UvitError(f"--{key} must be at least 0, got {getattr(args, key)}")
    names = {"attention": lora.ATTENTION, "mlp": lora.MLP}
    targets = tuple(names.get(t, t) for t in args.target or names)
    config = FinetuneConfig(
        method=args.method,
        lora=LoraConfig(
            rank=args.rank, alpha=args.alpha, targets=targets, init=args.init, words=args.words
        ),
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.rate,
        prior_weight=args.prior_weight,
        word_rate=args.word_rate,
        drop_text=args.drop_text,
        seed=args.seed,
    )
    folders = _folders(args)
    cpu.keep_freed_memory()
    command = SubjectTuning(args, config, folders)
    if args.plan:
        print(cost_table(command.model, config.lora))
        return 0
    todo = {name: out for name, out in _outputs(args, folders).items() if command.is_new(out, name)}
    seconds = 0.0
    names = list(todo)
    for start in range(0, len(names), args.at_once):
        part = {name: todo[name] for name in names[start : start + args.at_once]}
        tuned = command.tune(part)
        seconds += tuned.seconds + tuned.first_step
        for i, name in enumerate(part):
            command.save(todo[name], name, tuned, i)
            print(f"{todo[name]}: loss {tuned.losses[-20:, i].mean():.4f}")
            if args.push_to_hub:
                print(command.push(todo[name], name))
        command.checkpoint(part).remove()
    if len(folders) > len(names):
        print(f"{len(folders) - len(names)} exist already")
    cli.write_json(
        args.json,
        {
            "out": [str(out) for out in todo.values()],
            "base_sha256": command.base,
            "seconds": seconds,
            "validation": command.validation,
            "config": dataclasses.asdict(config),
        },
    )
    return 0


class SubjectTuning:
    """Fine-tunes the base model of a run to folders of images, and saves the results."""

    def __init__(self, args: Any, config: Any, folders: dict[str, Path]):
        import jax

        from uvit_jax import load
        from uvit_jax.evaluation.image_metrics import params_sha256
        from uvit_jax.evaluation.image_sets import image_segment
        from uvit_jax.models.lora import targeted
        from uvit_jax.sampling import decoding
        from uvit_jax.sampling.conditions import conditions_for, text_encoder_of
        from uvit_jax.sampling.given_data import GivenData
        from uvit_jax.training.finetune import Finetuner
        from uvit_jax.training.stored_run import open_run

        self.args, self.config, self._folders = args, config, folders
        self.validation: list[dict[str, Any]] = []
        folder = open_run(args.workdir, raw=bool(args.raw))
        self.run = folder.read_run()
        model, self.params = load(folder.path, step=args.step, ema=not args.raw)
        # Check the flags before minutes of sampling.
        if config.method == "lora":
            targeted(model.abstract_params, config.lora.targets)
        self.model = sampling_flags.with_attention(model, args.attention).without_references()
        self.base = params_sha256(self.params)
        self.params = jax.device_put(self.params)  # once, not at every step
        names = ("autoencoder", "text_encoder", "image_encoder", "caption_decoder")
        changes: dict[str, Any] = {k: v for k in names if (v := getattr(args, k))}
        changes["reference_guidance_scale"] = 0.0  # a model that takes references does without
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
        self._size = self._image_size()
        self._opened: dict[str, Any] = {}
        if {s.kind for s in model.layout.inputs} & {"text", "features"}:
            for name in folders:
                self._check_captions(name)

    def tune(self, outs: dict[str, Path]) -> Any:
        """Fine-tunes to some subjects.

        Args:
          outs: where they will be saved, by their names.
        """
        from tqdm import tqdm

        from uvit_jax.training.examples import stacked

        subjects = {name: self._examples(name) for name in outs}
        prior = prior_of = None
        if self.args.prior:
            print(f"sampling {self.args.prior} images of each class", flush=True)
            prompts = [self._prompts(name)[1] for name in outs]
            classes = {prompt: self._class_examples(prompt) for prompt in prompts}
            prior = stacked(classes)
            prior_of = [list(classes).index(prompt) for prompt in prompts]
        watch = self._watch(outs, subjects) if self.args.validation_count else None
        with tqdm(total=self.config.steps, desc=", ".join(subjects)[:40], unit="step") as bar:
            return self._tuner(
                self.params,
                stacked(subjects),
                prior=prior,
                prior_of=prior_of,
                progress=lambda step: bar.update(step - bar.n),
                watch=watch,
                watch_every=self.args.validation_every,
                checkpoint=self.checkpoint(outs) if self.args.checkpoint_every else None,
            )

    def checkpoint(self, outs: dict[str, Path]) -> Any:
        """The unfinished state of some subjects."""
        from uvit_jax.training.tuning_checkpoint import TuningCheckpoint

        first = next(iter(outs.values()))
        recipe = dataclasses.asdict(self.config)
        identity = {
            name: [recipe, dataclasses.asdict(self._record(name)), self._digest(name)]
            for name in outs
        }
        path = first.with_name(f".{first.stem}.unfinished.safetensors")
        return TuningCheckpoint(path, self.args.checkpoint_every, identity)

    def _watch(self, outs: dict[str, Path], subjects: dict[str, Any]) -> Any:
        """The `TuningWatch` of some subjects."""
        import numpy as np

        from experiments.tuning_watch import CLASS_IMAGES, TuningWatch
        from uvit_jax import io
        from uvit_jax.sampling import decoding

        args, segment = self.args, self._segment
        given = args.validation_prompt
        prompts = {
            name: [p.replace("{name}", name) for p in given]
            if given
            else list(dict.fromkeys(self._captions(name)))[:8]
            for name in outs
        }
        rows, columns = min(len(p) for p in prompts.values()), args.validation_count
        count = rows * columns
        captions = {n: [own[i // columns] for i in range(count)] for n, own in prompts.items()}
        classes = {prompt: value[segment] for prompt, value in self._classes.items()}

        def decode(samples: dict[str, Any]) -> Any:
            images = decoding.decoded(
                self.model.layout, samples, self._decoder, latents=self.run.of_latents
            )
            return io.frames_as_images(images[segment]) if segment in images else None

        watch = TuningWatch(
            self._tuner,
            self.params,
            self.sample,
            segment=segment,
            conditions={n: self._conditions_for(c, count) for n, c in captions.items()},
            captions=captions,
            classes={
                name: self._conditions_for([self._prompts(name)[1]], CLASS_IMAGES) for name in outs
            },
            images={
                name: (value[segment], classes.get(self._prompts(name)[1], np.zeros((0,))))
                for name, value in subjects.items()
            },
            decode=decode,
            folders={name: out.with_name(f"{out.stem}_samples") for name, out in outs.items()},
            count=count,
            columns=columns,
            seed=self.config.seed,
            vocabulary=self._texts,
        )
        watch.rows = self.validation
        return watch

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

    def push(self, out: Path, name: str) -> str:
        """Uploads what was written to `out`; returns its address."""
        from uvit_jax.remote import MODEL_FILE
        from uvit_jax.training.model_card import adapter_card, model_card

        repository = self.args.push_to_hub
        if self.config.method == "full":
            card = model_card(repository, self.model, self.run, {})
            return hub_flags.push(self.args, {MODEL_FILE: out}, card)
        card = adapter_card(repository, self._record(name))
        files = {p.name: p for p in out.iterdir()} if out.is_dir() else {ADAPTER_FILE: out}
        return hub_flags.push(self.args, files, card)

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
        if any(captions := [caption or "" for caption in self._own_captions(name)]):
            training["captions"] = captions
        if self.config.lora.words:
            training["word_rate"] = self.config.word_rate
        if self.config.drop_text:
            training["drop_text"] = self.config.drop_text
        return AdapterRecord(lora=self.config.lora, base=self.base, training=training)

    def _prompts(self, name: str) -> tuple[str, str]:
        """The prompts of the subject and of its class."""
        args = self.args
        prompt = (args.prompt or "").replace("{name}", name)
        if args.class_prompt is None:
            return prompt, " ".join(prompt.replace("@1*", "@1").replace("@1", " ").split())
        return prompt, args.class_prompt.replace("{name}", name)

    def _image_size(self) -> dict[str, Any]:
        """The size and channels of the images, as keys of a `DataConfig`."""
        height, width, channels = self.model.layout.by_name[self._segment].shape[-3:]
        if self._decoder is not None:
            autoencoder = self._decoder.autoencoder.config
            height, width = height * autoencoder.factor, width * autoencoder.factor
            channels = autoencoder.image_channels
        return dict(sizes=((height, width),), channels=channels)

    def _data(self, name: str) -> Any:
        """The data set of a subject's images, opened once."""
        from uvit_jax.data.data_config import DataConfig
        from uvit_jax.data.pipeline import dataset

        if name not in self._opened:
            config = DataConfig(name="folder", path=str(self._folders[name]), **self._size)
            self._opened[name] = dataset(config)
        return self._opened[name]

    def _own_captions(self, name: str) -> list[str | None]:
        """The texts beside a subject's images."""
        source = self._data(name).source
        return [source.caption(file) for file in source.files]

    def _captions(self, name: str) -> list[str]:
        """The caption of each of a subject's images."""
        prompt = self._prompts(name)[0]
        return [prompt if text is None else text for text in self._own_captions(name)]

    def _check_captions(self, name: str) -> None:
        from uvit_jax.errors import UvitError

        args = self.args
        own = self._own_captions(name)
        if args.prompt is None and None in own:
            file = self._data(name).source.files[own.index(None)]
            raise UvitError(
                f"the model takes text, and {file} has no caption; write one beside it, as "
                f'{file.with_suffix(".txt")}, or give --prompt="@1 bear"'
            )
        if args.prompt is None and args.class_prompt is None and args.prior:
            raise UvitError(
                "the images of the class need a caption; give --class_prompt, or --prior=0"
            )

    def _digest(self, name: str) -> str:
        """A hash of a subject's images."""
        import hashlib

        data = self._data(name)
        digest = hashlib.sha256()
        for i in range(len(data)):
            digest.update(data.source[i]["image"])
        return digest.hexdigest()

    def _conditions_for(self, captions: Sequence[str], count: int) -> dict[str, Any]:
        """The conditions of `count` images with captions in turn, or their data if texts are
        denoised."""
        import numpy as np

        if self._given is not None:
            texts = self._given.of_texts(tuple(captions))
            rows = np.arange(count) % len(captions)
            return {name: value[rows] for name, value in texts.items()}
        labels = () if self.args.label is None else (self.args.label,)
        prompts = tuple(captions) if any(captions) else ()
        return self._conditions(
            dataclasses.replace(self.sample, prompts=prompts, labels=labels, count=count)
        )

    def _examples(self, name: str) -> dict[str, Any]:
        """A subject's images, or their latents, and their conditions, by segment."""
        import numpy as np

        from uvit_jax.errors import UvitError
        from uvit_jax.io import to_uint8

        data, segment = self._data(name), self.model.layout.by_name[self._segment]
        if not 1 <= len(data) <= 100:
            raise UvitError(
                f"{self._folders[name]} has {len(data)} images; a subject needs 1 to 100"
            )
        images = np.stack([data.decode(data.source[i])["image"] for i in range(len(data))])
        conditions = self._conditions_for(self._captions(name), len(images))
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
                self._conditions_for([prompt], self.args.prior),
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
