"""What has Megatron's names: a Megatron checkpoint, or one of the authors' release."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.training.checkpointing import get_checkpoint_name, get_checkpoint_tracker_filename
from megatron.training.vocab_utils import calculate_padded_vocab_size

from helm_megatron.builder import HelmModelConfig, model_config
from helm_megatron.checkpoint import compatibility
from helm_megatron.checkpoint.files import CheckpointError
from helm_megatron.conversion import hf_names, in_megatron, settings, to_hf
from helm_megatron.conversion.release import arguments
from helm_megatron.conversion.release.config import config_from_release, is_dense
from helm_megatron.conversion.release.files import ReleasedTensors, check_tensors, read_release
from helm_megatron.conversion.release.names import to_release
from helm_megatron.conversion.release.state import check_arguments, rotary_base
from helm_megatron.conversion.source_model import SourceModel
from helm_megatron.conversion.stored import StoredParameters
from helm_megatron.conversion.text import Text, tokenizer_type_of
from helm_megatron.conversion.to_hf import ConversionError
from helm_megatron.hf.configuration_helm import HelmConfig
from helm_megatron.transformer_config import HelmTransformerConfig


def checkpoint_folder(load: Path, step: int | None = None) -> Path:
    """The folder of one iteration: `load` itself, the given step, or what the tracker file names.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    if (load / ".metadata").is_file():
        return load
    if step is not None:
        return Path(get_checkpoint_name(str(load), step, return_base_dir=True))
    tracker = Path(get_checkpoint_tracker_filename(str(load)))
    latest = tracker.read_text().strip() if tracker.is_file() else ""
    if latest != "release" and not latest.isdecimal():
        raise CheckpointError(f"--load {load}: no checkpoint: there is no iteration in {tracker}")
    release = latest == "release"
    iteration = 0 if release else int(latest)
    return Path(get_checkpoint_name(str(load), iteration, release, return_base_dir=True))


def megatron(
    load: Path, *, step: int | None = None, tokenizer_model: str | None = None
) -> SourceModel:
    """A checkpoint of pretrain_helm.py, of any layout.

    `tokenizer_model` replaces the path in the checkpoint's arguments.

    Raises:
        CheckpointError, ConversionError, SettingsError, TextError: it cannot be exported.
    """
    folder = checkpoint_folder(load, step)
    parameters = StoredParameters(folder)
    args = compatibility.saved_args(folder)
    if args is None or not hasattr(args, "geometry"):
        raise ConversionError(f"{folder} is not a checkpoint of pretrain_helm.py")
    # The arguments have the one at which the run started.
    args.iteration = dist_checkpointing.load_common_state_dict(str(folder))["iteration"]
    text = text_of(args, tokenizer_model)
    vocab_size, ids = text.vocabulary() if text.has_tokenizer else (args.vocab_size, {})
    rows = parameters.shape("embedding.word_embeddings.weight")[0]
    if vocab_size is None or (text.has_tokenizer and not _fits(vocab_size, rows, args)):
        raise ConversionError(
            f"{folder} has {rows} embeddings, the tokenizer {vocab_size} tokens: not its own; "
            "--tokenizer-model names the right one"
        )
    model = settings.one_process_model_config(args)
    in_fp32 = settings.one_process_model_config(settings.in_fp32(args))
    return SourceModel(
        str(folder),
        parameters,
        settings.hf_config(model, vocab_size, **ids),
        text,
        lambda tokens: in_megatron.logits(
            in_fp32, in_megatron.from_checkpoint(folder), tokens, vocab_size
        ),
        args,
    )


def _fits(vocab_size: int, rows: int, args: argparse.Namespace) -> bool:
    """Whether a checkpoint's embeddings are so many, padded as its arguments say."""
    if vocab_size > rows:
        return False
    multiple = args.make_vocab_size_divisible_by, args.tensor_model_parallel_size
    padded = calculate_padded_vocab_size(vocab_size, *multiple, logging_enabled=False)
    # An imported checkpoint does not know how it was padded, but how many tokens there are.
    return padded == rows or vocab_size == args.vocab_size


def text_of(args: argparse.Namespace, tokenizer_model: str | None) -> Text:
    """The tokenizer of a checkpoint's arguments, or what is given instead of it."""
    model: Any = tokenizer_model or args.tokenizer_model
    if args.tokenizer_type == "NullTokenizer":
        return Text() if tokenizer_model is None else Text(tokenizer_type_of(model), model)
    return Text(args.tokenizer_type, str(model))


def release(
    path: Path, config: Path | Mapping[str, Any], *, tokenizer: str | None = None
) -> SourceModel:
    """A `Step*.pt` file of the authors' release.

    The file does not say all about its model: `config` holds the arguments that its model was
    built with there (`arch` for HELM-D), or names a JSON file of them. `tokenizer` is a Hugging
    Face tokenizer.

    Raises:
        CheckpointError, ConversionError, SettingsError, TextError: it cannot be exported.
    """
    state = read_release(path)
    released = _read_json(config) if isinstance(config, Path) else config
    dtype = next((t.dtype for name, t in state.items() if name.endswith(".weight")), torch.float32)
    model = _released_model(path, state, released, dtype)
    fp32 = _released_model(path, state, released, torch.float32)
    vocab_size = model.vocab_size
    text = Text("HuggingFaceTokenizer", tokenizer) if tokenizer else Text()
    size, ids = text.vocabulary() if tokenizer else (vocab_size, {})
    if size > vocab_size:
        raise ConversionError(
            f"{path} has {vocab_size} embeddings, the tokenizer {size} tokens: not its own; "
            "--tokenizer-model names the right one"
        )
    ours = settings.hf_config(model, vocab_size, **ids)
    to_hf.check_count(ours, len(state), f"{path} has", "its arguments")
    check_tensors(path, state, _released_shapes(model.transformer, ours))
    return SourceModel(
        str(path),
        ReleasedTensors(path, state, model.transformer),
        ours,
        text,
        lambda tokens: in_megatron.logits(
            fp32, in_megatron.from_release(state), tokens, vocab_size
        ),
        training_flags=("--mice-bias-update", model.transformer.helm.mice_bias_update)
        if model.transformer.num_moe_experts
        else (),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConversionError(f"--release-config {path}: {error}") from error
    if not isinstance(found, dict):
        raise ConversionError(f"--release-config {path}: not a JSON object of names and values")
    return found


def _released_model(
    path: Path, state: dict[str, torch.Tensor], released: Mapping[str, Any], dtype: torch.dtype
) -> HelmModelConfig:
    try:
        found = arguments.checked(released, is_dense(state))
        config = config_from_release(found, state, dtype)
        check_arguments(found, state)
        base = rotary_base(found, state)
    except ValueError as error:
        raise ConversionError(f"{path}: {error}") from error
    logits = "mapping.weight" if is_dense(state) else "head.weight"
    if logits not in state:
        raise ConversionError(f"{path} lacks {logits}")
    return model_config(
        config,
        vocab_size=len(state[logits]),
        should_pad_vocab=False,
        seq_length=found.get("max_seq_len", 2048),
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
        rotary_base=base,
    )


def _released_shapes(
    transformer: HelmTransformerConfig, config: HelmConfig
) -> dict[str, tuple[int, ...]]:
    """The shapes of a released model's parameters, by their names there."""
    shapes = to_hf.shapes_of(config)
    ours = {}
    for rule in hf_names.plan(config, shapes):
        parts = [torch.empty(shapes[name], device="meta") for name in rule.theirs]
        [ours[rule.ours[0]]] = rule.load(config, parts)
    return {name: tuple(t.shape) for name, t in to_release(ours, transformer).items()}
