"""MiCE: a mixture of experts of which each has its own curvature; and its Euclidean twin."""

import torch
import torch.nn.functional as F
from torch import nn

from .lorentz_helm import HelmMLP, HelmResidual, normalize, rescale, residual, time, wide

# Within these curvatures fp32 activations keep their precision; training has the same bounds.
CURVATURES = (1e-3, 1e3)


class _Bounded(torch.autograd.Function):
    """Clamp to the range of curvatures; at a bound only gradients that lead back pass."""

    @staticmethod
    def forward(ctx, c):
        ctx.save_for_backward(c)
        return c.clamp(*CURVATURES)

    @staticmethod
    def backward(ctx, grad):
        (c,) = ctx.saved_tensors
        low, high = CURVATURES
        return grad.masked_fill(((c <= low) & (grad > 0)) | ((c >= high) & (grad < 0)), 0)


def bounded_softplus(raw):
    """The curvatures of raw parameters, in at least fp32."""
    return _Bounded.apply(F.softplus(wide(raw)))


class HelmRouter(nn.Module):
    """Chooses experts by their score and selection bias, and weighs them by their score.

    The "reference" rule differs from Megatron's in that softmax scores are chosen with the bias too
    and not renormalized, and in that a group counts by its two best experts.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        # A buffer, because of those DeepSpeed too leaves in fp32 what the model wants there.
        bias = torch.zeros(config.n_routed_experts, dtype=torch.float32)
        self.register_buffer("e_score_correction_bias", bias if config.router_bias else None)

    def forward(self, x):
        """x `[tokens, hidden]` to weights and indices `[tokens, k]`, by ascending index."""
        config = self.config
        logits = F.linear(wide(x), wide(self.weight))
        sigmoid, reference = config.scoring_func == "sigmoid", config.mice_routing == "reference"
        scores = logits.sigmoid() if sigmoid else logits.softmax(dim=-1)
        late = not sigmoid and not reference and not config.softmax_before_choice
        chosen = self._choose(logits if late else scores.detach())
        weights = (logits if late else scores).gather(-1, chosen)
        if late:
            weights = weights.softmax(dim=-1)
        elif sigmoid and (reference or config.num_experts_per_tok > 1):
            weights = weights / (weights.sum(-1, keepdim=True) + (0.0 if reference else 1e-20))
        return weights * (config.routed_scaling_factor or 1.0), chosen

    def _choose(self, scores):
        config = self.config
        if self.e_score_correction_bias is not None:
            scores = scores + self.e_score_correction_bias.to(scores.dtype)
        if config.topk_group:
            by_group = scores.unflatten(-1, (config.n_group, -1))
            best = config.num_experts_per_tok // config.topk_group
            best = 2 if config.mice_routing == "reference" else best
            kept = (
                by_group.topk(best, dim=-1).values.sum(-1).topk(config.topk_group, dim=-1).indices
            )
            blocked = torch.ones_like(by_group[..., 0], dtype=torch.bool).scatter(-1, kept, False)
            scores = by_group.masked_fill(blocked.unsqueeze(-1), -torch.inf).flatten(-2)
        return scores.topk(config.num_experts_per_tok, dim=-1).indices.sort(dim=-1).values


class HelmExpert(HelmMLP):
    """One expert; Lorentz ones work on L_{c_e}, c_e the bounded softplus of `curvature`."""

    def __init__(self, config):
        super().__init__(config, config.moe_intermediate_size)
        self.hidden_curvature = config.curvature
        lorentz = config.geometry == "lorentz"
        self.curvature = nn.Parameter(torch.empty(1)) if lorentz else None

    def forward(self, x):
        if self.curvature is None:
            return super().forward(x)
        c, c_e = self.hidden_curvature, bounded_softplus(self.curvature)
        return rescale(super().forward(rescale(x, c, c_e), c_e), c_e, c)


class HelmMoE(nn.Module):
    """Routed experts and, if the config has one, the shared expert, combined to one point.

    Lorentz points are combined to their centroid in ambient space, or as the authors' release does:
    residuals of scale 2 over the chosen experts by ascending index, then the shared one.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.gate = HelmRouter(config)
        self.experts = nn.ModuleList(HelmExpert(config) for _ in range(config.n_routed_experts))
        width = config.shared_expert_intermediate_size
        self.shared_experts = HelmMLP(config, width) if width else None
        self.add_experts = None
        if config.geometry == "lorentz" and config.mice_combine == "reference":
            self.add_experts = HelmResidual(config, scale=2.0, learn_scale=True)

    def forward(self, x):
        shape = x.shape
        x = x.flatten(0, 1)
        weights, chosen = self.gate(x)
        points = wide(self._experts(x, chosen))
        shared = None if self.shared_experts is None else wide(self.shared_experts(x))
        return self._combine(points, weights, shared).to(x.dtype).view(shape)

    def _experts(self, x, chosen):
        """The chosen experts' outputs, `[tokens, k, hidden]`."""
        points = x.new_zeros(*chosen.shape, x.shape[-1])
        # In training those that no token chose take part too, with gradients of zero: the ranks of
        # DDP and ZeRO gather and reduce the parameters of the same modules in the same order.
        active = range(len(self.experts)) if self.training else chosen.unique().tolist()
        for i in active:
            token, slot = (chosen == i).nonzero(as_tuple=True)
            points = points.index_put((token, slot), self.experts[i](x[token]))
        return points

    def _combine(self, points, weights, shared):
        c = self.config.curvature
        weights = weights.unsqueeze(-1)
        if self.add_experts is not None:
            y = torch.zeros_like(points[:, 0])
            for i in range(points.shape[1]):
                y = residual(y, points[:, i], weights[:, i], 2.0, c)
            return self.add_experts(shared, y)
        space = (weights * points).sum(1)
        if self.config.geometry != "lorentz":
            return space if shared is None else space + shared
        total_time = (weights * time(points, c)).sum(1)
        if shared is not None:
            space, total_time = space + shared, total_time + time(shared, c)
        return normalize(total_time, space, c, eps=1e-8)
