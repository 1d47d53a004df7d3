"""Memory: attention and experts hold nothing of the size of the sequence squared."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from .models import dense, mice, model, perturb

# Every activation is narrower than a quarter of it, so that even a mask of single bytes shows.
SEQUENCE = 2048
NARROW = dict(hidden_size=32, ffn_hidden_size=48, num_attention_heads=2)


def largest_allocation(call):
    """Bytes of the largest allocation on the CPU, also those within kernels."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = profiled.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


NO_EXPERTS = dict(
    num_moe_experts=None,
    moe_layer_freq=1,
    moe_ffn_hidden_size=None,
    moe_shared_expert_intermediate_size=None,
)
CONFIGS = {
    "HELM-D": lambda **options: dense(num_query_groups=1, kv_channels=16, **options),
    "HMLA": lambda **options: mice(**NO_EXPERTS, **options),
    "HELM-MiCE": lambda **options: mice(moe_ffn_hidden_size=24, **options),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_has_the_size_of_the_sequence_squared(one_process, name, dtype):
    net = perturb(model(CONFIGS[name](dtype=dtype, **NARROW), 96, SEQUENCE))
    tokens = torch.randint(96, (1, SEQUENCE))
    positions = torch.arange(SEQUENCE).unsqueeze(0)

    def step():
        net(tokens, positions, None, labels=tokens).mean().backward()

    assert largest_allocation(step) < SEQUENCE**2


def test_a_mask_would_be_seen():
    assert largest_allocation(lambda: torch.ones(SEQUENCE, SEQUENCE).tril() > 0) >= SEQUENCE**2
