"""What a Hugging Face folder says that it holds, and the model that it does hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from helm_megatron.conversion import to_hf
from helm_megatron.conversion.folder_code import TOKENIZER_MAP, references
from helm_megatron.conversion.own_classes import use_own_classes
from helm_megatron.conversion.source_model import Tensors
from helm_megatron.conversion.tensor_files import TensorFiles
from helm_megatron.conversion.to_hf import ConversionError
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
    experts = sum(config.moe_layers or []) * (config.n_routed_experts or 0)
    if config.num_hidden_layers + experts > len(names):  # before so many are made
        raise ConversionError(
            f"{name} has {len(names)} tensors, too few for the {config.num_hidden_layers} layers "
            f"and {experts} experts of config.json"
        )
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
    for name in files.names():
        if not bool(torch.isfinite(files.read(name)).all()):
            raise ConversionError(f"{folder}: {name} has values that are not finite")
    return config


def load_model(folder: Path, dtype: Any = "auto") -> HelmForCausalLM:
    """The HELM model in a folder, by this project's code: what is in the folder is not run.

    Raises:
        ConversionError, TensorFileError: as `check_folder`.
    """
    config = check_folder(folder)
    options = {"config": config, "dtype": dtype, "use_safetensors": True}
    return HelmForCausalLM.from_pretrained(folder, **options).eval()


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
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare exceptions of a damaged file
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConversionError(f"{folder}: the tokenizer cannot be loaded: {reason}") from error
