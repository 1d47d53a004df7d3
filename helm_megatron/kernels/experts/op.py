"""All experts of a rank as one function, its forward and backward ordered by hand.

Rows come sorted by expert, so each expert has a run of them. What an expert does to a row x of L_c,
with s = sqrt(c_e / c), t = time(x; c) and the other times at c_e:

    a = s (W1 x + t w1) + b1;  h = silu(a_gate) * a_up;  y = (W2 h + time(h) w2 + b2) / s

This is `experts.plain` with the factors s taken out of the ambient vectors. A matrix product takes
a factor and a summand at no cost, so neither the maps between hyperboloids nor the time terms need
a pass of their own.

There are two ways to it. `one_by_one` runs one expert after the other; `one_product` takes each
matrix product over all of them, with Triton between.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.distributed import ProcessGroup

from helm_megatron.kernels import dispatch
from helm_megatron.kernels.experts.parameters import Expert


def run_experts(
    x: Tensor,
    counts: Sequence[int],
    c: float,
    curvature_in: Tensor,
    curvature_out: Tensor,
    experts: Sequence[Expert],
    tp_group: ProcessGroup,
) -> Tensor:
    """Apply each expert to its run of rows.

    Args:
        x: points of L_c `[n, hidden]`, sorted by expert.
        counts: how many rows each expert has; they sum to n.
        c: curvature of x and of the result.
        curvature_in, curvature_out: the same curvatures `[experts]`, for what a rank computes of
            its own inner features and for what all ranks of `tp_group` compute alike. The gradient
            of the first is this rank's share, that of the second is whole.
        experts: parameters of each.
        tp_group: the ranks that share each expert's inner features.

    Returns:
        Points of L_c `[n, hidden]`, whole on every rank; the gradient of x is this rank's share.
    """
    flat = [parameter for expert in experts for parameter in expert]
    widths = *experts[0].weight1.shape, *experts[0].weight2.shape
    function = dispatch.for_experts(x, widths).Experts
    return function.apply(x, counts, c, tp_group, curvature_in, curvature_out, *flat)
