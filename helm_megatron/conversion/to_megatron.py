"""Models to Megatron checkpoints, streamed tensor by tensor, then compared by their logits.

They come from a Hugging Face folder, from the authors' release, or are made of Llama's weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from megatron.training.vocab_utils import calculate_padded_vocab_size
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from helm_megatron.conversion import flags, hf_names, in_megatron, settings, to_hf, write
from helm_megatron.conversion import warm_start as llama
from helm_megatron.conversion.defaults import WARM_START_SCALE
from helm_megatron.conversion.hf_folder import check_tensors, read_config
from helm_megatron.conversion.source_model import SourceModel, Tensors
from helm_megatron.conversion.tensor_files import TensorFiles
from helm_megatron.hf.configuration_helm import HelmConfig
from helm_megatron.process_groups import one_process

_TRACKER = "latest_checkpointed_iteration.txt"


def convert_folder(load: Path, save: Path, *, verify: bool = True, divisible_by: int = 128) -> None:
    """Write the model of the Hugging Face folder `load` as a checkpoint for `--load save`.

    `divisible_by` is Megatron's `--make-vocab-size-divisible-by`; padded rows are zero.

    Raises:
        CheckpointError, ConversionError, MappingError, SettingsError, TensorFileError: nothing was
            written.
    """
    config, tensors = read_config(load), TensorFiles(load)
    with to_hf.new_folder(save) as staging:
        read = _fused(config, tensors, str(load))
        args = write_checkpoint(config, read, staging, divisible_by)
        if verify:
            tokens = to_hf.text_of_folder(load).sample(config)
            actual = megatron_logits(staging, args, tokens, config.vocab_size)
            exact = partial(to_hf.hf_logits, load, tokens, torch.float64)
            to_hf.compare(str(load), to_hf.hf_logits(load, tokens), str(save), actual, exact)


def convert_source(
    source: SourceModel, save: Path, *, verify: bool = True, divisible_by: int = 128
) -> None:
    """Write a model whose parameters have Megatron's names as a checkpoint for `--load save`.

    Raises:
        As `convert_folder`.
    """
    with to_hf.new_folder(save) as staging:
        to_hf.checked(source)
        args = write_checkpoint(
            source.config, source.parameters.read, staging, divisible_by, source.training_flags
        )
        if verify:
            tokens = source.text.sample(source.config)
            actual = megatron_logits(staging, args, tokens, source.config.vocab_size)
            to_hf.compare(source.name, source.logits(tokens), str(save), actual)


def warm_start(
    load: Path,
    save: Path,
    *,
    scale: float = WARM_START_SCALE,
    verify: bool = True,
    divisible_by: int = 128,
) -> None:
    """Write a HELM-D that starts from the Llama-shaped Hugging Face folder `load`.

    How far its logits are from Llama's is printed: they agree in the limit of small scales only.

    Raises:
        As `convert_folder`.
    """
    config, tensors = llama.helm_d(load, scale)
    with to_hf.new_folder(save) as staging:
        read = _fused(config, tensors, str(load))
        args = write_checkpoint(config, read, staging, divisible_by)
        if verify:
            tokens = to_hf.text_of_folder(load).sample(config)
            ours = megatron_logits(staging, args, tokens, config.vocab_size)
            model = AutoModelForCausalLM.from_pretrained(
                load, dtype=torch.float32, trust_remote_code=False
            )
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
    plan = hf_names.plan(config, check_tensors(config, tensors, name))
    rules = {rule.ours[0]: rule for rule in plan}

    def read(parameter: str) -> Tensor:
        rule = rules[parameter]
        [whole] = rule.load(config, [tensors.read(part) for part in rule.theirs])
        return whole

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
    count = len(hf_names.plan(config, to_hf.shapes_of(config)))
    progress = tqdm(total=count, desc="parameters", file=sys.stderr, disable=None)

    def read_padded(name: str) -> Tensor:
        tensor = to_hf.finite(read(name), "the model", name)
        if hf_names.is_of_vocabulary(name):
            tensor = F.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, padded - len(tensor)))
        progress.update()
        return tensor

    with one_process(), FakeTensorMode():
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
