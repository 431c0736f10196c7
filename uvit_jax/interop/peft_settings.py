"""PEFT's `adapter_config.json`: the rank and scale of every layer.

Every setting is applied, concerns training only, or is refused by name if it is not neutral: no
adapter is read in part.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uvit_jax.config import brief
from uvit_jax.errors import UvitError
from uvit_jax.io import read_json

_APPLIED = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    "trainable_token_indices",  # the file's tensors say which
}
# Of training, of quantisation, or descriptions: the same files without them have the same effect.
_TRAINING = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "megatron_core", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "velora_config", "qalora_group_size", "runtime_config"),
}
# The others with their neutral values. An initialization that is not listed subtracts the initial
# update from the base parameters.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    "bias": ("none", None),
}
_REMEDY = "merge it with PEFT (merge_and_unload) and import the merged weights"


class PeftSettings:
    """The settings of an adapter of PEFT's.

    Attributes:
      given: the names of the settings with a value.
      rank: R of layers without a pattern. scale: the factor of their update B A, for LoRA alpha / R
        and for rsLoRA alpha / √R (Kalajdzievski 2023).
    """

    def __init__(self, file: Path):
        """Reads `file`.

        Raises:
          UvitError: if it is damaged, or has a setting that is not supported and not neutral.
        """
        self._file = file
        self._values = read_json(file, remedy="; save the adapter again")
        kind = self._values.get("peft_type", "LORA")
        if kind != "LORA":
            raise UvitError(f"{file}: peft_type is {brief(kind)}, and only 'LORA' is supported")
        for key, value in self._values.items():
            neutral = _NEUTRAL.get(key, (None, False, [], {}, ""))
            known = key in _APPLIED or key in _TRAINING
            if not known and not any(value == n and type(value) is type(n) for n in neutral):
                raise UvitError(f"{file}: {key}={brief(value)} is not supported; {_REMEDY}")
        rslora = self._values.get("use_rslora")
        if rslora is not None and type(rslora) is not bool:
            raise UvitError(f"{file}: use_rslora must be true or false, got {brief(rslora)}")
        self.rank, self.scale = self._size(self._values.get("r"), self._values.get("lora_alpha"))
        self._patterns("rank_pattern"), self._patterns("alpha_pattern")
        self.given = {key for key, value in self._values.items() if value not in (None, [], {})}

    def layer(self, name: str) -> tuple[int, float]:
        """The rank and scale of PEFT's layer `name`.

        Raises:
          UvitError: if they are not numbers.
        """
        sizes = []
        for key, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
            found = (v for p, v in self._patterns(patterns).items() if _matches(p, name))
            sizes.append(next(found, self._values[key]))
        return self._size(*sizes)

    def targets(self, name: str, *, linear: bool = True) -> bool:
        """Whether PEFT's layer `name` is one of `target_modules`.

        Args:
          linear: whether it is a linear layer and not the last, as `all-linear` means; PEFT
            leaves the last out in some models.

        Always false with `layers_to_transform`, which versions of PEFT read in different ways.
        """
        if self._values.get("layers_to_transform") not in (None, []):
            return False
        value = self._values.get("target_modules")
        every = isinstance(value, str) and value.lower() == "all-linear"
        chosen = linear if every else self._named("target_modules", name)
        return chosen and not self._named("exclude_modules", name)

    def _named(self, key: str, name: str) -> bool:
        """Whether the setting `key`, a regex or a list of last parts of names, includes `name`."""
        value = self._values.get(key) or []
        try:
            if isinstance(value, str):
                return re.fullmatch(value, name) is not None
            return any(name == v or name.endswith(f".{v}") for v in value)
        except (re.error, TypeError) as error:
            raise UvitError(
                f"{self._file}: {key}={brief(value)} names no layers: {error}"
            ) from None

    def _patterns(self, key: str) -> Mapping[str, Any]:
        value = self._values.get(key)
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise UvitError(f"{self._file}: {key}={brief(value)} must be an object, name to number")
        try:
            for pattern in value:
                re.compile(pattern)
            return value
        except (re.error, RecursionError, OverflowError) as error:
            raise UvitError(f"{self._file}: {key}={brief(value)} is damaged: {error}") from None

    def _size(self, rank: Any, alpha: Any) -> tuple[int, float]:
        if type(rank) is not int or not 1 <= rank < 2**31:
            raise UvitError(
                f"{self._file}: the rank r must be a positive integer, got {brief(rank)}"
            )
        if type(alpha) not in (int, float) or not abs(alpha) < 1e30:
            raise UvitError(f"{self._file}: lora_alpha must be a finite number, got {brief(alpha)}")
        return rank, alpha / (math.sqrt(rank) if self._values.get("use_rslora") else rank)


def _matches(pattern: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None
