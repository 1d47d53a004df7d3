"""Curvatures of layers and experts: what they mean, and bounds that keep learned ones finite."""

import pytest
import torch

from helm_megatron.config import CURVATURES, HelmSettings
from helm_megatron.geometry import lorentz
from helm_megatron.moe.curvature import ExpertCurvature
from tests.layers import models

pytestmark = pytest.mark.usefixtures("one_process")

C, INNER = 1.3, (0.4, 2.2)


@pytest.mark.parametrize("make", [models.dense, models.mice])
def test_each_layer_computes_at_its_own_curvature(make):
    """A layer of curvature k within a model of curvature c is one of a model of curvature k."""
    config = make(torch.float64, {"curvature": C, "layer_curvature": INNER})
    layered = models.perturb(models.model(config)).eval()
    x = torch.randn(8, 2, config.hidden_size, dtype=torch.float64)
    for number, k in enumerate(INNER):
        plain = models.model(make(torch.float64, {"curvature": k})).eval()
        plain.load_state_dict(layered.state_dict(), strict=True)
        positions = plain.rotary_pos_emb(8) if hasattr(plain, "rotary_pos_emb") else None
        theirs, _ = plain.decoder.layers[number](
            lorentz.rescale(x, C, k), attention_mask=None, rotary_pos_emb=positions
        )
        ours, _ = layered.decoder.layers[number](
            hidden_states=x, attention_mask=None, rotary_pos_emb=positions
        )
        torch.testing.assert_close(ours, lorentz.rescale(theirs, k, C), rtol=1e-12, atol=1e-12)
        if number == 0:
            at_c = models.model(make(torch.float64, {"curvature": C})).eval()
            at_c.load_state_dict(layered.state_dict())
            other, _ = at_c.decoder.layers[0](x, attention_mask=None, rotary_pos_emb=positions)
            assert (ours - other).abs().max() > 1e-3


def test_layers_are_spaced_between_the_ends():
    helm = HelmSettings(curvature=1.5, layer_curvature=(1.0, 2.0))
    assert [helm.curvature_within_layer(i, 3) for i in range(3)] == [1.0, 1.5, 2.0]
    assert HelmSettings(curvature=1.5).curvature_within_layer(2, 3) == 1.5


@pytest.mark.parametrize(("expert", "sign"), [(0, 1), (3, -1)])
def test_learned_curvature_stops_at_its_bound_and_comes_back(expert, sign):
    config = models.mice(helm={"mice_curvature_init": (995.0, 1.1e-3)})
    learned = ExpertCurvature(config, expert, tp_group=None)
    start, bound = learned().item(), CURVATURES[1] if sign > 0 else CURVATURES[0]
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.3)

    def steps(direction):
        for _ in range(60):
            optimizer.zero_grad()
            (-direction * learned().log()).sum().backward()
            optimizer.step()
        return learned().item()

    assert steps(sign) == pytest.approx(bound, rel=1e-6)
    raw = learned.raw.item()
    steps(sign)
    assert abs(learned.raw.item() - raw) < 0.3, "it rests there"
    back = steps(-sign)
    assert sign * (bound - back) > sign * (bound - start) > 0


def test_gradient_passes_between_the_bounds():
    learned = ExpertCurvature(models.mice(), 1, tp_group=None)
    learned().sum().backward()
    assert learned.raw.grad.item() == pytest.approx(torch.sigmoid(learned.raw).item())
