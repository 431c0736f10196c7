"""The models of a run's image sizes, and the check that a data set has the inputs of a model,
before anything is written or compiled."""

from uvit_jax.data.dataset import Dataset
from uvit_jax.errors import UvitError
from uvit_jax.models.model import Model
from uvit_jax.tokens.layout import PRESENT
from uvit_jax.tokens.segment import Segment


def sized_models(model: Model, dataset: Dataset) -> dict[tuple[int, int], Model]:
    """The model of each of a data set's sizes (H, W), of the same parameters; the first is the
    model itself.

    Raises:
      UvitError: as `check_data`, or if the model's patches do not divide a size.
    """
    first = dataset.image_shape[:2]
    check_data(model, dataset.one_size(first))
    models = {first: model}
    whole = dataset.shapes_at(dataset.sizes[0])
    for size in dataset.by_size().keys() - models.keys():
        shapes = dataset.shapes_at(size)
        names = [s.name for s in model.layout.noisy_images if s.name in shapes]
        try:
            sized = model.resized({name: shapes[name] for name in names})
            absent = whole.keys() - shapes.keys()  # of images among clips, all but the first frame
            models[size] = sized.without_noisy(absent) if absent else sized
        except UvitError as error:
            named = "×".join(map(str, size))
            raise UvitError(f"the data's size {named}: {error}") from None
    return models


def check_data(model: Model, dataset: Dataset) -> None:
    """Raises UvitError if a data set of one size does not have what a model's segments need."""
    references = model.layout.input_shapes.get(PRESENT)
    places = dataset.config.places
    available = (places, 1) if places else (dataset.config.max_subjects, dataset.config.max_views)
    if references is not None and references != available:
        raise UvitError(
            f"the model takes references of {references[0]} subjects × {references[1]} views, but "
            f"the data have {available[0]} × {available[1]}; set config.data.max_subjects and "
            "max_views"
        )
    for segment in model.layout.inputs:
        if problem := _problem(segment, dataset):
            raise UvitError(f"segment {segment.name!r}{problem}")
    inputs = dataset.batch([0])
    for name, shape in model.layout.input_shapes.items():
        if name not in inputs:
            raise UvitError(
                f"the model needs {name!r}, but the data have only {', '.join(sorted(inputs))}"
                f"{_remedy(model.layout.by_name.get(name))}"
            )
        segment = model.layout.by_name.get(name)
        shape = segment.data_shape if segment else shape
        if inputs[name].shape[1:] != shape:
            raise UvitError(
                f"segment {name!r} takes {shape}, and the data have {inputs[name].shape[1:]}; "
                "make them equal: the segment's shape, or the keys of config.data that set it"
            )


def _remedy(segment: Segment | None) -> str:
    if segment is None or segment.kind != "features":
        return ""
    return (
        "; set config.data.features (experiments.encode_text) or config.data.image_features "
        "(experiments.encode_image_features)"
    )


def _problem(segment: Segment, dataset: Dataset) -> str:
    """The error if a data set lacks the inputs of a segment; "" if it has them."""
    images = tuple(dataset.segment_shapes.get(segment.name, dataset.image_shape))
    if segment.kind == "patches" and segment.shape != images:
        return (
            f" has shape={segment.shape}, the images of the data {images}; set "
            "config.data.image_size, or sizes, or the segment's shape"
        )
    if segment.default(1) is not None:
        return ""
    if segment.kind == "label":
        if not dataset.num_classes:
            return ": the data have no labels; set config.data.labels"
        if dataset.num_classes > segment.num_classes:
            classes = dataset.num_classes
            return f" has num_classes={segment.num_classes}, the data have {classes} classes"
    if segment.kind == "features" and segment.role != "noisy":
        if dataset.features is None:
            return ": the data have no features; set config.data.features"
        if dataset.features.null.shape != segment.shape:
            return (
                f" has shape={segment.shape}, the data's text features "
                f"{dataset.features.null.shape}; make them equal"
            )
    if segment.kind in ("text", "codes"):
        if dataset.tokenizer is None:
            return ": the data have no text; set config.data.text=True"
        if (dataset.config.text_length,) != segment.data_shape:
            return (
                f" has shape={segment.shape}, the data's text_length is "
                f"{dataset.config.text_length}; make them equal"
            )
        if dataset.tokenizer.vocab_size > segment.vocab_size:
            return (
                f" has vocab_size={segment.vocab_size}, the data's tokenizer "
                f"{dataset.tokenizer.vocab_size}; raise the segment's"
            )
        attributes = dataset.tokenizer.attributes
        if attributes and attributes != getattr(segment, "attributes", ()):
            return (
                f" must have attributes={attributes}, as described names of the data do; set them, "
                "or config.data.described=0"
            )
    return ""
