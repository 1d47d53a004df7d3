"""The selection bias of the routers: the released update, beside Megatron's.

Both move an expert's bias once a global batch, against its load. Megatron takes the sign of the
difference from an equal load (`moe_router_enable_expert_bias`), the release the difference.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.utils import get_model_config
from torch import Tensor


def reference_bias_update(bias: Tensor, counts: Tensor, rate: float) -> Tensor:
    """The released step of selection biases `[.., experts]`, after the choices `counts` of a batch.

    In proportion to how far an expert's share is from an equal one; Megatron takes the sign only.
    """
    total = counts.sum(-1, keepdim=True).clamp_min(1)
    return bias + rate * (1 / counts.shape[-1] - counts / total)


@torch.no_grad()
def update_selection_biases(model: list[torch.nn.Module], rate: float) -> None:
    """Take the released step of every router of `model` that has it, and count anew.

    Collective over the ranks that share a router's tokens.
    """
    routers: list[Any] = [
        module
        for chunk in model
        for module in chunk.modules()
        if module.training and getattr(module, "moves_bias_in_proportion", False)
    ]
    if not routers:
        return
    counts = torch.stack([router.local_tokens_per_expert for router in routers])
    group = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
    dist.all_reduce(counts, group=group)
    biases = torch.stack([router.expert_bias for router in routers])
    updated = reference_bias_update(biases, counts.to(biases.dtype), rate)
    for router, bias in zip(routers, updated, strict=True):
        router.expert_bias.copy_(bias)
        router.local_tokens_per_expert.zero_()


def finalize(model: list[torch.nn.Module], *args: Any, **kwargs: Any) -> None:
    """Megatron's `finalize_model_grads`, and the released step of the selection biases."""
    update_selection_biases(model, get_model_config(model[0]).moe_router_bias_update_rate)
    finalize_model_grads(model, *args, **kwargs)
