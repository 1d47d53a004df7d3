"""Logits and cross entropy of a part of the sequence at a time, for both geometries.

The logits of a large vocabulary are by far the largest activation of a small model. Here the output
layer and Megatron's cross entropy see a few tokens at a time, and again in the backward pass, so
that logits of the other tokens take no memory.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def compute_in_chunks(model: GPTModel, tokens: int) -> None:
    """Let the model compute its losses `tokens` positions of the sequence at a time."""

    def process(**parts: Any) -> Tensor:
        return losses(tokens, **parts)

    def before(_: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if kwargs.get("labels") is not None:
            kwargs = {**kwargs, "output_processor": process}
        return args, kwargs

    model.register_forward_pre_hook(before, with_kwargs=True)


def losses(
    tokens: int,
    *,
    hidden_states: Tensor,
    output_layer: Any,
    output_weight: Tensor | None,
    labels: Tensor,
    compute_language_model_loss: Any,
    **_: Any,
) -> Tensor:
    """The losses `[b, s]` of hidden states `[s, b, d]` and labels `[b, s]`.

    Keywords are those of Megatron's `output_processor`. Under sequence parallelism this rank has
    `[s / tp, b, d]`, and its chunks are taken together with those of the other ranks.
    """
    ranks = labels.shape[1] // hidden_states.shape[0]
    by_rank = labels.unflatten(1, (ranks, -1))

    def of_chunk(hidden: Tensor, chunk: Tensor) -> Tensor:
        logits, _ = output_layer(hidden, weight=output_weight)
        return compute_language_model_loss(chunk.flatten(1), logits).unflatten(1, (ranks, -1))

    size = max(tokens // ranks, 1)
    parts = [
        checkpoint(of_chunk, *chunks, use_reentrant=False, preserve_rng_state=False)
        for chunks in zip(hidden_states.split(size), by_rank.split(size, dim=2), strict=True)
    ]
    return torch.cat(parts, dim=2).flatten(1)
