"""Tensor-parallel helpers of the leaves: parameters, and per-token scalars entering or leaving.

A per-token scalar (a time coordinate, a squared norm) goes the way of its activation.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import Parameter

from helm_megatron.transformer_config import HelmTransformerConfig


def replicated_parameter(config: HelmTransformerConfig, size: int, value: float) -> Parameter:
    """A parameter `[size]` that every tensor-parallel rank holds, used on its own tokens.

    Under sequence parallelism each rank sees a part of the tokens, so Megatron sums its gradient
    over the tensor-parallel group (`sequence_parallel`).
    """
    parameter = filled_parameter(config, size, value)
    parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return parameter


def filled_parameter(config: HelmTransformerConfig, size: int, value: float) -> Parameter:
    """A parameter `[size]` filled with value, on the device where Megatron builds the model."""
    device = None if config.use_cpu_initialization else torch.cuda.current_device()
    return Parameter(torch.full((size,), value, dtype=config.params_dtype, device=device))


def mark_like(parameter: Parameter, weight: Parameter | None, stride: int | None = None) -> None:
    """Copy from a linear's weight whether its gradient is reduced outside the expert groups.

    With a stride the parameter is sharded along its only dimension as the weight's rows are.
    """
    parameter.allreduce = getattr(weight, "allreduce", True)  # type: ignore[attr-defined]
    if stride is not None:
        set_tensor_model_parallel_attributes(parameter, True, 0, stride)


def group_of(linear: Any) -> ProcessGroup:
    """The tensor-parallel group that a backend's linear is sharded over.

    Transformer Engine is not told of an expert's, so that it leaves communication alone; Megatron
    keeps it beside.
    """
    return getattr(linear, "_tp_group", None) or linear.tp_group


def is_left_alone(config: HelmTransformerConfig, is_expert: bool, group: ProcessGroup) -> bool:
    """Whether a backend's linear is without communication, as an expert's that is dispatched to."""
    return is_expert and (group.size() > 1 or config.expert_model_parallel_size > 1)


def time_into_columns(time: Tensor, linear: Any) -> Tensor:
    """Bring the input's time `[tokens.., 1]` to every rank of a column-parallel linear.

    Its gradient is then the sum over ranks, each of which has seen its own output features only.
    Experts are given tokens whose gradient their dispatcher sums.
    """
    if linear.explicit_expert_comm:
        return time
    if linear.sequence_parallel:
        return gather_from_sequence_parallel_region(time, group=group_of(linear))
    return copy_to_tensor_model_parallel_region(time, group=group_of(linear))


def sum_over_row_shards(x: Tensor, linear: Any) -> Tensor:
    """Sum over the ranks of a row-parallel linear, to the tokens its output has here."""
    if linear.sequence_parallel and not linear.explicit_expert_comm:
        return reduce_scatter_to_sequence_parallel_region(x, group=group_of(linear))
    return reduce_from_tensor_model_parallel_region(x, group=group_of(linear))
