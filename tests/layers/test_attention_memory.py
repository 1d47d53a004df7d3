"""Without a mask attention makes no tensor as large as tokens squared, forward or backward."""

from types import SimpleNamespace

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helm_megatron.kernels.lower_right.op import lower_right_attention
from tests.layers.models import dense, mice, model, perturb

pytestmark = pytest.mark.usefixtures("one_process")

# Far above the width of all heads, so that scores are larger than anything else.
TOKENS = 512


class Largest(TorchDispatchMode):
    """The size of the largest tensor made while the mode is on."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


def core(config, geometry, backend=AttnBackend.auto):
    attention = model(config(helm={"geometry": geometry})).decoder.layers[-1].self_attention
    # Not before: Megatron fixes the backend of a process by environment variables.
    attention.config.attention_backend = backend
    return attention.core_attention


def largest(attention, packed=None):
    """Of one layer's attention, forward and backward; keys are wider than values in one config."""
    config = attention.config
    latent = hasattr(config, "v_head_dim")
    d, e = (24, config.v_head_dim) if latent else (config.kv_channels, config.kv_channels)
    batch = () if packed else (1,)
    q, k, v = (
        torch.randn(TOKENS, *batch, heads, width, requires_grad=True)
        for heads, width in ((4, d), (config.num_query_groups, d), (config.num_query_groups, e))
    )
    with Largest() as found:
        attention(q, k, v, None, packed_seq_params=packed).square().mean().backward()
    return found.numel


@pytest.mark.parametrize("config", [dense, mice])
@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
@pytest.mark.parametrize("documents", [None, [300, 1, 211]])
def test_no_scores_are_written_out(config, geometry, documents):
    packed = None
    if documents:
        bounds = torch.tensor([0, *documents]).cumsum(0, dtype=torch.int32)
        packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, max_seqlen_q=300)
    assert largest(core(config, geometry), packed) < TOKENS**2


def test_scores_of_the_unfused_backend_are_seen():
    assert largest(core(dense, "lorentz", AttnBackend.unfused)) >= TOKENS**2


@pytest.mark.parametrize("config", [dense, mice])
def test_unfused_equals_fused(config):
    d = 24 if config is mice else 16
    q, k, v = (torch.randn(40, 2, 4, width) for width in (d, d, 16))
    outs = [
        perturb(core(config, "lorentz", backend))(q, k, v, None)
        for backend in (AttnBackend.unfused, AttnBackend.fused)
    ]
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
def test_no_scores_between_context_parallel_ranks(geometry, monkeypatch):
    """The last rank of two, whose keys and values the others' tokens would join."""
    attention = core(dense, geometry)
    group = SimpleNamespace(size=lambda: 2, rank=lambda: 1)
    kernel = getattr(attention, "kernel", attention)
    attention.cp_group = kernel.cp_group = group
    gather = lambda x, group: torch.cat([x, x])  # noqa: E731
    monkeypatch.setattr("helm_megatron.layers.dot_product.gather_sequence", gather)
    # A mask would have a quarter of the whole sequence's scores for one chunk of queries.
    assert largest(attention) < TOKENS**2 / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lower_right_attention(dtype):
    """Against torch's with the mask written out."""
    q, k, v = (torch.randn(2, 3, s, 8, dtype=dtype, requires_grad=True) for s in (5, 17, 17))
    mask = torch.ones(5, 17, dtype=torch.bool).tril(12)
    masked = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
    joined = lower_right_attention(q, k, v, 0.3)
    cotangent = torch.randn_like(joined)
    torch.testing.assert_close(joined, masked)
    gradients = (torch.autograd.grad(out, (q, k, v), cotangent) for out in (joined, masked))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
