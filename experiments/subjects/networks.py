"""The trained networks of a comparison, and how they are sampled.

network = TrainedNetwork("uvit_context_s0", file_or_workdir)
sample = BatchedSampler(jax.vmap(network.sampler(model), (None, 0, 0)), 16)
images = sample(network.params, seeds, network.case_conditions(cases))       # (Q, H, W, C)
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import uvit_jax
from experiments.subjects.evaluation_cases import EvaluationCase, next_group
from uvit_jax.config import to_dict
from uvit_jax.data.sources.worlds.scene_motion import Motion
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.diffusion.solvers.solve import num_evaluations
from uvit_jax.errors import UvitError
from uvit_jax.interop.files import RUN_KEY, VOCABULARY_KEY
from uvit_jax.interop.weight_files import open_weights
from uvit_jax.models.cost import forward_cost
from uvit_jax.models.model import Model, Params, build
from uvit_jax.models.presets.unified import with_references
from uvit_jax.sampling.sampler import SampleConfig, make_sampler, padded_rows
from uvit_jax.tokens.reference_inputs import reference_inputs
from uvit_jax.training import text_pretraining
from uvit_jax.training.run_config import RunConfig, parse_run
from uvit_jax.training.workdir import Workdir

Conditions = Mapping[str, np.ndarray]
CONTROLS = ("camera", "amplitude")
"""Inputs of videos beside text and references."""


class TrainedNetwork:
    """A trained network.

    Args:
      path: a workdir, or a file of `experiments.export_checkpoint`.
      run: its config, whose sampling settings apply; None for those of the path.

    Attributes:
      name: its key in the comparison. run: its config. model; params: the averaged parameters.
      in_context: whether it takes references. style: `uvit` or `dit`.
      own_words: whether subjects have words of their own, such as `@1*`.

    Raises:
      UvitError: if there is no such network, or a file lacks its run's config and vocabulary.
    """

    def __init__(self, name: str, path: Path, run: RunConfig | None = None):
        own, self.vocabulary = _described(path)
        self.name, self.run = name, own
        if run is not None:
            self.run = dataclasses.replace(own, sample=run.sample)
        self.model, params = uvit_jax.load(path)
        self.params: Params = jax.device_put(params)
        texts = [s for s in self.model.layout.conditions if s.kind == "text"]
        self.own_words = any(segment.attributes for segment in texts)
        self.in_context = bool(self.model.layout.references)
        self.style = "dit" if self.model.layout.adaln else "uvit"
        self._models: dict[tuple[int, int], Model] = {}

    def model_for(self, subjects: int, views: int) -> Model:
        """The model with segments for so many references; the only one if it takes none."""
        if not self.in_context:
            return self.model
        most = self.model.layout.max_subjects, self.model.layout.max_views
        if subjects > most[0] or views > most[1]:
            raise UvitError(
                f"network {self.name} has slots for {most[0]} subjects of {most[1]} references "
                f"each, distractors included, and a case has {subjects} of {views}; choose a "
                "setting with fewer"
            )
        if (subjects, views) not in self._models:
            config = with_references(to_dict(self.run.model), subjects, views)
            self._models[subjects, views] = build(config)
        return self._models[subjects, views]

    def conditions(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Token ids of the prompts by text segment, leaves (Q, …)."""
        texts = [s for s in self.model.layout.conditions if s.kind == "text"]
        others = [
            s.name
            for s in self.model.layout.conditions
            if s.role == "condition" and s.kind != "text" and s.name not in CONTROLS
        ]
        if others or not texts:
            raise UvitError(
                f"network {self.name}: a comparison has text and references as conditions, and the "
                f"model {f'also takes {others[0]!r}' if others else 'takes no text'}"
            )
        encode = self.vocabulary.tokenizer.encode
        return {s.name: np.stack([encode(prompt, s.shape[0]) for prompt in prompts]) for s in texts}

    def controls(
        self, motions: Sequence[Motion | None], controls: Sequence[str] = CONTROLS
    ) -> dict[str, np.ndarray]:
        """The camera's paths and the amplitudes of videos, leaves (Q, …), where the network takes
        them; null values for those that are not in `controls`."""
        layout, count = self.model.layout, len(motions)
        found = {n: np.asarray(layout.null(n, count)) for n in CONTROLS if n in layout.by_name}
        if "camera" in found and "camera" in controls:
            T = found["camera"].shape[1]
            found["camera"] = np.stack([motion.camera_path(T) for motion in motions])
        if "amplitude" in found and "amplitude" in controls:
            found["amplitude"] = np.stack([motion.size() for motion in motions])
        return found

    def case_conditions(
        self,
        cases: Sequence[EvaluationCase],
        references: str = "own",
        controls: Sequence[str] = CONTROLS,
    ) -> dict[str, Any]:
        """The conditions of cases of one setting, leaves (Q, …).

        Args:
          references: `own`, `none`, `others`: those of the next group of subjects; or
            `exchanged`: each subject's in the slot of the next one.
          controls: see `controls`.
        """
        motions = [q.motion for q in cases]
        found = self.conditions([q.prompt for q in cases]) | self.controls(motions, controls)
        if self.in_context and references != "none":
            given = [q.references for q in cases]
            if references == "others":
                given = [next_group(cases, i).references for i in range(len(cases))]
            elif references == "exchanged":
                given = [(*one[1:], one[0]) for one in given]
            model = self.model_for(*cases[0].slots)
            found |= reference_inputs(model.layout, given)
        return found

    def sampler(
        self, model: Model, sample: SampleConfig | None = None
    ) -> Callable[[Params, jax.Array, Conditions], jax.Array]:
        """A pure function for one image: (params, seed, conditions without a batch) → (H, W, C); or
        for one video, (T, H, W, C), whose given frames are among the conditions.

        The noise depends on the seed alone, not on the rest of the batch.
        """
        sample = self.run.sample if sample is None else sample
        sample_batch = make_sampler(
            model, self.run.diffusion, sample, batch_size=1, vocabulary=self.vocabulary
        )
        names = [s.name for s in model.layout.noisy_images]

        def one(params: Params, seed: jax.Array, conditions: Conditions) -> jax.Array:
            batch = {key: jnp.asarray(value)[None] for key, value in conditions.items()}
            samples = batch | sample_batch(params, jax.random.key(seed), batch)
            return jnp.concatenate([samples[name][0] for name in names])

        return one

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it generates: an image (H, W, C), or a video (T, H, W, C)."""
        shapes = [s.input_shape for s in self.model.layout.noisy_images]
        if len(shapes) == 1:
            return tuple(shapes[0])
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def parts(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Images (Q, H, W, C), or videos, as the model's noisy inputs."""
        segments = self.model.layout.noisy_images
        if len(segments) == 1:
            return {segments[0].name: images}
        ends = np.cumsum([s.input_shape[0] for s in segments])[:-1]
        parts = np.split(images, ends, axis=1)
        return {s.name: part for s, part in zip(segments, parts, strict=True)}

    @property
    def train_flops(self) -> float:
        """Training FLOPs: three forward passes per example, two FLOPs per multiply-add; with those
        of the text encoder's pretraining."""
        train, pretraining = self.run.train, self.run.text_pretraining
        before = 0.0
        if pretraining.steps:
            segment = self.run.model.segments[pretraining.segment]
            before = text_pretraining.flops(pretraining, segment)
        example = 6.0 * forward_cost(self.run.model, draws=train.draws).total
        return before + example * train.batch_size * train.steps

    def image_flops(self, model: Model, sample: SampleConfig) -> float:
        """FLOPs per image, with guidance and without cached references."""
        steps = num_evaluations(sample.sampler)
        s, s_r = sample.guidance_scale, sample.reference_guidance_scale
        full = 2.0 * forward_cost(model.config).total
        if not model.layout.references:
            return steps * full * (1 + bool(s))
        bare = 2.0 * forward_cost(_bare(model)).total
        # The branches of `classifier_free_branches` whose weight is not 0.
        if sample.guidance_chain == "references":
            return steps * (full + (bool(s) + (s_r != s)) * bare)
        return steps * ((1 + (s_r != s)) * full + bool(s_r) * bare)


class BatchedSampler:
    """A pure function of (params, …rows), compiled for batches of `size` rows and timed.

    Attributes:
      compile_seconds: compilation time. seconds: per row, for each batch. memory_bytes: arguments,
        outputs and temporaries, as the compiler reports them.
    """

    def __init__(self, function: Callable[..., jax.Array], size: int):
        self.size, self.compile_seconds, self.memory_bytes = size, 0.0, 0
        self.seconds: list[float] = []
        self._function, self._compiled = jax.jit(function), None

    def __call__(self, params: Params, *rows: Any) -> np.ndarray:
        """The outputs for all rows, (Q, …). The leaves of `rows` are (Q, …)."""
        count = len(jax.tree.leaves(rows)[0])
        parts = []
        for chosen in padded_rows(count, self.size):
            batch = jax.tree.map(lambda a, c=chosen: np.asarray(a)[c], rows)
            if self._compiled is None:
                self._compile(params, batch)
            began = time.perf_counter()
            parts.append(np.asarray(self._compiled(params, *batch)))
            self.seconds.append((time.perf_counter() - began) / self.size)
        return np.concatenate(parts)[:count]

    def _compile(self, params: Params, batch: Any) -> None:
        began = time.perf_counter()
        self._compiled = self._function.lower(params, *batch).compile()
        self.compile_seconds = time.perf_counter() - began
        found = self._compiled.memory_analysis()
        parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
        self.memory_bytes = int(sum(getattr(found, part, 0) or 0 for part in parts))


def _bare(model: Model) -> Any:
    """The config without references."""
    config = to_dict(model.config)
    names = [s.name for s in model.layout.references]
    segments = {k: v for k, v in config["segments"].items() if k not in names}
    sequence = tuple(n for n in config["sequence"] if n not in names)
    return build({**config, "segments": segments, "sequence": sequence}).config


def _described(path: Path) -> tuple[RunConfig, Vocabulary]:
    """The run and the vocabulary of a workdir or an exported file."""
    if path.is_dir() or not path.exists():
        folder = Workdir(path)
        return folder.read_run(), folder.read_vocabulary()
    metadata = open_weights(path).metadata
    try:
        run = parse_run(json.loads(metadata[RUN_KEY]))
        return run, Vocabulary.from_json(metadata[VOCABULARY_KEY])
    except KeyError:
        raise UvitError(
            f"{path} lacks the config of its run; write it with experiments.export_checkpoint "
            "--workdir"
        ) from None


def check_compute(networks: Sequence[TrainedNetwork], tolerance: float) -> None:
    """Raises UvitError if the networks were not trained with equal compute."""
    flops = {network.name: network.train_flops for network in networks}
    least, most = min(flops, key=flops.get), max(flops, key=flops.get)
    if flops[most] > (1 + tolerance) * flops[least]:
        raise UvitError(
            f"network {most} is trained with {flops[most]:.3g} FLOPs and {least} with "
            f"{flops[least]:.3g}; a fair comparison needs equal compute: change train.steps, or "
            "raise config.tolerance"
        )
