"""Attention of HELM models: grouped-query and latent (HMLA), with their caches.

Lorentz scores are dot products of heads that carry their time as one more coordinate, and the
attended value is a weighted sum of ambient vectors, normalized once per head. So torch's fused
attention computes it exactly, in memory linear in the sequence.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .lorentz_helm import HelmLinear, HelmRMSNorm, normalize, time, wide


def rotate(x, cos, sin, interleaved):
    """Rotate the first `cos.shape[-1]` coordinates of heads `[b, h, s, d]`; the rest pass.

    Interleaved pairs are put into halves first: queries and keys alike, so scores do not change.
    """
    width = cos.shape[-1]
    x, rest = x[..., :width], x[..., width:]
    if interleaved:
        x = torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
    left, right = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1).to(x.dtype), sin.unsqueeze(1).to(x.dtype)
    return torch.cat([x * cos + torch.cat([-right, left], dim=-1) * sin, rest], dim=-1)


def fused_attention(q, k, v, mask, scale):
    """Attention of heads `[b, h, s, d]`, causal without a mask; returns `[b, h, s, v width]`."""
    width = max(q.shape[-1], v.shape[-1])
    q, k, padded_v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q,
        k,
        padded_v,
        attn_mask=mask,
        is_causal=mask is None and q.shape[2] > 1,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[..., : v.shape[-1]]


def lorentz_attention(q, k, v, mask, temperature, c):
    """Ambient centroids `[b, h, s, 1 + v width]`, time first, of heads of space coordinates."""
    factor = 2 / wide(temperature)
    scaled = (wide(q) * factor).to(q.dtype)
    q_time = _lanes(time(scaled, c * factor * factor), q.dtype)
    k_time = _lanes(time(k, c), k.dtype)
    # The weights of a softmax sum to 1: a constant taken off all times leaves only differences to
    # be rounded to bf16.
    shift = time(v[:, :, :1].detach(), c) if v.dtype in (torch.bfloat16, torch.float16) else 0.0
    v_time = _lanes(time(v, c) - shift, v.dtype)
    if len(k_time) == 2:
        high, low = q_time
        q_time, k_time = [high, high, low], [*k_time, k_time[0]]
    m = fused_attention(
        _aligned([scaled, *(-lane for lane in q_time)]),
        _aligned([k, *k_time]),
        _aligned([v, *v_time]),
        mask,
        scale=1.0,
    )
    d = v.shape[-1]
    if torch.is_tensor(shift):
        shift = shift.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    m_time = wide(m)[..., d:].sum(-1, keepdim=True) + shift
    return ambient_centroid(m_time, wide(m)[..., :d], c).to(q.dtype)


def ambient_centroid(m_time, m, c):
    """A weighted sum of points of L_c, brought to L_c, with its time first."""
    space = normalize(m_time, m, c, eps=1e-8 if m.dtype == torch.float64 else 1e-6)
    return torch.cat([time(space, c), space], dim=-1)


def _lanes(t, dtype):
    """An fp32 time in dtype: itself if that is wide enough, else a high and a low part."""
    high = t.to(dtype)
    return [high] if torch.finfo(dtype).bits >= 32 else [high, (t - high.to(t.dtype)).to(dtype)]


def _aligned(parts):
    x = torch.cat(parts, dim=-1)
    wanted = x.shape[-1] if torch.finfo(x.dtype).bits >= 32 else -(-x.shape[-1] // 8) * 8
    return F.pad(x, (0, wanted - x.shape[-1]))


class _Attention(nn.Module):
    """What both kinds share: the output projection, over ambient heads, and the temperature."""

    def __init__(self, config, layer_idx, key_width, value_width):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.heads = config.num_attention_heads
        self.lorentz = config.geometry == "lorentz"
        width = self.heads * (value_width + int(self.lorentz))
        bias = self.lorentz and config.linear_bias
        self.o_proj = nn.Linear(width, config.hidden_size, bias=bias)
        self.initial_temperature = math.sqrt(self.heads * (key_width + 1))
        self.temperature = nn.Parameter(torch.empty(1)) if self.lorentz else None
        self.scale = config.softmax_scale or key_width**-0.5

    def attend(self, q, k, v, mask):
        """Heads `[b, h, s, d]` to heads `[b, h, s, value width]`, ambient if Lorentz."""
        if self.lorentz:
            return lorentz_attention(q, k, v, mask, self.temperature, self.config.curvature)
        return fused_attention(q, k, v, mask, self.scale)

    def project(self, heads):
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class HelmAttention(_Attention):
    """Multi-head or grouped-query attention; the cache holds keys and values of each head."""

    def __init__(self, config, layer_idx):
        d, hidden = config.head_dim, config.hidden_size
        super().__init__(config, layer_idx, d, d)
        self.q_proj = HelmLinear(config, hidden, self.heads * d)
        self.k_proj = HelmLinear(config, hidden, config.num_key_value_heads * d)
        self.v_proj = HelmLinear(config, hidden, config.num_key_value_heads * d)
        self.q_norm = HelmRMSNorm(config, d) if config.qk_norm else None
        self.k_norm = HelmRMSNorm(config, d) if config.qk_norm else None

    def forward(self, x, mask, rotary, cache=None):
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        interleaved = self.config.rope_interleaved
        q, k = rotate(q, *rotary, interleaved), rotate(k, *rotary, interleaved)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        return self.project(self.attend(q, k, v, mask))


class HelmLatentAttention(_Attention):
    """Multi-head latent attention.

    The cache holds, per token, the normalized latent with the rotary key (as "keys"), and the times
    of the key and value of each head in fp32 (as "values"): the times are not linear in the latent,
    everything else is. One new token is attended in the latent space, the up-projection absorbed
    into the query and the output.
    """

    def __init__(self, config, layer_idx):
        self.widths = [config.qk_nope_head_dim, config.qk_rope_head_dim]
        key_width, hidden = sum(self.widths), config.hidden_size
        super().__init__(config, layer_idx, key_width, config.v_head_dim)
        self.up_widths = [config.qk_nope_head_dim, config.v_head_dim]
        rank, q_rank = config.kv_lora_rank, config.q_lora_rank
        if q_rank is None:
            self.q_proj = HelmLinear(config, hidden, self.heads * key_width)
        else:
            self.q_a_proj = HelmLinear(config, hidden, q_rank)
            self.q_a_layernorm = HelmRMSNorm(config, q_rank)
            self.q_b_proj = HelmLinear(config, q_rank, self.heads * key_width)
        self.kv_a_proj = HelmLinear(config, hidden, rank + config.qk_rope_head_dim)
        self.kv_a_layernorm = HelmRMSNorm(config, rank)
        self.kv_b_proj = HelmLinear(config, rank, self.heads * sum(self.up_widths))

    def forward(self, x, mask, rotary, cache=None):
        q = self._query(x, rotary)
        latent, turned = self.kv_a_proj(x).split(
            [self.config.kv_lora_rank, self.config.qk_rope_head_dim], dim=-1
        )
        latent = self.kv_a_layernorm(latent)
        turned = rotate(turned.unsqueeze(1), *rotary, self.config.rope_interleaved).squeeze(1)
        k, v = self._up(latent, turned)
        if cache is None:
            return self.project(self.attend(q, k, v, mask))
        is_first = cache.get_seq_length(self.layer_idx) == 0
        stored = torch.cat([latent, turned], dim=-1).unsqueeze(1)
        stored, times = cache.update(stored, self._times(k, v), self.layer_idx)
        if is_first:
            return self.project(self.attend(q, k, v, mask))
        latent, turned = stored.squeeze(1).split(
            [self.config.kv_lora_rank, self.config.qk_rope_head_dim], dim=-1
        )
        if q.shape[2] > 1:  # many queries share what the up-projection costs
            return self.project(self.attend(q, *self._up(latent, turned), mask))
        return self.project(self._absorbed(q, latent, turned, times, mask).to(q.dtype))

    def _query(self, x, rotary):
        if self.config.q_lora_rank is None:
            q = self.q_proj(x)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        plain, turned = q.unflatten(-1, (self.heads, -1)).transpose(1, 2).split(self.widths, dim=-1)
        return torch.cat([plain, rotate(turned, *rotary, self.config.rope_interleaved)], dim=-1)

    def _up(self, latent, turned):
        """Keys and values `[b, h, s, d]` of latents `[b, s, rank]` and rotary keys `[b, s, r]`."""
        kv = self.kv_b_proj(latent).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        plain, v = kv.split(self.up_widths, dim=-1)
        turned = turned.unsqueeze(1).expand(-1, self.heads, -1, -1)
        return torch.cat([plain, turned], dim=-1), v

    def _times(self, k, v):
        """Times of keys, then of values, `[b, 1, s, 2 h]`; no columns if Euclidean."""
        if not self.lorentz:
            return k.new_empty(k.shape[0], 1, k.shape[2], 0)
        c = self.config.curvature
        return torch.cat([time(k, c), time(v, c)], dim=1).squeeze(-1).transpose(1, 2).unsqueeze(1)

    def _absorbed(self, q, latent, turned, times, mask):
        """Attention of q `[b, h, 1, d]` over latents, in fp32: what `attend` of `_up` gives."""
        plain, q_turned = wide(q).split(self.widths, dim=-1)
        latent = wide(latent).unsqueeze(1)
        up = wide(self.kv_b_proj.weight).unflatten(0, (self.heads, -1))
        k_up, v_up = up.split(self.up_widths, dim=1)
        scores = (plain @ k_up) @ latent.mT + q_turned @ wide(turned).unsqueeze(1).mT
        if not self.lorentz:
            weights = _softmax(scores * self.scale, mask)
            return (weights @ latent) @ v_up.mT
        c = self.config.curvature
        k_time, v_time = times.squeeze(1).mT.unsqueeze(2).chunk(2, dim=1)
        latent_time = time(latent, c)
        k_column, v_column = self._of_heads(self.kv_b_proj.time_weight).split(self.up_widths, dim=1)
        scores = scores + (plain @ k_column.unsqueeze(-1)) * latent_time.mT - time(q, c) * k_time
        # The key's bias adds the same to every score of a row, so the softmax cancels it.
        weights = _softmax(scores * (2 / wide(self.temperature)), mask)
        m = (weights @ latent) @ v_up.mT + (weights @ latent_time) * v_column.unsqueeze(1)
        if self.kv_b_proj.bias is not None:
            m = m + self._of_heads(self.kv_b_proj.bias)[:, self.up_widths[0] :].unsqueeze(1)
        return ambient_centroid(weights @ v_time.mT, m, c)

    def _of_heads(self, column):
        return wide(column).unflatten(0, (self.heads, -1))


def _softmax(scores, mask):
    if mask is not None:
        blocked = ~mask if mask.dtype == torch.bool else mask < 0
        scores = scores.masked_fill(blocked, -torch.inf)
    return scores.softmax(dim=-1)
