"""Lorentz linears: y_s = W x_s + w_t time(x_s) + b around any Megatron linear (after Hypformer).

The matrix product is the backend's own, on space coordinates; the time column and the bias are a
rank-1 term added to its output in fp32. A linear with zero time weights is the Euclidean one.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor
from torch.nn import Parameter

from helm_megatron.geometry.lorentz import Scalar
from helm_megatron.kernels.linear_tail.op import add_time_term
from helm_megatron.kernels.linear_tail.op import gated as gate_with_time
from helm_megatron.kernels.norm2.op import norm2, time
from helm_megatron.layers.parallel import (
    filled_parameter,
    group_of,
    is_left_alone,
    mark_like,
    replicated_parameter,
    sum_over_row_shards,
    time_into_columns,
)
from helm_megatron.transformer_config import HelmTransformerConfig

# Base of the mixins to the type checker: some backend's linear. At run time each is mixed with one.
_Linear: Any = object


class _LorentzColumn(_Linear):
    """Mixin over a column-parallel linear: output features are sharded, and so are w_t and b.

    `curvature` is that of the input; a call may override it (experts have their own).
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: HelmTransformerConfig,
        bias: bool | None = None,
        skip_bias_add: bool = False,
        stride: int = 1,
        is_expert: bool = False,
        **kwargs: Any,
    ) -> None:
        # `bias` and `skip_bias_add` are Megatron's; a Lorentz linear adds its own bias, once.
        # A caller that passes bias=None wants none whatever the config says.
        super().__init__(
            input_size,
            output_size,
            config=config,
            bias=False,
            skip_bias_add=True,
            stride=stride,
            is_expert=is_expert,
            **kwargs,
        )
        self.explicit_expert_comm = is_left_alone(config, is_expert, group_of(self))
        self.curvature: Scalar = config.helm.curvature
        local = output_size // group_of(self).size()
        self.time_weight = filled_parameter(config, local, 0.0)
        mark_like(self.time_weight, self.weight, stride)
        self.has_bias = bias is not None and config.helm.linear_bias
        if self.has_bias:
            self.bias = filled_parameter(config, local, 0.0)
            mark_like(self.bias, self.weight, stride)

    def forward(
        self,
        input_: Tensor,
        weight: Tensor | None = None,
        runtime_gather_output: bool | None = None,
        curvature: Scalar | None = None,
        gated: bool = False,
    ) -> tuple[Tensor, None]:
        """Map points `[s, b, in]` to space coordinates `[s, b, out / tp]`, gathered if asked.

        `gated` takes SwiGLU of them on the way, silu of the first half times the second.
        """
        built_to_gather = getattr(self, "gather_output", False)
        gather = built_to_gather if runtime_gather_output is None else runtime_gather_output
        # Options that only Megatron's own linear knows; the gather comes after the time term.
        options: dict = {} if weight is None else {"weight": weight}
        if gather or built_to_gather:
            options["runtime_gather_output"] = False
        y, _ = super().forward(input_, **options)
        c = self.curvature if curvature is None else curvature
        t = time_into_columns(time(input_, c), self)
        # Some backends keep an empty tensor where they have no bias.
        tail = gate_with_time if gated else add_time_term
        y = tail(y, t, self.time_weight, self.bias if self.has_bias else None)
        if gather:
            y = gather_from_tensor_model_parallel_region(y, group=group_of(self))
        return y, None

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict:
        return _shard(
            self, prefix, sharded_offsets, metadata, {"weight": 0, "bias": 0, "time_weight": 0}
        )


class _LorentzRow(_Linear):
    """Mixin over a row-parallel linear: the input is sharded, so |x|^2 is a sum over ranks.

    w_t and b are replicated and act on the summed output.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: HelmTransformerConfig,
        bias: bool,
        skip_bias_add: bool,
        is_expert: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            input_size,
            output_size,
            config=config,
            bias=False,
            skip_bias_add=True,
            is_expert=is_expert,
            **kwargs,
        )
        self.explicit_expert_comm = is_left_alone(config, is_expert, group_of(self))
        self.curvature: Scalar = config.helm.curvature
        # An expert's output is whole on every rank, so its gradients are no partial sums.
        make = filled_parameter if is_expert else replicated_parameter
        self.time_weight = make(config, output_size, 0.0)
        mark_like(self.time_weight, self.weight)
        self.has_bias = config.helm.linear_bias
        if self.has_bias:
            self.bias = make(config, output_size, 0.0)
            mark_like(self.bias, self.weight)

    def forward(self, input_: Tensor, curvature: Scalar | None = None) -> tuple[Tensor, None]:
        """Map points `[s, b, in / tp]` to space coordinates `[s, b, out]`."""
        y, _ = super().forward(input_)
        if self.explicit_expert_comm:
            y = sum_over_row_shards(y, self)
        c = self.curvature if curvature is None else curvature
        t = (sum_over_row_shards(norm2(input_), self) + c).sqrt()
        return add_time_term(y, t, self.time_weight, self.bias if self.has_bias else None), None

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict:
        return _shard(self, prefix, sharded_offsets, metadata, {"weight": 1})


class ReplicatedLinear(torch.nn.Module):
    """A linear that every tensor-parallel rank holds whole and applies to its own tokens.

    The local counterpart of Transformer Engine's `parallel_mode="duplicated"`.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: HelmTransformerConfig,
        init_method: Any,
        **_: Any,
    ) -> None:
        super().__init__()
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        weight = torch.empty(output_size, input_size, dtype=config.params_dtype, device=device)
        self.weight = Parameter(weight)
        if config.perform_initialization:
            init_method(self.weight)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, input_: Tensor) -> tuple[Tensor, None]:
        return F.linear(input_, self.weight), None


class _LorentzReplicated(_Linear):
    """Mixin over a linear that is whole on every rank."""

    def __init__(
        self, input_size: int, output_size: int, *, config: HelmTransformerConfig, **kwargs: Any
    ) -> None:
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.curvature: Scalar = config.helm.curvature
        self.time_weight = replicated_parameter(config, output_size, 0.0)
        self.bias = (
            replicated_parameter(config, output_size, 0.0) if config.helm.linear_bias else None
        )

    def forward(self, input_: Tensor) -> tuple[Tensor, None]:
        """Map points `[s, b, in]` to space coordinates `[s, b, out]`."""
        y, _ = super().forward(input_)
        return add_time_term(y, time(input_, self.curvature), self.time_weight, self.bias), None


class _HeadsRow(_Linear):
    """Mixin over a row-parallel linear that takes whole ambient heads, `[s, b, heads (1 + v)]`.

    The heads carry their times, so it is a plain linear, wider than Megatron's by one a head.
    """

    def __init__(
        self, input_size: int, output_size: int, *, config: HelmTransformerConfig, **kwargs: Any
    ) -> None:
        kwargs.update(bias=config.helm.linear_bias, skip_bias_add=False)
        width = input_size + config.num_attention_heads
        super().__init__(width, output_size, config=config, **kwargs)


@functools.cache
def _mixed(mixin: type, base: type) -> type:
    return type(f"Lorentz{base.__name__}", (mixin, base), {})


def lorentz_column(base: type) -> type:
    """The Lorentz form of a backend's column-parallel linear."""
    return _mixed(_LorentzColumn, base)


def lorentz_row(base: type) -> type:
    """The Lorentz form of a backend's row-parallel linear."""
    return _mixed(_LorentzRow, base)


def lorentz_replicated(base: type) -> type:
    """The Lorentz form of a backend's duplicated linear."""
    return _mixed(_LorentzReplicated, base)


def lorentz_heads(base: type) -> type:
    """The backend's row-parallel linear, widened for the times of the attention heads."""
    return _mixed(_HeadsRow, base)


def shard_gated_time_weight(
    state: dict, key: str, linear: Any, offsets: tuple, metadata: dict
) -> None:
    """Split the time weight of a gated fc1 in checkpoints as Megatron splits its weight.

    Each rank holds [gate, up] shards; without this a checkpoint loads wrongly under another TP.
    """
    state[key] = apply_swiglu_sharded_factory(
        state[key],
        offsets,
        metadata.get("singleton_local_shards", False),
        tp_group=group_of(linear),
        dp_group=metadata["dp_cp_group"],
    )


def _shard(
    linear: Any, prefix: str, offsets: tuple, metadata: dict | None, axes: dict[str, int]
) -> dict:
    state = linear.state_dict(prefix="", keep_vars=True)
    return make_sharded_tensors_for_checkpoint(
        state,
        prefix,
        axes,
        offsets,
        tp_group=group_of(linear),
        dp_cp_group=(metadata or {})["dp_cp_group"],
    )
