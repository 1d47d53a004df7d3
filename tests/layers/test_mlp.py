"""LorentzMLP joins SwiGLU with the tail of fc1; what it computes is Megatron's MLP all the same."""

import pytest
import torch
import torch.nn.functional as F
from megatron.core.transformer.mlp import MLP

from tests.layers.models import dense, mice, model, perturb

pytestmark = pytest.mark.usefixtures("one_process")


def feed_forward(config):
    return perturb(model(config).decoder.layers[0].mlp)


def results(forward, mlp, x, *args):
    mlp.zero_grad()
    x = x.clone().requires_grad_()
    out, bias = forward(x, *args)
    assert bias is None
    out.square().sum().backward()
    return [out, x.grad, *(p.grad for p in mlp.parameters())]


@pytest.mark.parametrize("helm", [{}, {"linear_bias": False}, {"curvature": 0.4}])
def test_joined_gate_is_megatrons_feed_forward(helm):
    mlp = feed_forward(dense(torch.float64, helm))
    x = torch.randn(6, 2, 64, dtype=torch.float64)
    plain = results(lambda x: MLP.forward(mlp, x), mlp, x)
    for ours, theirs in zip(results(mlp, mlp, x), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_func": F.gelu},
        {"activation_func": F.gelu, "gated_linear_unit": False},
        {"activation_func_clamp_value": 0.1},
        {"glu_linear_offset": 1.0},
    ],
)
def test_other_activations_are_megatrons(settings):
    mlp = feed_forward(dense(torch.float64, **settings))
    x = torch.randn(6, 2, 64, dtype=torch.float64)
    torch.testing.assert_close(mlp(x)[0], MLP.forward(mlp, x)[0], rtol=0, atol=0)


def test_tokens_weighted():
    mlp = feed_forward(dense(torch.float64, bias_activation_fusion=False))
    x, weights = torch.randn(6, 64, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    assert torch.equal(mlp(x, weights)[0], MLP.forward(mlp, x, weights)[0])
    assert not torch.allclose(mlp(x, weights)[0], mlp(x)[0])


@pytest.mark.parametrize("part", ["linear_fc1", "linear_fc2"])
@pytest.mark.parametrize("config", [dense, mice])
def test_hooks_of_the_linears_run(config, part):
    """Overlapped parameter gathers and monitors hang on them."""
    layer = model(config()).decoder.layers[-1].mlp
    mlp = getattr(layer, "shared_experts", layer)
    seen = []
    mlp.get_submodule(part).register_forward_pre_hook(lambda *_: seen.append(part))
    mlp(torch.randn(6, 2, 64))
    assert seen == [part]
