"""A folder's generation_config.json: what `generate` uses of it where its flags say nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from helm_megatron.conversion.to_hf import ConversionError
from helm_megatron.hf.configuration_helm import HelmConfig

# transformers looks at few of these, and fails on the others, or takes all memory, as it goes.
_COUNTS = {"num_beams": 1, "num_return_sequences": 1} | dict.fromkeys(
    ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "top_k"), 0
)
_MOST = 2**20
_NUMBERS = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SWITCHES = ("do_sample", "use_cache")


def read_generation_config(folder: Path, config: HelmConfig) -> GenerationConfig | None:
    """The settings in a folder; None if there is no such file.

    Raises:
        ConversionError: it cannot be read, or a setting in it is impossible.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConversionError(f"{path} cannot be read: {reason}") from error
    if not isinstance(fields, dict):
        raise ConversionError(f"{path} is no JSON object of names and values")
    for name, value in fields.items():
        if value is not None and (expected := _wrong(name, value, config.vocab_size)):
            raise ConversionError(f"{path}: {name} is {value!r}; it must be {expected}")
    try:
        return GenerationConfig.from_dict(fields)
    except Exception as error:  # transformers' checks raise errors of several kinds
        raise ConversionError(f"{path}: {' '.join(str(error).split())}") from error


def _wrong(name: str, value: Any, vocab_size: int) -> str | None:
    """What a setting should be and is not; None if it is, or is not looked at here."""
    if name in _COUNTS:
        low = _COUNTS[name]
        holds = type(value) is int and low <= value <= _MOST
        return None if holds else f"a whole number from {low} to {_MOST:,}"
    if name in _NUMBERS:
        holds = type(value) in (int, float) and math.isfinite(value) and value >= 0
        return None if holds else "a finite number from 0 on"
    if name in _SWITCHES:
        return None if isinstance(value, bool) else "true or false"
    if name in _TOKENS:
        ids = value if isinstance(value, list) and name == "eos_token_id" and value else [value]
        holds = all(type(token) is int and 0 <= token < vocab_size for token in ids)
        return None if holds else f"a token of the model's, from 0 to {vocab_size - 1:,}"
    return None
