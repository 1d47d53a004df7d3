"""Rows that only pad the vocabulary take no part in the softmax, in both geometries.

Megatron pads the vocabulary to a multiple of `--make-vocab-size-divisible-by` times the
tensor-parallel size, and its softmax counts the padding as tokens: a layout that pads more is
another model.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor


class _Mask(torch.autograd.Function):
    """Logits from column `start` on become the least number of their type, in place.

    The gradient passes as it is: a softmax gives such a logit the weight 0, so it gets none.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, start: int) -> Tensor:
        ctx.mark_dirty(logits)
        logits[..., start:] = torch.finfo(logits.dtype).min
        return logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def mask_padding(model: GPTModel, token_count: int) -> None:
    """Let the output layer's logits count `token_count` tokens, whatever its padded rows are."""
    layer: Any = model.output_layer
    local = model.vocab_size // layer.tp_group.size()
    first = layer.tp_group.rank() * local

    def mask(_: Any, __: Any, output: tuple[Tensor, None]) -> tuple[Tensor, None]:
        logits, bias = output
        # Gathered logits begin with the first token.
        start = token_count if logits.shape[-1] == model.vocab_size else token_count - first
        if start >= logits.shape[-1]:
            return output
        return _Mask.apply(logits, max(start, 0)), bias

    layer.register_forward_hook(mask)
