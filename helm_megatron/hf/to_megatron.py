"""Models to Megatron checkpoints, streamed tensor by tensor, then compared by their logits.

They come from a Hugging Face folder, from the authors' release, or are made of Llama's weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from megatron.training.vocab_utils import calculate_padded_vocab_size
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from helm_megatron.checkpoint import write
from helm_megatron.hf import convert, flags, in_megatron, mapping, settings
from helm_megatron.hf import warm_start as llama
from helm_megatron.hf.configuration_helm import HelmConfig
from helm_megatron.hf.convert import ConversionError, Source
from helm_megatron.hf.tensor_files import TensorFiles

_TRACKER = "latest_checkpointed_iteration.txt"


class Tensors(Protocol):
    """Tensors under the Hugging Face model's names, each read when it is asked for."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def read(self, name: str) -> Tensor: ...


def is_helm(folder: Path) -> bool:
    """Whether a Hugging Face folder holds a HELM model.

    Raises:
        ConversionError: it has no readable config.json.
    """
    return _fields(folder).get("model_type") == HelmConfig.model_type


def _fields(folder: Path) -> dict[str, Any]:
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
        return HelmConfig.from_dict(_fields(folder))
    except Exception as error:  # transformers' checks raise errors of several kinds
        reason = str(error).splitlines()[0]
        raise ConversionError(f"{folder}/config.json is not a HELM config: {reason}") from error


def convert_folder(load: Path, save: Path, *, verify: bool = True, divisible_by: int = 128) -> None:
    """Write the model of the Hugging Face folder `load` as a checkpoint for `--load save`.

    `divisible_by` is Megatron's `--make-vocab-size-divisible-by`; padded rows are zero.

    Raises:
        CheckpointError, ConversionError, MappingError, SettingsError, TensorFileError: nothing was
            written.
    """
    config, tensors = read_config(load), TensorFiles(load)
    with convert.new_folder(save) as staging:
        read = _fused(config, tensors, str(load))
        args = write_checkpoint(config, read, staging, divisible_by)
        if verify:
            tokens = convert.text_of_folder(load).sample(config)
            actual = megatron_logits(staging, args, tokens, config.vocab_size)
            convert.compare(str(load), convert.hf_logits(load, tokens), str(save), actual)


def convert_source(
    source: Source, save: Path, *, verify: bool = True, divisible_by: int = 128
) -> None:
    """Write a model whose parameters have Megatron's names as a checkpoint for `--load save`.

    Raises:
        As `convert_folder`.
    """
    with convert.new_folder(save) as staging:
        convert.checked(source)
        args = write_checkpoint(
            source.config, source.parameters.read, staging, divisible_by, source.training_flags
        )
        if verify:
            tokens = source.text.sample(source.config)
            actual = megatron_logits(staging, args, tokens, source.config.vocab_size)
            convert.compare(source.name, source.logits(tokens), str(save), actual)


def warm_start(
    load: Path,
    save: Path,
    *,
    scale: float = llama.DEFAULT_SCALE,
    verify: bool = True,
    divisible_by: int = 128,
) -> None:
    """Write a HELM-D that starts from the Llama-shaped Hugging Face folder `load`.

    How far its logits are from Llama's is printed: they agree in the limit of small scales only.

    Raises:
        As `convert_folder`.
    """
    config, tensors = llama.helm_d(load, scale)
    with convert.new_folder(save) as staging:
        read = _fused(config, tensors, str(load))
        args = write_checkpoint(config, read, staging, divisible_by)
        if verify:
            tokens = convert.text_of_folder(load).sample(config)
            ours = megatron_logits(staging, args, tokens, config.vocab_size)
            model = AutoModelForCausalLM.from_pretrained(load, dtype=torch.float32)
            with torch.no_grad():
                theirs = model(tokens).logits
            off = (ours - theirs).abs().max() / theirs.abs().max()
            agree = (ours.argmax(-1) == theirs.argmax(-1)).float().mean()
            print(
                f"warm start at scale {scale:g}: logits differ by {off:.1e} of the largest, the "
                f"best token is the same at {agree:.1%} of {tokens.shape[1]} positions",
                file=sys.stderr,
            )


def _fused(config: HelmConfig, tensors: Tensors, name: str) -> Callable[[str], Tensor]:
    """Reads parameters under Megatron's names from Hugging Face tensors of this config."""
    expected = convert.shapes_of(config)
    rows = {row.megatron: row for row in mapping.plan(config, expected)}
    convert.check_names(name, tensors.names(), list(expected))
    for tensor, shape in expected.items():
        if tuple(tensors.shape(tensor)) != shape:
            raise ConversionError(
                f"{name}: {tensor} has the shape {tuple(tensors.shape(tensor))}, config.json says "
                f"{shape}"
            )

    def read(parameter: str) -> Tensor:
        row = rows[parameter]
        return row.rows.join(config, [tensors.read(part) for part in row.hf])

    return read


def write_checkpoint(
    config: HelmConfig,
    read: Callable[[str], Tensor],
    folder: Path,
    divisible_by: int,
    training_flags: Sequence[str] = (),
) -> argparse.Namespace:
    """Write a checkpoint of a model of the config, and return its arguments.

    `read` gives each parameter by Megatron's name; the vocabulary's rows are padded here.
    """
    padded = calculate_padded_vocab_size(
        config.vocab_size, divisible_by, tensor_model_parallel_size=1, logging_enabled=False
    )
    args = flags.arguments_of(config, padded, training_flags)
    rows = {row.megatron: row.rows for row in mapping.plan(config, convert.shapes_of(config))}
    progress = tqdm(total=len(rows), desc="parameters", file=sys.stderr, disable=None)

    def read_padded(name: str) -> Tensor:
        tensor = read(name)
        if rows[name] is mapping.VOCABULARY:
            tensor = F.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, padded - len(tensor)))
        progress.update()
        return tensor

    with in_megatron.one_process(), FakeTensorMode():
        # Names and shapes are Megatron's own; no memory is taken for the tensors.
        plan = write.plan(in_megatron.build(settings.one_process_model_config(args)))
    write.write(folder / "release", plan, args, read_padded)
    progress.close()
    (folder / _TRACKER).write_text("release")
    return args


def megatron_logits(
    folder: Path, args: argparse.Namespace, tokens: Tensor, vocab_size: int
) -> Tensor:
    """Logits in fp32 of a written checkpoint, loaded as Megatron does."""
    config = settings.one_process_model_config(settings.in_fp32(args))
    load = in_megatron.from_checkpoint(folder / "release")
    return in_megatron.logits(config, load, tokens, vocab_size)
