"""The released routing's balance losses, against their formulas."""

import pytest
import torch

from tests.layers.models import mice, part_of

pytestmark = pytest.mark.usefixtures("one_process")

TOKENS, BATCH, EXPERTS = 10, 3, 4


def router(**overrides):
    helm = {"mice_routing": "reference"}
    return part_of(mice(helm=helm, **overrides), "mlp.router").train()


def gate_gradient(gate, x):
    gate.weight.grad = None
    (gate(x)[0].sum() * 0).backward()
    return gate.weight.grad


def sequence_loss(gate, x, coefficient):
    """E / (k T) sum_e f_e p_e of each sequence, their mean; DeepSeek-V3, (17) to (20)."""
    scores = gate.scores((x @ gate.weight.t()).float())
    chosen = gate.select(scores.flatten(0, 1)).view(TOKENS, BATCH, -1)
    shares = (scores / scores.sum(-1, keepdim=True)).mean(0)
    counts = torch.nn.functional.one_hot(chosen, EXPERTS).sum((0, 2)).float()
    loads = counts * EXPERTS / (gate.topk * TOKENS)
    return coefficient * (loads * shares).sum(-1).mean()


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_released_routing_has_the_sequence_balance_loss(score):
    options = dict(moe_router_score_function=score, moe_router_load_balancing_type="seq_aux_loss")
    gate = router(**options, moe_aux_loss_coeff=0.3)
    torch.nn.init.normal_(gate.weight, std=0.3)
    x = torch.randn(TOKENS, BATCH, 64)
    found = gate_gradient(gate, x)
    gate.weight.grad = None
    sequence_loss(gate, x, 0.3).backward()
    assert gate.weight.grad.norm() > 1e-3
    torch.testing.assert_close(found, gate.weight.grad)
