"""Riemannian Adam for tables of points on the hyperboloid."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.kernels.points import op as rows


class RiemannianAdam(torch.optim.Optimizer):
    """Adam (Becigneul and Ganea, arXiv:1810.00760) over points of L_c, as HELM's release runs it.

    Parameters are tables `[rows, d]` of space coordinates; gradients are the ordinary ones by these
    coordinates. The second moment is one scalar per row, <g,g>; the step is the exponential map of
    -lr * m / (sqrt(v) + eps), along which the first moment is transported. A point in the space
    chart is on the manifold whatever its coordinates, so the release's periodic re-projection of
    points and momenta ("stabilize") has no counterpart here: it would change nothing. Steps are
    counted per parameter group, as FusedAdam does and Megatron's checkpoints expect.

    Args:
        lr: length of a step, in geodesic distance, when gradients agree.
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        c: curvature parameter of the table's hyperboloid, a number or a tensor of one.
        weight_decay: decay * (x_t^2 + |x_s|^2) / 2 is added to the loss, as in the release.
        amsgrad: divide by the largest second moment seen.
        retraction: step straight in the space chart, x_s + u_s, instead of along the geodesic.
        min_norm: lower bound on the norm inside the exponential map. The release has 1e-4, with
            which every row, even one that no token used, moves outward by 5e-9 of itself per step;
            only a comparison with it needs that.

    Raises:
        ValueError: a hyperparameter is out of range.
        RuntimeError: a gradient is sparse.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        c: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        retraction: bool = False,
        min_norm: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "c": c,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "retraction": retraction,
            "min_norm": min_norm,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of tables, with its own hyperparameters if it names any."""
        options = self.defaults | param_group
        for name in ("lr", "eps", "weight_decay", "min_norm"):
            if not options[name] >= 0:
                raise ValueError(f"RiemannianAdam: {name} must be >= 0, not {options[name]}")
        if not options["c"] > 0:
            raise ValueError(f"RiemannianAdam: c must be > 0, not {options['c']}")
        if not all(0 <= beta < 1 for beta in options["betas"]):
            raise ValueError(f"RiemannianAdam: betas must be in [0, 1), not {options['betas']}")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; `closure`, if given, recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for x in group["params"]:
                if x.grad is not None:
                    self._update(x, x.grad, group)
        return loss

    def _update(self, x: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if grad.is_sparse:
            raise RuntimeError(
                "RiemannianAdam: sparse gradient; use nn.Embedding(sparse=False) for this table"
            )
        state = self.state[x]
        point = lorentz.at_least_fp32(x.detach())
        grad = grad.to(point.dtype, copy=True)
        if not state:
            second = point.new_zeros(*point.shape[:-1], 1)
            state["exp_avg"] = torch.zeros_like(point)
            state["exp_avg_sq"] = second
            if group["amsgrad"]:
                state["max_exp_avg_sq"] = second.clone()
        if group["weight_decay"]:
            # x_t^2 = |x_s|^2 + c, so the time coordinate doubles the gradient.
            grad.add_(point, alpha=2 * group["weight_decay"])
        c = float(group["c"])
        (beta1, beta2), eps, count = group["betas"], group["eps"], group["step"]
        rule = rows.Rule(
            group["lr"], beta1, beta2, eps, count, c, group["retraction"], group["min_norm"]
        )
        names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * group["amsgrad"]
        tables = [t.flatten(0, -2) for t in (point, grad, *(state[name] for name in names))]
        rows.step_(tables, rows.to_frame_(tables[0], tables[1], c), rule)
        x.copy_(tables[0].view_as(x))
