"""A Lorentz leaf with zero time weights is the Euclidean one (DESIGN: "a test")."""

import pytest
import torch

from helm_megatron.specs import leaves_of
from tests.layers.models import dense, mice, model, perturb

pytestmark = pytest.mark.usefixtures("one_process")


def linear(config, kind):
    """One linear of the config's geometry, 64 -> 32."""
    options = dict(config=config, init_method=torch.nn.init.normal_, bias=False, skip_bias_add=True)
    if kind == "row":
        options["input_is_parallel"] = True
    return getattr(leaves_of(config), kind)(64, 32, **options)


@pytest.mark.parametrize("kind", ["column", "row", "replicated"])
def test_zero_time_weight_is_the_euclidean_linear(kind):
    lorentz = linear(dense(torch.float64), kind)
    euclidean = linear(dense(torch.float64, helm={"geometry": "euclidean"}), kind)
    euclidean.weight.data.copy_(lorentz.weight.data)
    x = torch.randn(5, 2, 64, dtype=torch.float64)
    torch.testing.assert_close(lorentz(x)[0], euclidean(x)[0], rtol=0, atol=0)
    lorentz.time_weight.data.fill_(0.1)
    assert not torch.allclose(lorentz(x)[0], euclidean(x)[0])


@pytest.mark.parametrize("config", [dense, mice])
def test_a_model_takes_its_twins_weights_by_name(config):
    """Every parameter of the Euclidean twin has a Lorentz parameter of the same name.

    The shapes agree too, but for the linear after attention, whose heads carry their times, and the
    final norm, which follows a projection.
    """
    lorentz = dict(model(config()).named_parameters())
    twin = dict(model(config(helm={"geometry": "euclidean"})).named_parameters())
    twin.pop("decoder.final_layernorm.weight")
    assert not {name.replace("norm.norm", "norm") for name in twin} - set(lorentz)
    wider = {name for name in twin if twin[name].shape != lorentz[name].shape}
    assert wider and all(name.endswith("linear_proj.weight") for name in wider)


def test_every_parameter_gets_a_gradient():
    lm = perturb(model(mice(moe_router_topk=4)))
    tokens = torch.randint(0, 96, (2, 32))
    lm(tokens, torch.arange(32).expand(2, 32), None, labels=tokens).mean().backward()
    dead = [n for n, p in lm.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead
