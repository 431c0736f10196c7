"""A model's conditions for sampling: from labels, prompts and references, or from a data set.

conditions, captions = conditions_for(model, vocabulary, config)       # of a SampleConfig
conditions = conditions_like(model, dataset, vocabulary, count, seed)  # distributed as the data
conditions = uniform_labels(model, vocabulary, count, seed)            # every class equally often
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from uvit_jax.data.dataset import Dataset
from uvit_jax.data.sources.latents import LatentDataset
from uvit_jax.data.vocabulary import TextFeatures, Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.models.model import Model
from uvit_jax.sampling.sampler import SampleConfig
from uvit_jax.tokens.layout import Layout
from uvit_jax.tokens.reference_inputs import reference_inputs
from uvit_jax.tokens.segment import Segment

NAMED = ("label", "text", "features")
"""The kinds of segments that a label or a prompt can give."""
EncodeText = Callable[[Sequence[str]], np.ndarray]
"""A frozen encoder: texts → features, float32 (B, N, F)."""


def text_encoder_of(
    layout: Layout, vocabulary: Vocabulary, config: SampleConfig
) -> tuple[Vocabulary, EncodeText | None]:
    """The vocabulary with the null of the text encoder that a config names, and that encoder.

    Raises:
      UvitError: if the encoder cannot be loaded, or is not the model's.
    """
    if not config.text_encoder or config.mode:  # a mode's texts are denoised or given data
        return vocabulary, None
    if not _feature_segments(layout):
        raise UvitError(
            f"the model does not use the features of a text encoder; remove "
            f"--text_encoder={config.text_encoder}"
        )
    from uvit_jax.encoders.clip_weights import load_text_encoder

    encode_text = load_text_encoder(config.text_encoder)
    features = TextFeatures(encode_text([""])[0], getattr(encode_text, "sha256", ""))
    return with_features(vocabulary, features), encode_text


def with_features(vocabulary: Vocabulary, features: TextFeatures) -> Vocabulary:
    """The vocabulary with the features of a text encoder or of data, if it had none.

    Raises:
      UvitError: if it has those of another encoder.
    """
    null, known = features.null, vocabulary.features
    if known is None:
        return dataclasses.replace(vocabulary, features=features)
    # Equal up to storage in half precision; a file's hash changes with its format.
    if (
        null.shape != known.null.shape
        or np.abs(null - known.null).max() > 0.01 * np.abs(null).max()
    ):
        raise UvitError(
            "the text encoder is not the one that the model was trained with: its features of the "
            "empty text differ"
        )
    return vocabulary


def conditions_for(
    model: Model,
    vocabulary: Vocabulary,
    config: SampleConfig,
    encode_text: EncodeText | None = None,
    references: Sequence[Sequence[np.ndarray]] = (),
    further: Mapping[str, np.ndarray] | None = None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The conditions of `config.count` samples, and a caption of each.

    Args:
      config: its labels and prompts.
      encode_text: the frozen text encoder, for a model that uses one's features.
      references: for a model with references, the subjects of every sample, `@1`, `@2`, … of its
        prompt, each with its views as the model takes images (see `reference_folder`).
      further: conditions of other kinds, such as a camera's path, leaves (count, …).

    Raises:
      UvitError: for a label, prompt or reference that the model cannot take, no reference for a
        model with references, or as `check_names` where the model's prompts name subjects.
    """
    count, conditions = config.count, {}
    captions = [""] * count
    kinds = {s.kind for s in model.layout.conditions}
    if config.labels and "label" not in kinds:
        raise UvitError("labels were given, but the model has no label segment")
    if config.prompts and not kinds & {"text", "features"}:
        raise UvitError("prompts were given, but the model has no text segment")
    for segment in model.layout.conditions:
        if segment.kind == "label":
            known = _num_classes(vocabulary, segment)
            named = [vocabulary.class_id(label, segment.num_classes) for label in config.labels]
            ids = named or range(known)
            conditions[segment.name] = np.resize(np.asarray(ids, np.int32), count)
            names = [vocabulary.class_name(i) for i in conditions[segment.name]]
        elif segment.is_reference:
            continue
        elif segment.name in (further or {}):
            conditions[segment.name] = further[segment.name]
            continue
        elif segment.kind in ("text", "features"):
            prompts = config.prompts or ("",)
            names = [prompts[i % len(prompts)] for i in range(count)]
            if segment.kind == "text":
                ids = [vocabulary.encode(prompt, segment.shape[0]) for prompt in names]
                conditions[segment.name] = np.stack(ids)
            else:
                features = _encoded(segment, prompts, vocabulary, encode_text)
                conditions[segment.name] = features[np.arange(count) % len(prompts)]
        else:
            raise UvitError(
                f"segment {segment.name!r} ({segment.kind}) cannot be given by a flag; call "
                "uvit_jax.sampling.sampler.make_sampler from Python"
            )
        captions = [" ".join(filter(None, pair)) for pair in zip(captions, names, strict=True)]
    if references:
        tokenizer = vocabulary.tokenizer
        if tokenizer is not None and "@1" in tokenizer.words:
            for prompt in config.prompts:
                check_names(prompt, len(references))
        conditions |= reference_conditions(model.layout, references, count)
    elif model.layout.references:
        raise UvitError(
            "the model takes reference images, and none were given; use --references=FOLDER of "
            "experiments.sample, or --references=none to do without"
        )
    model.layout.check_ids(conditions)
    return conditions, captions


def reference_conditions(
    layout: Layout, subjects: Sequence[Sequence[np.ndarray]], count: int
) -> dict[str, np.ndarray]:
    """The inputs of `count` samples that have the same subjects, each with its views.

    Raises:
      UvitError: if the model takes fewer.
    """
    inputs = reference_inputs(layout, [subjects])
    return {name: np.repeat(value, count, axis=0) for name, value in inputs.items()}


def check_names(prompt: str, subjects: int) -> None:
    """Raises UvitError if a prompt does not name exactly the subjects that have references.

    Args:
      subjects: their number; they are `@1`, `@2`, ….
    """
    named = {int(number) for number in _NAME.findall(prompt)}
    if lost := sorted(named - set(range(1, subjects + 1))):
        raise UvitError(
            f"the prompt {prompt!r} names @{lost[0]}, which has no references; give it some, or "
            f"name only @1 to @{subjects}"
        )
    if missing := sorted(set(range(1, subjects + 1)) - named):
        raise UvitError(
            f"the prompt {prompt!r} does not name @{missing[0]}, which has references; name it, or "
            "leave its references out"
        )


_NAME = re.compile(r"(?<!\S)@([1-9])(?=[\s,.;:!?)*#]|$)")


def conditions_like(
    model: Model,
    dataset: Dataset | None,
    vocabulary: Vocabulary,
    count: int,
    seed: int,
) -> dict[str, Any]:
    """Conditions of `count` samples, distributed as a data set's.

    They are those of its records in random order, every record once before any is repeated, with a
    random one of several captions.

    Args:
      dataset: of the run, or another split of it; None if the model has no conditions.
      vocabulary: of the run: the meaning of the model's labels and token ids.

    Returns:
      By segment, leaves (count, …). Features are `FeatureRows`, read from their files when indexed.
      For a model with references all are `ExampleRows`: the conditions of a sample are those of one
      example.

    Raises:
      UvitError: if the data lack such a condition, or the model lacks a class.
    """
    conditions: dict[str, Any] = {}
    segments = model.layout.conditions
    if not segments:
        return conditions
    if others := [s.name for s in segments if s.kind not in NAMED]:
        order = _order(np.random.default_rng(seed), len(dataset), count)
        return example_rows(model.layout, others[0], dataset, order)
    for segment in segments:
        _check_data(segment, dataset, vocabulary)
    rng = np.random.default_rng(seed)
    order = _order(rng, len(dataset), count)
    by_kind = {s.kind: s for s in segments}
    if len(by_kind) < len(segments):
        raise UvitError(
            "two segments of one kind cannot be distinguished in the data: "
            f"{', '.join(s.name for s in segments)}; generate samples from Python"
        )
    labels, texts = [], []
    for index in order.tolist() if {"label", "text"} & by_kind.keys() else ():
        record = dataset.source[index]
        if "label" in by_kind:
            labels.append(_label(dataset.label(record), dataset, vocabulary, by_kind["label"]))
        if "text" in by_kind:
            captions = record.get("captions") or ("",)
            caption = captions[rng.integers(len(captions))]
            length = by_kind["text"].shape[0]
            texts.append(vocabulary.tokenizer.encode(caption, length, truncate=True))
    if labels:
        conditions[by_kind["label"].name] = np.asarray(labels, np.int32)
    if texts:
        conditions[by_kind["text"].name] = np.stack(texts)
    if "features" in by_kind:
        numbers = rng.integers(2**32, size=count)
        conditions[by_kind["features"].name] = FeatureRows(dataset, order, numbers)
    return conditions


def uniform_labels(
    model: Model, vocabulary: Vocabulary, count: int, seed: int
) -> dict[str, np.ndarray]:
    """Labels of `count` samples of a class-conditional model: each class equally often, in random
    order, as for the published FIDs of ImageNet. Needs no data.

    Args:
      vocabulary: of the run; classes that it does not name were not trained, if it names any.

    Raises:
      UvitError: if the model has any condition but classes.
    """
    segments = model.layout.conditions
    if [s.kind for s in segments] != ["label"]:
        others = ", ".join(f"{s.name} ({s.kind})" for s in segments) or "no condition"
        raise UvitError(f"--labels=uniform needs a model of classes alone; this one takes {others}")
    known = _num_classes(vocabulary, segments[0])
    labels = np.random.default_rng(seed).permutation(np.arange(count, dtype=np.int32) % known)
    return {segments[0].name: labels}


def _order(rng: np.random.Generator, length: int, count: int) -> np.ndarray:
    """`count` of `length` records in random order, every one once before any is repeated."""
    rounds = -(-count // length)
    return np.concatenate([rng.permutation(length) for _ in range(rounds)])[:count]


def _feature_segments(layout: Layout) -> list[Segment]:
    return [s for s in layout.conditions if s.kind == "features"]


def _check_data(segment: Segment, dataset: Any, vocabulary: Vocabulary) -> None:
    where = f"segment {segment.name!r}"
    if segment.kind == "text" and vocabulary.tokenizer is None:
        raise UvitError(f"{where} takes token ids, and the run has no tokenizer")
    if segment.kind == "label" and not dataset.class_names:
        raise UvitError(f"{where} takes classes, and these data have none; set config.data.labels")
    if segment.kind == "features" and getattr(dataset, "features", None) is None:
        raise UvitError(
            f"{where} takes features of texts, and these data have none; set "
            "config.data.features=True (of latents, see experiments.encode_text)"
        )


def _encoded(
    segment: Segment, texts: Sequence[str], vocabulary: Vocabulary, encode_text: EncodeText | None
) -> np.ndarray:
    """The features of texts, float32 (B, N, F); empty texts need no encoder."""
    known = vocabulary.features
    if encode_text is None:
        if known is not None and not any(texts):
            return np.repeat(known.null[None], len(texts), axis=0)
        raise UvitError(
            f"segment {segment.name!r} takes the features of a text encoder; give the folder of "
            "the CLIP that the model was trained with (tokenizer and weights) with --text_encoder "
            "or config.sample.text_encoder"
        )
    features = encode_text(texts)
    if features.shape[1:] != segment.shape:
        raise UvitError(
            f"the text encoder returns features {features.shape[1:]}, and segment {segment.name!r} "
            f"takes {segment.shape}; give the encoder that the model was trained with"
        )
    return features


def _num_classes(vocabulary: Vocabulary, segment: Segment) -> int:
    """The number of classes that a model was trained on.

    Raises:
      UvitError: if the vocabulary is of another model.
    """
    known = len(vocabulary.classes) or segment.num_classes
    if known > segment.num_classes:
        raise UvitError(
            f"the vocabulary names {known} classes, and segment {segment.name!r} has num_classes="
            f"{segment.num_classes}; restore the vocabulary.json of this run"
        )
    return known


def _label(label: int, dataset: Any, vocabulary: Vocabulary, segment: Segment) -> int:
    """The model's index of a data set's class; another split may number its classes differently."""
    name = dataset.class_names[label]
    if not vocabulary.classes:  # imported weights, whose classes have no names
        if label < segment.num_classes:
            return label
        raise UvitError(
            f"class {name!r} has index {label}, and the model has only {segment.num_classes} "
            "classes"
        )
    if name not in vocabulary.classes:
        raise UvitError(f"the model was not trained on the class {name!r} of these data")
    return vocabulary.classes.index(name)


class FeatureRows:
    """Features (count, N, F) that are read when indexed by an array of rows: 50,000 captions of
    CLIP's would be 12 GB."""

    def __init__(self, dataset: LatentDataset, order: np.ndarray, numbers: np.ndarray):
        self._dataset, self._order, self._numbers = dataset, order, numbers

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        pairs = zip(self._order[rows].tolist(), self._numbers[rows].tolist(), strict=True)
        return np.stack([self._dataset.feature(*pair) for pair in pairs])

    def captions(self) -> list[str]:
        """The encoded texts."""
        pairs = zip(self._order.tolist(), self._numbers.tolist(), strict=True)
        return [self._dataset.caption(*pair) for pair in pairs]


def example_rows(
    layout: Layout, segment: str, dataset: Any, order: np.ndarray
) -> dict[str, "ExampleRows"]:
    """All conditions of a model, from a data set's examples in some order.

    Args:
      segment: one that no label and no prompt can give, for the error message.

    Raises:
      UvitError: if the data lack a condition.
    """
    available = dataset.batch([0])
    for name in layout.condition_shapes:
        if name not in available:
            raise UvitError(
                f"segment {segment!r} cannot be taken from these data, which have no {name!r}; "
                "generate samples with experiments.sample or from Python, and give them with "
                "--images"
            )
    examples = _Examples(dataset, order)
    return {name: ExampleRows(examples, name) for name in layout.conditions_in(available)}


class _Examples:
    """A data set's examples in some order; the inputs of the last rows are cached."""

    def __init__(self, dataset: Any, order: np.ndarray):
        self._dataset, self._order = dataset, order
        self._rows, self._batch = None, {}

    def __len__(self) -> int:
        return len(self._order)

    def batch(self, rows: np.ndarray) -> Mapping[str, np.ndarray]:
        """Every input of the examples in these rows."""
        if self._rows is None or not np.array_equal(rows, self._rows):
            self._batch = self._dataset.batch(self._order[rows].tolist())
            self._rows = np.array(rows)
        return self._batch


class ExampleRows:
    """One input of a data set's examples, leaves (count, …), read when indexed by an array of rows:
    10,000 samples with four references each would be hundreds of megabytes."""

    def __init__(self, examples: _Examples, name: str):
        self._examples, self._name = examples, name

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._examples.batch(rows)[self._name]
