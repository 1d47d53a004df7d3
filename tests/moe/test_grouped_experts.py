"""Grouped experts against their plain form: the same function of the same parameters."""

from typing import Any

import pytest
import torch
from megatron.core.transformer.moe.experts import SequentialMLP

from helm_megatron.moe.experts import GroupedMiceExperts, MiceExperts
from tests.layers.models import mice, model

pytestmark = pytest.mark.usefixtures("one_process")

WIDTH = 64
# Runs of rows: unequal, of one row, and none at the start, in the middle and at the end.
LOADS = {
    "unequal": [13, 5, 26, 1],
    "one idle": [13, 0, 26, 1],
    "one busy": [0, 0, 40, 0],
    "no tokens": [0, 0, 0, 0],
}
HELM: dict[str, dict[str, Any]] = {
    "learned curvature": {},
    "fixed curvature": {"mice_learn_curvature": False},
    "no bias": {"linear_bias": False},
}


def experts_of(grouped: bool, helm: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    """The experts of a layer; in both forms of the same parameters."""
    config = mice(dtype, helm={"curvature": 1.7, **helm}, moe_grouped_gemm=grouped)
    experts = model(config).decoder.layers[1].mlp.experts
    generator = torch.Generator().manual_seed(0)
    for parameter in experts.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return experts


def results(experts: Any, loads: list[int], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The output and the gradients of everything that has one."""
    generator = torch.Generator().manual_seed(0)
    x, cotangent = (torch.randn(sum(loads), WIDTH, generator=generator).to(dtype) for _ in "xy")
    of_experts = next(experts.parameters()).dtype
    x, cotangent = x.to(of_experts).requires_grad_(), cotangent.to(of_experts)
    y = experts(x, torch.tensor(loads))
    y.backward(cotangent)
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in experts.named_parameters()
        if p.requires_grad
    }
    return {"output": y.detach(), "input": x.grad, **gradients}


@pytest.mark.parametrize("helm", HELM.values(), ids=HELM)
@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
def test_grouped_experts_equal_the_plain_ones(loads: list[int], helm: dict[str, Any]) -> None:
    plain, grouped = experts_of(False, helm), experts_of(True, helm)
    assert type(plain) is MiceExperts and type(grouped) is GroupedMiceExperts
    expected, found = (results(experts, loads, torch.float64) for experts in (plain, grouped))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-10, msg=name)


def test_their_error_in_bf16_is_of_the_same_size() -> None:
    rounded = experts_of(False, {}).bfloat16().double()
    exact = results(rounded, LOADS["unequal"], torch.bfloat16)
    errors = {}
    for grouped in (False, True):
        experts = experts_of(grouped, {}).bfloat16()
        found = results(experts, LOADS["unequal"], torch.bfloat16)
        differences = [(found[n].double() - t).norm() / t.norm() for n, t in exact.items()]
        errors[grouped] = torch.stack(differences).square().mean().sqrt()
    assert 0 < errors[True] <= 1.5 * errors[False], errors


def test_the_twin_has_megatrons_own() -> None:
    config = mice(helm={"geometry": "euclidean"}, moe_grouped_gemm=True)
    # Without Transformer Engine Megatron has no grouped ones.
    assert type(model(config).decoder.layers[1].mlp.experts) is SequentialMLP
