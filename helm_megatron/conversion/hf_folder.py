"""What a Hugging Face folder says that it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helm_megatron.conversion.to_hf import ConversionError
from helm_megatron.hf.configuration_helm import HelmConfig


def is_helm(folder: Path) -> bool:
    """Whether a Hugging Face folder holds a HELM model.

    Raises:
        ConversionError: it has no readable config.json.
    """
    return read_fields(folder).get("model_type") == HelmConfig.model_type


def read_fields(folder: Path) -> dict[str, Any]:
    """What config.json says.

    Raises:
        ConversionError: it cannot be read.
    """
    path = folder / "config.json"
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConversionError(f"{path} cannot be read: {reason}") from error


def read_config(folder: Path) -> HelmConfig:
    """The config of a Hugging Face folder of a HELM model.

    Raises:
        ConversionError: there is none, or it is another model's.
    """
    if not is_helm(folder):
        raise ConversionError(f"{folder} does not hold a HELM model")
    try:
        return HelmConfig.from_dict(read_fields(folder))
    except Exception as error:  # transformers' checks raise errors of several kinds
        reason = str(error).splitlines()[0]
        raise ConversionError(f"{folder}/config.json is not a HELM config: {reason}") from error
