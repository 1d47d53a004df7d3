"""What a Hugging Face folder says that it holds, and the model that it does hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from helm_megatron.conversion import to_hf
from helm_megatron.conversion.folder_code import TOKENIZER_MAP, references
from helm_megatron.conversion.generation_config import read_generation_config
from helm_megatron.conversion.own_classes import use_own_classes
from helm_megatron.conversion.source_model import Tensors
from helm_megatron.conversion.tensor_files import TensorFiles
from helm_megatron.conversion.to_hf import ConversionError
from helm_megatron.data.encoders import UNKNOWN
from helm_megatron.hf.configuration_helm import HelmConfig
from helm_megatron.hf.modeling_helm import HelmForCausalLM


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
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConversionError(f"{path} cannot be read: {reason}") from error


def read_config(folder: Path) -> HelmConfig:
    """The config of a Hugging Face folder of a HELM model.

    Raises:
        ConversionError: there is none, or it is another model's, or a setting is impossible.
    """
    if not is_helm(folder):
        raise ConversionError(f"{folder} does not hold a HELM model")
    try:
        return HelmConfig.from_dict(read_fields(folder))
    except Exception as error:  # transformers' checks raise errors of several kinds
        reason = " ".join(str(error).split())
        raise ConversionError(f"{folder}/config.json is not a HELM config: {reason}") from error


def check_tensors(config: HelmConfig, tensors: Tensors, name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the config's tensors, which are those of a Hugging Face folder.

    Raises:
        ConversionError: naming the first that is not.
    """
    names = tensors.names()
    to_hf.check_count(config, len(names), f"{name} has", "config.json")
    expected = to_hf.shapes_of(config)
    to_hf.check_names(name, names, list(expected))
    for tensor, shape in expected.items():
        if tuple(tensors.shape(tensor)) != shape:
            raise ConversionError(
                f"{name}: {tensor} has the shape {tuple(tensors.shape(tensor))}, config.json says "
                f"{shape}"
            )
    return expected


def check_folder(folder: Path) -> HelmConfig:
    """The config of a folder of a HELM model whose tensors are all there and sound.

    Raises:
        ConversionError, TensorFileError: a tensor is missing, unexpected, of another shape than
            config.json says, or not finite.
    """
    config, files = read_config(folder), TensorFiles(folder)
    check_tensors(config, files, str(folder))
    check_finite(files, str(folder))
    return config


def check_finite(tensors: Tensors, name: str) -> None:
    """Refuse tensors with NaN or Inf; reads all of them.

    Raises:
        ConversionError: naming the first.
    """
    for tensor in tensors.names():
        if not bool(torch.isfinite(tensors.read(tensor)).all()):
            raise ConversionError(f"{name}: {tensor} has values that are not finite")


def load_model(folder: Path, dtype: Any = "auto") -> HelmForCausalLM:
    """The HELM model in a folder, by this project's code: what is in the folder is not run.

    Raises:
        ConversionError, TensorFileError: as `check_folder`, or generation_config.json is damaged.
    """
    config = check_folder(folder)
    generation = read_generation_config(folder, config)
    options = {"config": config, "dtype": dtype, "use_safetensors": True}
    model = HelmForCausalLM.from_pretrained(folder, **options).eval()
    if generation is not None:
        model.generation_config = generation
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, without running code that may be there.

    Raises:
        ConversionError: there is none, or it is damaged or needs such code.
    """
    if not (folder / "tokenizer_config.json").is_file():
        raise ConversionError(f"{folder} has no tokenizer: the model was trained on numbers")
    use_own_classes()
    try:
        named = references(folder / "tokenizer_config.json")
        if strangers := [name for name in named if name not in TOKENIZER_MAP["AutoTokenizer"]]:
            raise ValueError(f"it needs code of its own ({strangers[0]})")
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer(UNKNOWN)
        return tokenizer
    except Exception as error:  # tokenizers raises bare exceptions of a damaged file
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConversionError(f"{folder}: the tokenizer cannot be loaded: {reason}") from error
