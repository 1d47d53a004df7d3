"""The hyperboloid in its space chart, and the leaves of HELM models as plain torch modules.

A point of L_c = {(t, x) : -t^2 + |x|^2 = -c, t > 0} is given by its space coordinates x; its time
t = sqrt(|x|^2 + c) is computed in fp32 where it is needed and never kept.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def wide(x):
    """bf16 and fp16 as fp32; fp32 and fp64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def time(x, c):
    """Time coordinate of points `[.., d]` of L_c, as `[.., 1]` in at least fp32."""
    x = wide(x)
    return (x.square().sum(-1, keepdim=True) + c).sqrt()


def rescale(x, c_from, c_to):
    """Points of L_{c_from} to L_{c_to}: the ambient vector times sqrt(c_to / c_from)."""
    if not torch.is_tensor(c_from) and not torch.is_tensor(c_to) and c_from == c_to:
        return x
    return (wide(x) * (c_to / c_from) ** 0.5).to(x.dtype)


def normalize(z_time, z, c, eps):
    """An ambient vector, time `[.., 1]` and space `[.., d]`, brought to L_c."""
    return _scaled(z, z_time.square() - z.square().sum(-1, keepdim=True), c, eps)


def residual(x, f, weight, scale, c):
    """scale * (x + weight f, normalized in ambient space), for points x and f of L_c.

    The squared norm of the sum is c (1 + w^2) - 2 w <x,f>; time^2 - space^2 would cancel more.
    """
    dtype = x.dtype
    x, f, weight = wide(x), wide(f), wide(weight)
    inner = (x * f).sum(-1, keepdim=True) - time(x, c) * time(f, c)
    norm2 = c * (1 + weight * weight) - 2 * weight * inner
    return (scale * _scaled(x + weight * f, norm2, c, 1e-4)).to(dtype)


def _scaled(z, norm2, c, eps):
    return z * (c**0.5 * norm2.abs().clamp_min(eps).rsqrt())


class HelmLinear(nn.Module):
    """y = W x + w_t time(x) + b on space coordinates; without w_t and b if Euclidean."""

    def __init__(self, config, in_features, out_features, bias=True):
        super().__init__()
        lorentz = config.geometry == "lorentz"
        self.curvature = config.curvature
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.time_weight = nn.Parameter(torch.empty(out_features)) if lorentz else None
        has_bias = lorentz and bias and config.linear_bias
        self.bias = nn.Parameter(torch.empty(out_features)) if has_bias else None

    def forward(self, x, curvature=None):
        y = F.linear(x, self.weight)
        if self.time_weight is None:
            return y
        c = self.curvature if curvature is None else curvature
        out = torch.addcmul(wide(y), time(x, c), wide(self.time_weight))
        if self.bias is not None:
            out = out + wide(self.bias)
        return out.to(y.dtype)


class HelmRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32."""

    def __init__(self, config, size):
        super().__init__()
        self.eps = config.rms_norm_eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        y = wide(x)
        return F.rms_norm(y, (y.shape[-1],), self.weight.to(y.dtype), self.eps).to(x.dtype)


class HelmResidual(nn.Module):
    """The Lorentz residual with a learned weight, and a fixed or learned scale."""

    def __init__(self, config, input_curvature=None, scale=None, learn_scale=None):
        super().__init__()
        self.curvature = config.curvature
        # Of x, where it is not the hidden one.
        self.input_curvature = input_curvature
        ambient = config.residual_scale * math.sqrt(config.hidden_size + 1)
        self.scale = ambient if scale is None else scale
        self.weight = nn.Parameter(torch.ones(1))
        learned = config.learn_residual_scale if learn_scale is None else learn_scale
        self.log_scale = nn.Parameter(torch.empty(1)) if learned else None

    def forward(self, x, f):
        scale = self.scale if self.log_scale is None else wide(self.log_scale).exp()
        if self.input_curvature is None:
            return residual(x, f, self.weight, scale, self.curvature)
        weight = wide(self.weight)
        z_time = time(x, self.input_curvature) + weight * time(f, self.curvature)
        z = wide(x) + weight * wide(f)
        return (scale * normalize(z_time, z, self.curvature, 1e-4)).to(x.dtype)


class EuclideanResidual(nn.Module):
    """x + f."""

    def forward(self, x, f):
        return x + f


def make_residual(config, input_curvature=None):
    """The residual of the config's geometry."""
    if config.geometry == "lorentz":
        return HelmResidual(config, input_curvature)
    return EuclideanResidual()


class HelmMLP(nn.Module):
    """W2 (silu(W1 x) * (W3 x)), on L_c of the given curvature."""

    def __init__(self, config, intermediate_size):
        super().__init__()
        self.gate_proj = HelmLinear(config, config.hidden_size, intermediate_size)
        self.up_proj = HelmLinear(config, config.hidden_size, intermediate_size)
        self.down_proj = HelmLinear(config, intermediate_size, config.hidden_size)

    def forward(self, x, curvature=None):
        h = F.silu(self.gate_proj(x, curvature)) * self.up_proj(x, curvature)
        return self.down_proj(h, curvature)
