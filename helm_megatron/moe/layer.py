"""The MiCE layer: Megatron's MoELayer with the Lorentz combination of its experts' outputs.

Megatron weighs the rows inside the experts and sums them on their way back. On the hyperboloid
the sum is ambient, so the rows are weighed together with their times. With the all-to-all
dispatcher each chosen expert's point comes back as a row of its own, in the activation's dtype,
and is weighed and summed where the token lives: no extra byte is sent. The all-gather dispatcher
sums on the way, so there the fp32 ambient rows travel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from torch import Tensor

from helm_megatron.geometry.lorentz import at_least_fp32
from helm_megatron.kernels.mixture.op import mixture
from helm_megatron.moe import combine
from helm_megatron.transformer_config import HelmTransformerConfig


class _OneShareOf(torch.autograd.Function):
    """Divide by the number of identical replicas that the dispatcher is about to sum.

    The gradient passes undivided: each replica's own computation is a full one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, replicas: int) -> Tensor:
        return x / replicas

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class MiceLayer(MoELayer):
    """A mixture-of-curvature-experts layer; takes and returns space coordinates `[s, b, d]`."""

    def __init__(self, config: HelmTransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.rows_return = isinstance(self.token_dispatcher, MoEAlltoAllTokenDispatcher)
        # Then each token has as many rows as it chose experts.
        self.dropless = not (
            config.moe_expert_capacity_factor or config.moe_router_padding_for_quantization
        )
        if config.helm.mice_combine == "reference":
            self.add_experts = combine.AddExperts(config)

    def route(
        self, hidden_states: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        probs, routing_map = super().route(hidden_states, padding_mask)
        return at_least_fp32(probs), routing_map

    def preprocess(
        self, hidden_states: Tensor, probs: Tensor, routing_map: Tensor
    ) -> tuple[Tensor, Tensor]:
        tokens, probs = super().preprocess(hidden_states, probs, routing_map)
        # With `rows_return` one weight for every row that will come back, in the rows' order.
        self.row_weights: Tensor | None = probs
        return tokens, probs

    def routed_experts_compute(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, None]:
        dispatcher = self.token_dispatcher
        with _unsorted(dispatcher) if self.rows_return else contextlib.nullcontext():
            tokens, tokens_per_expert, weights = dispatcher.dispatch_postprocess(
                hidden_states, probs
            )
        y = self.experts(tokens, tokens_per_expert)
        if not self.rows_return:
            y = combine.ambient(y, self.config.helm.curvature)
            _widen(dispatcher, "hidden_shape_before_permute")
        if self.experts.tp_group.size() > 1:
            y = _OneShareOf.apply(y, self.experts.tp_group.size())
        if not self.rows_return:
            # After the share is taken: the dispatcher sums the replicas' gradients of the weights.
            y = y * at_least_fp32(weights).unsqueeze(-1)
        with _unsorted(dispatcher) if self.rows_return else contextlib.nullcontext():
            return dispatcher.combine_preprocess(y), None

    def postprocess(self, output: Tensor, shared_expert_output: Tensor | None) -> Tensor:
        dispatcher, c = self.token_dispatcher, self.config.helm.curvature
        dtype = shared_expert_output.dtype if shared_expert_output is not None else output.dtype
        if self.config.helm.mice_combine == "reference" and shared_expert_output is not None:
            return self._reference_combination(output, shared_expert_output).to(dtype)
        if self.rows_return and self.dropless:
            slots = combine.slots_of(dispatcher.routing_map, self.config.moe_router_topk)
            shared = None
            if shared_expert_output is not None:
                shared = shared_expert_output.flatten(0, -2)
            y = mixture(output, self._take_row_weights(), slots, shared, c)
            return y.view(dispatcher.hidden_shape).to(dtype)
        if self.rows_return:
            output = combine.ambient(output, c) * self._take_row_weights().unsqueeze(-1)
            _widen(dispatcher, "hidden_shape_before_permute")
        _widen(dispatcher, "hidden_shape")
        total = dispatcher.combine_postprocess(output)
        return combine.centroid(total, shared_expert_output, c).to(dtype)

    def _take_row_weights(self) -> Tensor:
        # Not kept: it would hold the graph of this micro-batch until the next.
        weights, self.row_weights = self.row_weights, None
        assert weights is not None, "preprocess() comes before postprocess()"
        return weights

    def _reference_combination(self, rows: Tensor, shared: Tensor) -> Tensor:
        # Rows come sorted by expert; a stable sort by token leaves each token's in that order.
        order = self.token_dispatcher.reversed_local_input_permutation_mapping.argsort(stable=True)
        k = self.config.moe_router_topk
        points = rows[order].unflatten(0, (-1, k))
        weights = self._take_row_weights()[order].unflatten(0, (-1, k))
        y = combine.fold(points, weights, self.config.helm.curvature)
        return self.add_experts.combine(at_least_fp32(shared), y.view(shared.shape))


@contextlib.contextmanager
def _unsorted(dispatcher: Any) -> Iterator[None]:
    """Keep the all-to-all dispatcher from sorting rows that come from one rank only.

    They are sorted by expert already; it would copy them there and back.
    """
    experts = dispatcher.num_local_experts
    if dispatcher.ep_size * dispatcher.tp_size == 1:
        dispatcher.num_local_experts = 1
    try:
        yield
    finally:
        dispatcher.num_local_experts = experts


def _widen(dispatcher: Any, attribute: str) -> None:
    """Tell the dispatcher that what comes back carries one number a token more: the time."""
    shape = getattr(dispatcher, attribute)
    setattr(dispatcher, attribute, (*shape[:-1], shape[-1] + 1))
