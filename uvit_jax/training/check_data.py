"""Whether a data set gives what a model takes: told before anything is written or compiled."""

from uvit_jax.data import pipeline
from uvit_jax.errors import UvitError
from uvit_jax.models.model import Model
from uvit_jax.tokens.layout import PRESENT


def check_data(model: Model, dataset: pipeline.Dataset) -> None:
    """Raises UvitError if a data set does not give what a model's segments need."""
    references = model.layout.input_shapes.get(PRESENT)
    places = dataset.config.places
    brought = (places, 1) if places else (dataset.config.max_subjects, dataset.config.max_views)
    if references is not None and references != brought:
        raise UvitError(
            f"the model takes references of {references[0]} subjects × {references[1]} views, the "
            f"data bring {brought[0]} × {brought[1]}; set config.data.max_subjects and max_views"
        )
    for segment in model.layout.inputs:
        where = f"segment {segment.name!r}"
        if segment.modality == "image" and segment.shape != tuple(dataset.image_shape):
            raise UvitError(
                f"{where} wants pictures of {segment.shape}, the data are {dataset.image_shape}; "
                "set config.data.image_size or the segment's shape"
            )
        if segment.modality == "label":
            if not dataset.num_classes:
                raise UvitError(f"{where}: the data have no labels; set config.data.labels")
            if dataset.num_classes > segment.num_classes:
                raise UvitError(
                    f"{where} has num_classes={segment.num_classes}, "
                    f"the data have {dataset.num_classes} classes"
                )
        if segment.modality == "features" and segment.role != "noisy":
            if dataset.features is None:
                raise UvitError(f"{where}: the data have no features; set config.data.features")
            if dataset.features.null.shape != segment.shape:
                raise UvitError(
                    f"{where} has shape={segment.shape}, the data's text encoder makes "
                    f"{dataset.features.null.shape}; make them equal"
                )
        if segment.modality == "text":
            if dataset.tokenizer is None:
                raise UvitError(f"{where}: the data have no text; set config.data.text=True")
            if (dataset.config.text_length,) != segment.shape:
                raise UvitError(
                    f"{where} has shape={segment.shape}, the data's text_length is "
                    f"{dataset.config.text_length}; make them equal"
                )
            if dataset.tokenizer.vocab_size > segment.vocab_size:
                raise UvitError(
                    f"{where} has vocab_size={segment.vocab_size}, "
                    f"the data's tokenizer has {dataset.tokenizer.vocab_size}"
                )
