"""What `experiments.finetune_lora` shows while it trains: samples, copies, drift, and costs."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

COPIES, DRIFT = 0.25, 0.1
"""Above this share of copies, and this relative increase of the loss, a warning is printed."""
TIMES = (0.3, 0.5, 0.7)
"""At which the loss on class images is measured."""
RANKS = (4, 8, 16, 32, 64)
CLASS_IMAGES = 16


class TuningWatch:
    """Samples of prompts while subjects are fine-tuned, and whether they overfit.

    Args:
      tuner, params, sample: a `Finetuner`, the base parameters, and a `SampleConfig`.
      conditions: those of `count` samples by subject, leaves (count, …); `captions`: their prompts.
      classes: those of `CLASS_IMAGES` images of the class by subject.
      images: the training images by subject, and other images of its class, (m, …) each.
      decode: samples by segment → images (n, H, W, C) in [-1, 1], or None if they are latents.
      folders: where the grids are written, by subject.
    """

    def __init__(
        self,
        tuner: Any,
        params: Any,
        sample: Any,
        *,
        segment: str,
        conditions: Mapping[str, Mapping[str, Any]],
        captions: Mapping[str, list[str]],
        classes: Mapping[str, Mapping[str, Any]],
        images: Mapping[str, tuple[Any, Any]],
        decode: Callable[[Any], Any],
        folders: Mapping[str, Path],
        count: int,
        columns: int,
        seed: int,
        vocabulary: Any = None,
    ):
        self._tuner, self._params, self._segment = tuner, params, segment
        self._conditions, self._captions = conditions, captions
        self._classes, self._images = classes, images
        self._decode, self._folders, self._columns = decode, folders, columns
        self._count, self._seed = count, seed
        self._options = dict(diffusion=tuner.diffusion, config=sample, vocabulary=vocabulary)
        self._samplers: dict[int, Any] = {}
        self._losses: Any = None
        self._base: dict[str, tuple[Any, float]] = {}
        self.rows: list[dict[str, Any]] = []

    def __call__(self, step: int, trained: Any) -> None:
        """Measures all subjects after a step, and prints warnings to stderr.

        Args:
          trained: leaves (S, …).
        """
        from uvit_jax import io
        from uvit_jax.evaluation.overfitting import copy_rate
        from uvit_jax.training.finetune import tree_index

        for i, (name, conditions) in enumerate(self._conditions.items()):
            params = self._tuner.params(self._params, tree_index(trained, i))
            samples = self._sampled(params, conditions, self._count, self._seed)
            copies = copy_rate(samples[self._segment], *self._images[name])
            class_inputs, base = self._class_loss(name)
            drift = self._loss(params, class_inputs) / base - 1
            shown = self._decode(samples)
            if shown is not None:
                file = self._folders[name] / f"{step:06d}.png"
                grid = io.grid(shown, columns=self._columns, captions=self._captions[name])
                io.save_png(grid, file)
            self.rows.append({"step": step, "subject": name, "copies": copies, "drift": drift})
            self._warn(step, name, copies, drift)

    def _warn(self, step: int, name: str, copies: float | None, drift: float) -> None:
        if copies is not None and copies > COPIES:
            print(
                f"warning: {name}, step {step}: {copies:.0%} of the samples copy a training image; "
                "use fewer --steps, a lower --rate or --rank, or more images",
                file=sys.stderr,
            )
        if drift > DRIFT:
            print(
                f"warning: {name}, step {step}: the loss on images of the class is {drift:.0%} "
                "above that of the base model; raise --prior_weight (with --prior), or use fewer "
                "--steps or a lower --rate",
                file=sys.stderr,
            )

    def _sampled(
        self, params: Any, conditions: Mapping[str, Any], count: int, seed: int
    ) -> dict[str, Any]:
        import jax

        from uvit_jax.sampling.sampler import make_sampler, sample_all

        if count not in self._samplers:
            make = make_sampler(self._tuner.model, batch_size=count, **self._options)
            self._samplers[count] = jax.jit(make)
        sampler = self._samplers[count]
        return sample_all(lambda *b: sampler(params, *b), conditions, count, count, seed)

    def _class_loss(self, name: str) -> tuple[dict[str, Any], float]:
        """Images of the class that were never trained on, with their conditions, and the base
        model's loss on them."""
        if name not in self._base:
            conditions = self._classes[name]
            samples = self._sampled(self._params, conditions, CLASS_IMAGES, self._seed + 1)
            names = self._tuner.model.layout.input_shapes
            inputs = {n: samples.get(n, conditions.get(n)) for n in names}
            self._base[name] = inputs, self._loss(self._params, inputs)
        return self._base[name]

    def _loss(self, params: Any, inputs: Mapping[str, Any]) -> float:
        """The mean loss at `TIMES` with fixed noise."""
        import jax
        import jax.numpy as jnp

        from uvit_jax.training.loss import corrupt, diffusion_loss

        tuner = self._tuner

        def loss(params: Any, inputs: Any, t: Any) -> Any:
            key = jax.random.key(self._seed)
            corrupted = corrupt(key, tuner.model, inputs, tuner.diffusion, t=t)
            prediction = tuner.diffusion.prediction
            losses_B, _ = diffusion_loss(tuner.model, params, *corrupted, prediction=prediction)
            return jnp.mean(losses_B)

        if self._losses is None:
            self._losses = jax.jit(loss)
        return float(sum(self._losses(params, inputs, jnp.float32(t)) for t in TIMES)) / len(TIMES)


def cost_table(model: Any, chosen: Any) -> str:
    """The size of adapters by targets and rank, as a Markdown table; the chosen ones are marked.

    Their share of the parameters is also their share of the operations of the adapted layers.
    """
    import dataclasses

    from uvit_jax.models import lora

    choices = {
        "attention": (lora.ATTENTION,),
        "mlp": (lora.MLP,),
        "attention, mlp": lora.TARGETS,
    }
    names = {targets: name for name, targets in choices.items()}
    choices.setdefault(names.get(chosen.targets, ", ".join(chosen.targets)), chosen.targets)
    lines = [
        "| targets | rank | layers | parameters | of the model | file, MB | with Adam, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, targets in choices.items():
        for rank in sorted({*RANKS, chosen.rank}):
            config = dataclasses.replace(chosen, rank=rank, targets=targets)
            count = lora.num_parameters(model.abstract_params, config)
            layers = len(lora.targeted(model.abstract_params, targets))
            mark = " (chosen)" if config.rank == chosen.rank and targets == chosen.targets else ""
            lines.append(
                f"| {name}{mark} | {rank} | {layers} | {count:,} | {count / model.num_params:.2%} "
                f"| {count * 4e-6:.3g} | {count * 12e-6:.3g} |"
            )
    return "\n".join(lines)
