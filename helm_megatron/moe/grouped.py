"""The experts of a rank as one computation, by `--moe-grouped-gemm`."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from torch import Tensor

from helm_megatron.kernels.experts.one_by_one import run_experts
from helm_megatron.kernels.experts.parameters import Expert
from helm_megatron.moe.experts import MiceExperts


class GroupedMiceExperts(MiceExperts):
    """`MiceExperts` that run as one function of all their parameters.

    The parameters are those of the plain form, one by one, so checkpoints, conversion and the
    optimizer know no difference.
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
