"""The router and the mixture of experts of a Megatron layer against the released modules."""

from typing import Any

import pytest
import torch
from golden import assert_close, cases, load_case
from leaves import ModuleCase, leaf_of_layer
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from released import DEVICE, record_balance_losses, routing
from torch import Tensor

from helm_megatron.moe.bias import reference_bias_update

pytestmark = pytest.mark.usefixtures("one_process")


def gate_cases(with_config: bool) -> list[Any]:
    """The cases that route, or those that update the bias."""
    return [p for p in cases("mod_gate") if p.marks or (p.id == "update_bias") != with_config]


def assert_choices(tensors: dict[str, Tensor], routing_map: Tensor) -> None:
    routing_map = routing_map.cpu()
    chosen = torch.zeros_like(routing_map).scatter(1, tensors["out/indices"], True)
    assert torch.equal(routing_map, chosen)
    if "out/counts" in tensors:
        assert torch.equal(routing_map.sum(0), tensors["out/counts"])


@pytest.mark.parametrize("name", gate_cases(with_config=True))
def test_router(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, info = load_case("mod_gate", name)
    case = ModuleCase(tensors, dtype)
    balanced = "out/balance_loss" in tensors
    config = case.config(**info["config"])
    # The released balance loss takes two experts a token, whatever their number; Megatron divides.
    config.moe_aux_loss_coeff *= config.moe_router_topk / 2
    leaf = leaf_of_layer(config, "mlp.router", "layers.0.ffn.gate.", moe=True)
    leaf.load(case)
    router = leaf.module.train(balanced)
    balance = record_balance_losses(monkeypatch)
    if balanced:
        # Megatron adds the loss to the backward pass of the weights.
        scale = case.get("cotangent/balance_loss")
        monkeypatch.setattr(MoEAuxLossAutoScaler, "main_loss_backward_scale", scale)
    x = case.space("x")
    weights, routing_map = router(x.unsqueeze(1))
    assert_choices(tensors, routing_map)
    outputs = {"weights": weights.gather(1, case.get("out/indices"))}
    if balanced:
        outputs["scores"] = router.scores(router.gating(x))
        loss = balance[0] * config.moe_aux_loss_coeff
        assert_close(loss, tensors["out/balance_loss"], case.rtol, what="balance loss")
    case.assert_outputs(**outputs)
    case.assert_input_gradients()
    leaf.assert_gradients(case)


@pytest.mark.parametrize("name", gate_cases(with_config=False))
def test_bias_update(name: str) -> None:
    tensors, info = load_case("mod_gate", name)
    bias = tensors["in/bias"].to(DEVICE)
    counts = torch.bincount(tensors["in/indices"].flatten(), minlength=len(bias)).to(bias)
    updated = reference_bias_update(bias, counts, info["speed"])
    assert_close(updated.cpu(), tensors["out/bias"], what="bias")


@pytest.mark.parametrize("name", cases("mod_moe"))
def test_mixture(name: str, dtype: torch.dtype) -> None:
    tensors, info = load_case("mod_moe", name)
    case = ModuleCase(tensors, dtype)
    config = case.config(**info["config"])
    leaf = leaf_of_layer(config, "mlp", "layers.0.ffn.", moe=True)
    leaf.load(case)
    layer = leaf.module.eval()
    routed: dict[str, Tensor] = {}
    layer.router.register_forward_hook(
        lambda router, args, output: routed.update(routing(router, args[0], output))
    )
    y, _ = layer(case.space("x").transpose(0, 1).contiguous())
    assert_choices(tensors, routed.pop("map"))
    weights = routed["weights"].gather(1, case.get("out/indices"))
    assert_close(weights.cpu(), tensors["out/weights"], case.rtol, what="weights")
    case.assert_outputs(y=case.output(y.transpose(0, 1)), scores=routed["scores"])
    case.assert_input_gradients()
    leaf.assert_gradients(case)
