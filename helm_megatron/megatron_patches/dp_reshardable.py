"""Optimizer checkpoints of the format "dp_reshardable" load into fp32 parameters.

Upstream: the distributed optimizer of Megatron 0.19 writes to parameters in its loader of that
format without the no_grad of its siblings, which fails for fp32 parameters.
Here: with no_grad.
Goes: when upstream's loader has the decorator.
"""

import torch

UPSTREAM = {
    "megatron.core.optimizer.distrib_optimizer."
    "DistributedOptimizer.load_parameter_state_from_dp_reshardable": "e26835c759d2"
}


def apply() -> None:
    """Decorate the loader."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    DistributedOptimizer.load_parameter_state_from_dp_reshardable = torch.no_grad()(
        DistributedOptimizer.load_parameter_state_from_dp_reshardable
    )
