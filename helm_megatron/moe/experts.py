"""The routed experts of a MiCE layer, each on its own hyperboloid."""

from __future__ import annotations

import copy
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.experts import SequentialMLP
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.kernels.experts.op import run_experts
from helm_megatron.kernels.experts.parameters import Expert
from helm_megatron.layers.mlp import LorentzMLP
from helm_megatron.layers.parallel import mark_like
from helm_megatron.moe.curvature import ExpertCurvature, bounded_softplus
from helm_megatron.transformer_config import HelmTransformerConfig


class MiceExpert(LorentzMLP):
    """One expert: brought from L_c to L_{c_e}, gated feed-forward there, and back.

    x' = x sqrt(c_e / c);  h = silu(W1 x') * (W3 x');  y = W2 h;  out = y sqrt(c / c_e), with the
    times of x', h and y at c_e.
    """

    def __init__(
        self, config: HelmTransformerConfig, submodules: MLPSubmodules, index: int, **kwargs: Any
    ) -> None:
        super().__init__(
            config,
            submodules,
            is_expert=True,
            ffn_hidden_size=config.moe_ffn_hidden_size,
            **kwargs,
        )
        self.curvature = ExpertCurvature(config, index, self.tp_group)
        mark_like(self.curvature.raw, self.linear_fc1.weight)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Points of L_c `[tokens, hidden]` to points of L_c; whole on every rank of the expert."""
        c, c_e = self.config.helm.curvature, self.curvature()
        # Up to fc1 each rank's gradient covers its own features only.
        c_in = copy_to_tensor_model_parallel_region(c_e, group=self.tp_group)
        h, _ = self.linear_fc1(lorentz.rescale(x, c, c_in), curvature=c_in, gated=True)
        y, _ = self.linear_fc2(h, curvature=c_e)
        return lorentz.rescale(y, c_e, c)


class MiceExperts(SequentialMLP):
    """The experts of this rank, each a module that runs by itself.

    Checkpoints name experts by their global index, as Megatron's do.
    """

    def __init__(
        self,
        num_local_experts: int,
        config: HelmTransformerConfig,
        submodules: MLPSubmodules,
        *,
        pg_collection: ProcessGroupCollection,
        name: str | None = None,
    ) -> None:
        # Megatron's MLP takes the width of fc2 from the config.
        config = copy.copy(config)
        config.ffn_hidden_size = config.moe_ffn_hidden_size
        # Not SequentialMLP's constructor, which builds Megatron's own MLPs.
        MegatronModule.__init__(self, config)
        self.num_local_experts = num_local_experts
        self.ep_group = pg_collection.ep
        self.tp_group = pg_collection.expt_tp
        self.dp_group = pg_collection.expt_dp
        first = self.ep_group.rank() * num_local_experts
        self.local_experts = torch.nn.ModuleList(
            MiceExpert(config, submodules, first + i, tp_group=self.tp_group)
            for i in range(num_local_experts)
        )

    def curvatures(self) -> Tensor:
        """Curvatures of this rank's experts, `[local experts]`."""
        experts: Any = self.local_experts
        parameters = [expert.curvature.raw for expert in experts]
        return bounded_softplus(torch.cat(parameters))

    def forward(self, tokens: Tensor, tokens_per_expert: Tensor) -> Tensor:
        """Apply each expert to its run of `tokens` `[n, hidden]`, sorted by expert."""
        runs = tokens.split(tokens_per_expert.tolist())
        return torch.cat(
            [expert(run) for expert, run in zip(self.local_experts, runs, strict=True)]
        )


class GroupedMiceExperts(MiceExperts):
    """`MiceExperts` that run as one function of all their parameters, by `--moe-grouped-gemm`.

    That is `kernels.experts`. The parameters are those of the plain form, one by one, so
    checkpoints, conversion and the optimizer know no difference.
    """

    def forward(self, tokens: Tensor, tokens_per_expert: Tensor) -> Tensor:
        """Apply each expert to its run of `tokens` `[n, hidden]`, sorted by expert."""
        for expert in self.local_experts:
            _await_parameters(expert)
        c_e = self.curvatures()
        # Up to fc1 each rank's gradient covers its own features only.
        c_in = copy_to_tensor_model_parallel_region(c_e, group=self.tp_group)
        return run_experts(
            tokens,
            tokens_per_expert.tolist(),
            self.config.helm.curvature,
            c_in,
            c_e,
            [_parameters(expert) for expert in self.local_experts],
            self.tp_group,
        )


def _parameters(expert: Any) -> Expert:
    fc1, fc2 = expert.linear_fc1, expert.linear_fc2
    return Expert(
        fc1.weight,
        fc1.time_weight,
        fc1.bias if fc1.has_bias else None,
        fc2.weight,
        fc2.time_weight,
        fc2.bias if fc2.has_bias else None,
    )


def _await_parameters(expert: torch.nn.Module) -> None:
    """Run the hooks that Megatron puts before the forward of each module that holds parameters.

    They wait until the distributed optimizer has gathered them; the forwards themselves are not
    called here.
    """
    for module in expert.modules():
        for key, hook in module._forward_pre_hooks.items():
            with_kwargs = key in module._forward_pre_hooks_with_kwargs
            hook(module, (), {}) if with_kwargs else hook(module, ())
