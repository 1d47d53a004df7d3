"""The attention core against `geometry/reference.py`: heads that lie far out, and dropout."""

import pytest
import torch

from helm_megatron.geometry import reference
from helm_megatron.kernels.augment.plain import centroid
from helm_megatron.layers import attention
from tests.layers.models import dense, part_of

pytestmark = pytest.mark.usefixtures("one_process")

TOKENS, BATCH, HEADS, GROUPS, D = 24, 2, 4, 2, 16


@pytest.fixture
def in_lanes(monkeypatch):
    """Heads in bf16 with their times in lanes, as a GPU's kernels have it."""
    monkeypatch.setattr(attention.LorentzAttention, "computed_in", lambda self, x: x)


def heads(number, radii):
    """Random space coordinates in bf16; every head at its own distance from the origin."""
    x = torch.randn(TOKENS, BATCH, number, D)
    return (torch.tensor(radii).view(number, 1) * x).bfloat16()


def far_out():
    """q, k, v of grouped queries; values of the two groups at quite different distances."""
    return heads(HEADS, [1.0] * HEADS), heads(GROUPS, [1.0, 1.0]), heads(GROUPS, [0.3, 12.0])


def expected(core, q, k, v):
    """The released formulas in ambient coordinates and fp64, `[s, b, heads, 1 + d]`."""
    repeats = HEADS // GROUPS
    q, k, v = (x.double().permute(1, 2, 0, 3) for x in (q, k, v))
    k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
    c = core.config.helm.curvature
    q, k, v = (reference.lift(x, c) for x in (q, k, v))
    scores = (2 * c + 2 * reference.pairwise_inner(q, k)) / core.temperature.double()
    future = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return reference.centroid(v, weights, c).permute(2, 0, 1, 3)


def test_grouped_queries_far_out_in_bf16(in_lanes):
    """Each head's time keeps its low part, and gets back what its own group's was less by."""
    core = part_of(dense(), "self_attention.core_attention")
    q, k, v = far_out()
    exact = expected(core, q, k, v)
    found = core(q, k, v, None).unflatten(-1, (HEADS, 1 + D)).double()
    error = (found - exact).norm(dim=-1) / exact.norm(dim=-1)
    # A rounding of bf16 is 2**-8; what is lost of a time comes back many times larger.
    assert error.mean() < 2**-8 and error.max() < 2**-4, error.amax((0, 1))


def test_what_dropout_leaves_has_its_own_time(in_lanes):
    """The first token sees itself alone: it is its own value, or where that is dropped the origin.

    The weights that dropout leaves don't sum to 1, so nothing may be taken off the times.
    """
    core = part_of(dense(attention_dropout=0.5), "self_attention.core_attention").train()
    q, k, v = far_out()
    first = core(q, k, v, None).unflatten(-1, (HEADS, 1 + D))[0].float()
    space = v[0].repeat_interleave(HEADS // GROUPS, dim=-2).float()
    kept = first[..., 1:].norm(dim=-1) > 0
    assert kept.any() and not kept.all()
    torch.testing.assert_close(first[..., 1:][kept], space[kept], rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0, 50.0])
def test_a_point_is_its_own_centroid(c):
    """|<m,m>| of a point is its curvature: the clamp lies below all that are allowed."""
    space = c**0.5 * torch.randn(8, D)
    time = (c + space.square().sum(-1, keepdim=True)).sqrt()
    found = centroid(torch.cat([space, time], -1), D, c)
    torch.testing.assert_close(found, reference.lift(space, c), rtol=1e-3, atol=1e-3 * c**0.5)
