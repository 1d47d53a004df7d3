"""An Adam of torch's kernels with the interface of Transformer Engine's and Apex's FusedAdam.

Upstream: without either of these, on GPUs too, Megatron 0.19 takes torch.optim.AdamW, which counts
steps in every parameter's state. Its distributed optimizer cannot load a checkpoint into that: it
asks for the step of an optimizer that has not stepped yet. And it builds that class by its own
name, so no Adam that knows tables of points can take its place.
Here: Megatron takes this Adam as it would take Apex's; it counts steps in the parameter group.
Goes: when the distributed optimizer loads into torch.optim.AdamW, and `points_optimizer` goes.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.adam import adam

_LOADER = "megatron.core.optimizer.distrib_optimizer.DistributedOptimizer.load_state_dict"
UPSTREAM = {
    "megatron.core.optimizer.Adam": None,
    "megatron.core.optimizer.USING_PYTORCH_OPTIMIZER": None,
    "megatron.core.optimizer.distrib_optimizer.Adam": None,
    "megatron.core.optimizer.distrib_optimizer.HAVE_APEX_OR_TE": None,
    "megatron.core.optimizer.distrib_optimizer.USING_APEX_OPTIMIZER": None,
    _LOADER: "707490502424",
}


class FusedAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015), with decoupled weight decay (AdamW) if `adam_w_mode`.

    Args:
        params: parameters or parameter groups. After a :meth:`step` non-empty groups hold `step`.
        lr, betas, eps, weight_decay: as in torch.optim.AdamW.
        adam_w_mode: decay the weights; otherwise add weight_decay * param to the gradient.
        capturable: ignored; Megatron passes it, it is about CUDA graphs.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        weight_decay: float = 0.0,
        capturable: bool = False,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        self.adam_w_mode = adam_w_mode

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step; parameters without gradient are left alone. No closure, as Megatron."""
        for group in self.param_groups:
            if group["params"]:
                group["step"] = group.get("step", 0) + 1
                self._step_group(group)

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            if "exp_avg" not in self.state[p]:
                self.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        # torch counts this step itself, where its kernel runs.
        steps = torch.full((len(params),), float(group["step"] - 1), device=params[0].device)
        adam(
            params,
            [p.grad for p in params],
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            [],
            list(steps.unbind()),
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            decoupled_weight_decay=self.adam_w_mode,
        )


def apply() -> None:
    """Replace torch's class, if Megatron found no other, and what it notes of where it is from."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    if not optimizer.USING_PYTORCH_OPTIMIZER:
        return
    optimizer.Adam = distrib_optimizer.Adam = FusedAdam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_APEX_OPTIMIZER = True
