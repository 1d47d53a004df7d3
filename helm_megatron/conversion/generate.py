"""Text from a prompt, from a Hugging Face folder or a Megatron checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from helm_megatron.conversion.exported import exported
from helm_megatron.conversion.hf_folder import is_helm, load_model, load_tokenizer
from helm_megatron.conversion.to_hf import ConversionError


@contextlib.contextmanager
def as_hf_folder(
    load: Path, *, step: int | None = None, tokenizer_model: str | None = None
) -> Iterator[Path]:
    """`load` itself if it is a Hugging Face folder of a HELM model, else a temporary export of it.

    Raises:
        ConversionError, ExportError: it is neither.
    """
    if (load / "config.json").is_file():
        if not is_helm(load):
            raise ConversionError(f"--load {load} does not hold a HELM model")
        yield load
        return
    flags = ["--no-verify"]
    flags += [] if step is None else ["--ckpt-step", str(step)]
    flags += [] if tokenizer_model is None else ["--tokenizer-model", tokenizer_model]
    with exported(load, flags) as folder:
        yield folder


def generate(
    folder: Path,
    prompts: Sequence[str],
    *,
    dtype: str = "auto",
    device: str = "cpu",
    **options: Any,
) -> list[str]:
    """The continuation of each prompt; `options` are those of transformers' `generate`.

    Raises:
        ConversionError, TensorFileError: the folder has no tokenizer or a damaged model, a prompt
            has no tokens or more than the model has positions, or transformers refuses the options.
    """
    tokenizer: Any = load_tokenizer(folder)
    model: Any = load_model(folder, dtype).to(device)
    return continuations(model, tokenizer, prompts, options)


def continuations(
    model: Any, tokenizer: Any, prompts: Sequence[str], options: dict[str, Any]
) -> list[str]:
    """The continuation of each prompt by a model that is loaded.

    Raises:
        ConversionError: as `generate`.
    """
    # Without a token for padding each prompt is a batch of its own.
    together = [list(prompts)] if tokenizer.pad_token_id is not None else [[p] for p in prompts]
    batches = [_batch(tokenizer, each, model.config, model.device) for each in together]
    # Whatever the folder's generation_config.json has: one text for each prompt.
    options = {"num_return_sequences": 1, "return_dict_in_generate": False} | options
    return [text for batch in batches for text in _texts(model, tokenizer, batch, options)]


def _batch(tokenizer: Any, prompts: list[str], config: Any, device: str) -> Any:
    """The tokens of prompts, padded if they are several."""
    batch = tokenizer(prompts, padding=len(prompts) > 1, return_tensors="pt")
    if not bool(batch.attention_mask.any(-1).all()):
        raise ConversionError("--prompt is empty: it needs at least one token")
    tokens, positions = batch.input_ids.shape[1], config.max_position_embeddings
    if tokens > positions:
        raise ConversionError(
            f"--prompt has {tokens} tokens, but the model was trained with {positions} positions"
        )
    return batch.to(device)


def _texts(model: Any, tokenizer: Any, batch: Any, options: dict[str, Any]) -> list[str]:
    try:
        with torch.no_grad():
            tokens = model.generate(**batch, **options)
    except ValueError as error:
        raise ConversionError(str(error).splitlines()[0]) from error
    return [continuation(tokenizer, row, batch.input_ids.shape[1]) for row in tokens.cpu().tolist()]


def continuation(tokenizer: Any, tokens: Sequence[int], prompt: int) -> str:
    """The text that tokens from index `prompt` on add to that of the tokens before."""
    before, whole = (
        tokenizer.decode(part, skip_special_tokens=True) for part in (tokens[:prompt], tokens)
    )
    if whole.startswith(before):
        # By themselves they would lose the space that they begin with: some tokenizers put one
        # before every text, and take it off again.
        return whole.removeprefix(before)
    return tokenizer.decode(tokens[prompt:], skip_special_tokens=True)
