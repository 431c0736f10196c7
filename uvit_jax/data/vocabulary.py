"""The class names, tokenizer and text encoder of a run, saved in its workdir.

With them a trained model is sampled by class name and prompt without its data set.
"""

import base64
import dataclasses
import json
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np

from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.errors import UvitError, nearest


@dataclasses.dataclass(frozen=True, eq=False)
class TextFeatures:
    """The null features of a frozen text encoder, and which encoder it is.

    Attributes:
      null: float32 (N, F), the features of the empty text, for classifier-free guidance.
      encoder: SHA-256 of its weights; "" if unknown.
    """

    null: np.ndarray
    encoder: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`, plain JSON."""
        data = base64.b64encode(np.asarray(self.null, "<f4").tobytes()).decode()
        return {"encoder": self.encoder, "shape": list(self.null.shape), "null": data}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TextFeatures":
        """The inverse of `to_dict`; ValueError, KeyError, TypeError or OverflowError if `data` is
        damaged."""
        null = np.frombuffer(base64.b64decode(data["null"], validate=True), "<f4")
        tokens, width = data["shape"]
        return cls(null.reshape(tokens, width).astype(np.float32), str(data["encoder"]))


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What labels and texts mean to a model.

    Attributes:
      classes: names by class index; empty if unknown.
      tokenizer: of prompts; None if the model takes no token ids.
      features: of the frozen text encoder; None if the model takes no text features.
    """

    classes: tuple[str, ...] = ()
    tokenizer: Tokenizer | None = None
    features: TextFeatures | None = None

    @property
    def null_features(self) -> np.ndarray | None:
        """The text encoder's features of the empty text, (N, F); None if there is no encoder."""
        return None if self.features is None else self.features.null

    def class_id(self, wanted: Any, num_classes: int) -> int:
        """The index of a class given by name or number; UvitError if it is neither.

        Names are compared as Unicode NFC. If any is itself a number, so that one number could mean
        two classes, only names are taken.
        """
        text = unicodedata.normalize("NFC", str(wanted))
        names = [unicodedata.normalize("NFC", name) for name in self.classes]
        if text in names:
            return names.index(text)
        named_by_numbers = any(name.isdecimal() for name in names)
        # More than 18 digits are no class, and Python refuses thousands.
        digits = text.isdecimal() and len(text) <= 18 and not named_by_numbers
        if digits and int(text) < num_classes:
            return int(text)
        text = text if len(text) <= 100 else f"{text[:99]}…"
        hint = nearest(text, self.classes) if self.classes else f"; known: 0 to {num_classes - 1}"
        raise UvitError(f"label {text!r} is not a class of this model{hint}")

    def class_name(self, index: int) -> str:
        """The name of a class, or its number if it has none."""
        return self.classes[index] if 0 <= index < len(self.classes) else str(index)

    def encode(self, prompt: str, length: int) -> np.ndarray:
        """Token ids of a prompt, int32 (length,); UvitError if it is too long."""
        if self.tokenizer is None:
            raise UvitError("this model has no tokenizer; it does not support prompts")
        return self.tokenizer.encode(prompt, length)

    def to_json(self) -> str:
        """The inverse of `from_json`."""
        tokenizer = None if self.tokenizer is None else json.loads(self.tokenizer.to_json())
        data = {"classes": list(self.classes), "tokenizer": tokenizer}
        if self.features is not None:
            data["features"] = self.features.to_dict()
        return json.dumps(data) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """The inverse of `to_json`.

        Raises:
          UvitError: if `text` has another form.
        """
        try:
            data = json.loads(text)
            classes, tokenizer, features = data["classes"], data["tokenizer"], data.get("features")
            if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
                raise TypeError("classes must be a list of names")
            if tokenizer is not None:
                tokenizer = Tokenizer.from_json(json.dumps(tokenizer))
            if features is not None:
                features = TextFeatures.from_dict(features)
        except UvitError:
            raise
        except _DAMAGED as error:
            raise UvitError(f"no vocabulary: {error!r}") from None
        return cls(tuple(classes), tokenizer, features)


# What reading JSON of another form raises.
_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)
