"""Rotary embedding inside the attention core gives what it gives before it."""

import pytest
import torch

from helm_megatron.layers.self_attention import LorentzSelfAttention
from tests.layers.models import dense, model, perturb

pytestmark = pytest.mark.usefixtures("one_process")


def loss_and_gradients(lm, tokens):
    lm.zero_grad()
    logits = lm(tokens, torch.arange(tokens.shape[1]).expand(tokens.shape), None)
    loss = logits.square().mean()
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad.clone() for name, p in lm.named_parameters()}}


@pytest.mark.parametrize(
    "recompute",
    [
        {},
        dict(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1),
        dict(recompute_granularity="selective", recompute_modules=["core_attn"]),
    ],
    ids=lambda options: options.get("recompute_granularity", "none"),
)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_inside_the_core_or_before(recompute, share, monkeypatch):
    """Also where a part of the forward pass is run twice, or some coordinates do not turn."""
    torch.manual_seed(0)
    config = dense(torch.float64, helm={"curvature": 1.3}, qk_layernorm=True, **recompute)
    lm = perturb(model(config, rotary_percent=share)).train()
    tokens = torch.randint(96, (2, 16))
    inside = loss_and_gradients(lm, tokens)
    monkeypatch.setattr(LorentzSelfAttention, "_core_can_rotate", lambda *_: False)
    before = loss_and_gradients(lm, tokens)
    assert set(inside) == set(before)
    for name, value in before.items():
        # Megatron's table of angles is of fp32, and so are its cosines.
        torch.testing.assert_close(inside[name], value, rtol=1e-6, atol=1e-8, msg=name)
