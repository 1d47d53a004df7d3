"""FusedAdam: torch's Adam, with the step in the group."""

import pytest
import torch

from helm_megatron.megatron_patches.adam import FusedAdam

SHAPES = [(3, 4), (5,), (2, 1, 2)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(DEVICE)) for s in SHAPES]


def take_steps(optimizer, params, count, start=0):
    for i in range(start, start + count):
        generator = torch.Generator().manual_seed(i)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
        optimizer.step()


@pytest.mark.parametrize("decoupled", [True, False])
def test_equals_torch(decoupled):
    ours, theirs = parameters(), parameters()
    settings = dict(lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
    torch_class = torch.optim.AdamW if decoupled else torch.optim.Adam
    take_steps(FusedAdam(ours, adam_w_mode=decoupled, **settings), ours, 5)
    take_steps(torch_class(theirs, **settings), theirs, 5)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


def test_continues_from_a_state_dict():
    whole, parts = parameters(), parameters()
    take_steps(FusedAdam(whole), whole, 4)
    first, second = FusedAdam(parts), FusedAdam(parts)
    take_steps(first, parts, 2)
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["step"] == 2
    take_steps(second, parts, 2, start=2)
    for p, q in zip(whole, parts, strict=True):
        assert torch.equal(p, q)


def test_leaves_parameters_without_gradient():
    params = parameters()
    before = params[1].detach().clone()
    params[0].grad = torch.ones_like(params[0])
    optimizer = FusedAdam(params)
    optimizer.step()
    assert torch.equal(params[1], before)
    assert params[1] not in optimizer.state


def test_an_empty_group_counts_no_steps():
    optimizer = FusedAdam([{"params": parameters()}, {"params": []}])
    take_steps(optimizer, optimizer.param_groups[0]["params"], 1)
    assert optimizer.param_groups[0]["step"] == 1
    assert "step" not in optimizer.param_groups[1]
