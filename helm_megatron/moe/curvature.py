"""The curvature of one expert: positive and bounded, initialized by its global index."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import Parameter

from helm_megatron.config import CURVATURES
from helm_megatron.geometry.lorentz import at_least_fp32
from helm_megatron.transformer_config import HelmTransformerConfig


def inverse_softplus(c: float) -> float:
    """The x with softplus(x) = c, for c > 0."""
    return c + math.log(-math.expm1(-c))


class _Bounded(torch.autograd.Function):
    """Clamp to the range of curvatures; at a bound only gradients that lead back pass."""

    @staticmethod
    def forward(ctx: Any, c: Tensor) -> Tensor:
        ctx.save_for_backward(c)
        return c.clamp(*CURVATURES)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        [c] = ctx.saved_tensors
        low, high = CURVATURES
        outward = ((c <= low) & (grad > 0)) | ((c >= high) & (grad < 0))
        return grad.masked_fill(outward, 0)


def bounded_softplus(raw: Tensor) -> Tensor:
    """Curvatures of raw parameters of any shape: positive, within `CURVATURES`, at least fp32."""
    return _Bounded.apply(F.softplus(at_least_fp32(raw)))


class ExpertCurvature(torch.nn.Module):
    """c = softplus(raw) within `CURVATURES`, raw `[1]` learned or fixed (`mice_learn_curvature`).

    raw has the type of the other parameters: Megatron's mixed precision takes a model of one type,
    and its checkpoints rely on that. In bf16 c is then one of values 0.4% apart, the same in all
    that the expert computes; what it learns in smaller steps adds up in the optimizer's fp32 copy.
    """

    def __init__(self, config: HelmTransformerConfig, index: int, tp_group: ProcessGroup) -> None:
        super().__init__()
        self.tp_group = tp_group
        value = inverse_softplus(config.helm.expert_curvature(index, config.num_moe_experts))
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        raw = torch.full((1,), value, dtype=config.params_dtype, device=device)
        self.raw = Parameter(raw, requires_grad=config.helm.mice_learn_curvature)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict:
        """Replicated over the expert's tensor-parallel ranks."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            sharded_offsets=sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=(metadata or {})["dp_cp_group"],
        )

    def forward(self) -> Tensor:
        """The curvature `[1]`, in at least fp32."""
        return bounded_softplus(self.raw)
