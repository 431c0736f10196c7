"""What a model is conditioned on when it draws: labels and prompts, or those of a data set.

conditions, captions = conditions_for(model, vocabulary, config)          # of flags, and of
                                                                          # references' pictures
conditions = conditions_like(model, dataset, vocabulary, count, seed)     # of data
conditions = uniform_labels(model, vocabulary, count, seed)               # every class alike
nulls = nulls_of(model.layout, vocabulary)                                # for guidance
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from uvit_jax.data.vocabulary import TextFeatures, Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.tokens.reference_inputs import reference_inputs

if TYPE_CHECKING:
    from uvit_jax.data.pipeline import Dataset
    from uvit_jax.data.sources.latents import LatentDataset
    from uvit_jax.models.model import Model
    from uvit_jax.sampling.sampler import SampleConfig
    from uvit_jax.tokens.layout import Layout

NAMED = ("label", "text", "features")
"""The modalities that a label or a prompt can name."""
EncodeText = Callable[[Sequence[str]], np.ndarray]
"""Texts to a frozen encoder's features, float32 (B, N, F)."""


def nulls_of(layout: Layout, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """The null values that a layout cannot know: those of features, by segment, (N, F)."""
    if vocabulary.features is None:
        return {}
    return {s.name: vocabulary.features.null for s in _feature_segments(layout)}


def null(
    layout: Layout, name: str, batch_size: int, given: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """What stands for "not given" in segment `name`: (batch_size, ...).

    Args:
      given: as `nulls_of` makes it, for segments of features.

    Raises:
      UvitError: if the segment has none, or its features' null was not given.
    """
    if given and name in given:
        return np.broadcast_to(given[name], (batch_size, *given[name].shape))
    if layout.by_name[name].modality == "features":
        raise UvitError(
            f"segment {name!r} holds a frozen encoder's features, and what that encoder makes of "
            "the empty text is unknown, so it cannot be dropped or guided; train on latents with "
            "features (experiments.encode_text), or name the encoder with --text_encoder=FOLDER"
        )
    return layout.null(name, batch_size)


def text_encoder_of(
    layout: Layout, vocabulary: Vocabulary, config: SampleConfig
) -> tuple[Vocabulary, EncodeText | None]:
    """The text encoder that a config names, if any, and the vocabulary with its null.

    Raises:
      UvitError: if the encoder cannot be loaded, or is not the model's.
    """
    if not config.text_encoder:
        return vocabulary, None
    if not _feature_segments(layout):
        raise UvitError(
            f"the text encoder {config.text_encoder} was given, but the model takes no such "
            "encoder's features"
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
            "empty text are others"
        )
    return vocabulary


def conditions_for(
    model: Model,
    vocabulary: Vocabulary,
    config: SampleConfig,
    encode_text: EncodeText | None = None,
    references: Sequence[Sequence[np.ndarray]] = (),
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The conditions that `config.labels` and `config.prompts` name, and a caption for each.

    Args:
      encode_text: for a model whose text is the features of a frozen encoder, that encoder.
      references: for a model that takes them, the subjects of every sample, `@1`, `@2`, … of its
        prompt, each with its views as the model takes pictures (see `references.from_folder`).

    Raises:
      UvitError: for a label, prompt or reference that the model cannot take, or without a
        reference for a model that takes them.
    """
    count = config.count
    conditions: dict[str, np.ndarray] = {"count": np.zeros((count,), np.int32)}
    captions = [""] * count
    inputs = _conditional(model.layout)
    modalities = {s.modality for s in inputs}
    if config.labels and "label" not in modalities:
        raise UvitError("labels were given, but the model has no label segment")
    if config.prompts and not modalities & {"text", "features"}:
        raise UvitError("prompts were given, but the model has no text segment")
    for segment in inputs:
        if segment.modality == "label":
            known = len(vocabulary.classes) or segment.num_classes
            wanted = config.labels or range(known)
            ids = [vocabulary.class_id(w, segment.num_classes) for w in wanted]
            conditions[segment.name] = np.resize(np.asarray(ids, np.int32), count)
            named = [vocabulary.class_name(i) for i in conditions[segment.name]]
        elif segment.is_reference:
            continue
        elif segment.modality in ("text", "features"):
            given = config.prompts or ("",)
            named = [given[i % len(given)] for i in range(count)]
            if segment.modality == "text":
                ids = [vocabulary.encode(p, segment.shape[0]) for p in named]
                conditions[segment.name] = np.stack(ids)
            else:
                rows = _encoded(segment, given, vocabulary, encode_text)
                conditions[segment.name] = rows[np.arange(count) % len(given)]
        else:
            raise UvitError(
                f"segment {segment.name!r} ({segment.modality}) cannot be given by a flag; "
                "call uvit_jax.sampling.sampler.make_sampler from Python"
            )
        captions = [" ".join(filter(None, pair)) for pair in zip(captions, named, strict=True)]
    if references:
        shown = reference_inputs(model.layout, [references])
        conditions |= {name: np.repeat(value, count, axis=0) for name, value in shown.items()}
    elif model.layout.references:
        raise UvitError(
            "the model takes pictures of subjects, and none are given; experiments.sample takes a "
            "folder of them with --references=FOLDER"
        )
    return conditions, captions


def conditions_like(
    model: Model,
    dataset: Dataset | None,
    vocabulary: Vocabulary,
    count: int,
    seed: int,
) -> dict[str, Any]:
    """Conditions for `count` samples, distributed as a data set's.

    They are the conditions of its records in a random order, every record once before any comes
    twice; of several captions, a random one.

    Args:
      dataset: of the run, or another split of it; None if the model has no conditions.
      vocabulary: of the run, which says what the model's labels and tokens mean.

    Returns:
      By segment, leaves (count, ...); `count` zeros (count,) for a model without conditions.
      Features are `FeatureRows`, read from their files when they are indexed. Of a model with
      references all are `ExampleRows`: what a sample is shown and told is of one example.

    Raises:
      UvitError: if the data bring no such condition, or a class is unknown to the model.
    """
    found: dict[str, Any] = {"count": np.zeros((count,), np.int32)}
    conditional = _conditional(model.layout)
    shown = [s.name for s in conditional if s.modality not in NAMED]
    if shown:
        order = _order(np.random.default_rng(seed), len(dataset), count)
        return found | example_rows(model.layout, shown[0], dataset, order)
    for segment in conditional:
        missing = ""
        if segment.modality == "text" and vocabulary.tokenizer is None:
            raise UvitError(f"segment {segment.name!r} takes tokens, and the run has no tokenizer")
        if segment.modality == "label" and not dataset.class_names:
            missing = "classes, which these data do not bring; set config.data.labels"
        if segment.modality == "features" and getattr(dataset, "features", None) is None:
            missing = "features of texts, which these data do not bring; set "
            missing += "config.data.features=True (of latents, see experiments.encode_text)"
        if missing:
            raise UvitError(f"segment {segment.name!r} takes {missing}")
    if not conditional:
        return found
    rng = np.random.default_rng(seed)
    order = _order(rng, len(dataset), count)
    wanted = {s.modality: s for s in conditional}
    labels, texts = [], []
    for index in order.tolist() if {"label", "text"} & wanted.keys() else ():
        record = dataset.source[index]
        if "label" in wanted:
            labels.append(_label(int(record["label"]), dataset, vocabulary, wanted["label"]))
        if "text" in wanted:
            captions = record.get("captions") or ("",)
            caption = captions[rng.integers(len(captions))]
            length = wanted["text"].shape[0]
            texts.append(vocabulary.tokenizer.encode(caption, length, truncate=True))
    if labels:
        found[wanted["label"].name] = np.asarray(labels, np.int32)
    if texts:
        found[wanted["text"].name] = np.stack(texts)
    if "features" in wanted:
        numbers = rng.integers(2**32, size=count)
        found[wanted["features"].name] = FeatureRows(dataset, order, numbers)
    return found


def _order(rng: np.random.Generator, length: int, count: int) -> np.ndarray:
    """`count` of `length` records in a random order, every one once before any comes twice."""
    rounds = -(-count // length)
    return np.concatenate([rng.permutation(length) for _ in range(rounds)])[:count]


def uniform_labels(
    model: Model, vocabulary: Vocabulary, count: int, seed: int
) -> dict[str, np.ndarray]:
    """Conditions for `count` samples of a model of classes: each as often as any other, in a random
    order, as of the published FIDs of ImageNet. It needs no data.

    Args:
      vocabulary: of the run; classes that it does not name were never trained, if it names any.

    Raises:
      UvitError: if the model is conditioned on anything but classes.
    """
    conditional = _conditional(model.layout)
    if [s.modality for s in conditional] != ["label"]:
        found = ", ".join(f"{s.name} ({s.modality})" for s in conditional) or "nothing"
        raise UvitError(f"uniform labels are for models of classes alone; this one takes {found}")
    known = len(vocabulary.classes) or conditional[0].num_classes
    labels = np.random.default_rng(seed).permutation(np.arange(count, dtype=np.int32) % known)
    return {"count": np.zeros((count,), np.int32), conditional[0].name: labels}


def _conditional(layout: Layout) -> list[Any]:
    return [s for s in layout.inputs if s.role != "noisy"]


def _feature_segments(layout: Layout) -> list[Any]:
    return [s for s in _conditional(layout) if s.modality == "features"]


def _encoded(
    segment: Any, texts: Sequence[str], vocabulary: Vocabulary, encode_text: EncodeText | None
) -> np.ndarray:
    """The features of texts, float32 (B, N, F); the empty text alone needs no encoder."""
    known = vocabulary.features
    if encode_text is None:
        if known is not None and not any(texts):
            return np.repeat(known.null[None], len(texts), axis=0)
        raise UvitError(
            f"segment {segment.name!r} takes the features of a text encoder; name a folder of the "
            "CLIP that the model was trained with (tokenizer and weights) with --text_encoder or "
            "config.sample.text_encoder"
        )
    rows = encode_text(texts)
    if rows.shape[1:] != segment.shape:
        raise UvitError(
            f"the text encoder makes features {rows.shape[1:]}, and segment {segment.name!r} takes "
            f"{segment.shape}; give the encoder that the model was trained with"
        )
    return rows


def _label(label: int, dataset: Any, vocabulary: Vocabulary, segment: Any) -> int:
    """The model's number of a data set's class: another split may number them otherwise."""
    name = dataset.class_names[label]
    if not vocabulary.classes:  # imported weights, of which numbers are all that is known
        if label < segment.num_classes:
            return label
        raise UvitError(
            f"class {name!r} is number {label}, and the model has only {segment.num_classes}"
        )
    if name not in vocabulary.classes:
        raise UvitError(f"the model was trained without the class {name!r} of these data")
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
        """The texts behind the features."""
        pairs = zip(self._order.tolist(), self._numbers.tolist(), strict=True)
        return [self._dataset.caption(*pair) for pair in pairs]


def example_rows(
    layout: Layout, shown: str, dataset: Any, order: np.ndarray
) -> dict[str, ExampleRows]:
    """Every condition of a model, from the examples of a data set in some order.

    Args:
      shown: the segment that no label and no text is.

    Raises:
      UvitError: if the data bring one of them not.
    """
    noisy = {s.name for s in layout.noisy}
    brought = dataset.batch([0])
    for name in layout.input_shapes:
        if name not in noisy and name not in brought:
            raise UvitError(
                f"segment {shown!r} cannot be drawn from these data, which bring no {name!r}; draw "
                "samples with experiments.sample or from Python, and give them with --images"
            )
    examples = _Examples(dataset, order)
    names = layout.inputs_in(brought)
    return {name: ExampleRows(examples, name) for name in names if name not in noisy}


class _Examples:
    """A data set's examples in some order, whose inputs are brought together and named apart."""

    def __init__(self, dataset: Any, order: np.ndarray):
        self._dataset, self._order = dataset, order
        self._rows, self._batch = None, {}

    def __len__(self) -> int:
        return len(self._order)

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Every input of the examples in these rows; the last ones are kept."""
        if self._rows is None or not np.array_equal(rows, self._rows):
            self._batch = self._dataset.batch(self._order[rows].tolist())
            self._rows = np.array(rows)
        return self._batch


class ExampleRows:
    """One input of a data set's examples, leaves (count, …): 10,000 samples with four references
    each would be hundreds of megabytes."""

    def __init__(self, examples: _Examples, name: str):
        self._examples, self._name = examples, name

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._examples.batch(rows)[self._name]
