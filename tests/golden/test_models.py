"""HELM-D and HELM-MiCE through Megatron against the released models: logits, loss, gradients.

Megatron computes its rotary tables in fp32 whatever the parameters' type, and its loss too. In fp64
each case is run with a table computed in fp64, to show that there is no other difference, and with
Megatron's.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden import RTOL, assert_close, load
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from released import (
    DEVICE,
    assert_gradients,
    model_cases,
    record_balance_losses,
    routing,
    under,
)
from torch import Tensor

from helm_megatron.conversion.release.config import config_from_release
from helm_megatron.conversion.release.names import load_release
from helm_megatron.conversion.release.state import rotary_base
from helm_megatron.model import build_model
from helm_megatron.moe.router import MiceRouter

pytestmark = pytest.mark.usefixtures("one_process")

FP32_PARTS_RTOL = 1e-6


@dataclass
class Run:
    """What one forward pass computed, batch first."""

    logits: Tensor
    hidden: dict[str, Tensor] = field(default_factory=dict)
    routers: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def build(state: dict[str, Tensor], config: dict[str, Any], dtype: torch.dtype) -> GPTModel:
    model = build_model(
        config_from_release(config, state, dtype),
        vocab_size=config["vocab_size"],
        max_sequence_length=config["max_seq_len"],
        position_embedding_type="rope",
        rotary_base=rotary_base(config, state),
    ).to(DEVICE)
    load_release(model, state)
    return model


def use_fp64_rotary(model: GPTModel) -> None:
    """Replace Megatron's rotary frequencies, base^(-2i/d), by more precise ones."""
    for module in model.modules():
        if hasattr(module, "rotary_pos_emb"):
            pairs = torch.arange(module.rotary_pos_emb.inv_freq.numel(), dtype=torch.float64)
            module.rotary_pos_emb.inv_freq = (model.rotary_base ** (-pairs / pairs.numel())).to(
                DEVICE
            )


def arguments(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, positions and mask; the golden mask does not include causality."""
    tokens = tensors["tokens"].to(DEVICE)
    positions = torch.arange(tokens.shape[1], device=DEVICE).expand_as(tokens)
    if "attn_mask" not in tensors:
        return tokens, positions, None
    blocked = tensors["attn_mask"]
    return tokens, positions, (blocked | torch.ones_like(blocked).triu(1)).unsqueeze(1).to(DEVICE)


def run(model: GPTModel, tensors: dict[str, Tensor]) -> Run:
    result = Run(logits=torch.empty(0))

    def keep_hidden(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            x = output[0] if isinstance(output, tuple) else output
            result.hidden[name] = x.detach().transpose(0, 1).cpu()

        return hook

    def keep_routing(name: str) -> Any:
        def hook(router: MiceRouter, args: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
            found = routing(router, args[0], output)
            result.routers[name] = {key: tensor.detach().cpu() for key, tensor in found.items()}

        return hook

    hooks = [
        model.embedding.register_forward_hook(keep_hidden("embed")),
        model.decoder.final_layernorm.register_forward_hook(keep_hidden("final_norm")),
    ]
    for i, layer in enumerate(model.decoder.layers):
        hooks.append(layer.register_forward_hook(keep_hidden(str(i))))
        if isinstance(getattr(layer.mlp, "router", None), MiceRouter):
            hooks.append(layer.mlp.router.register_forward_hook(keep_routing(str(i))))
    result.logits = model(*arguments(tensors))
    for hook in hooks:
        hook.remove()
    return result


def assert_routers(
    routers: dict[str, dict[str, Tensor]], tensors: dict[str, Tensor], rtol: float
) -> None:
    golden = under("router/", tensors)
    assert {name.split("/")[0] for name in golden} == routers.keys()
    for layer, ours in routers.items():
        theirs = under(f"{layer}/", golden)
        chosen = torch.zeros_like(ours["map"]).scatter(1, theirs["indices"], True)
        assert torch.equal(ours["map"], chosen), f"router {layer} chose other experts"
        assert torch.equal(ours["map"].sum(0), theirs["counts"]), f"router {layer} counts"
        weights = ours["weights"].gather(1, theirs["indices"])
        assert_close(weights, theirs["weights"], rtol, what=f"router {layer} weights")
        assert_close(ours["scores"], theirs["scores"], rtol, what=f"router {layer} scores")


@pytest.mark.parametrize(
    ("dtype", "rotary"),
    [(torch.float64, "fp64"), (torch.float64, "megatron"), (torch.float32, "megatron")],
    ids=["fp64-exact_rotary", "fp64", "fp32"],
)
@pytest.mark.parametrize("case", model_cases())
def test_model(case: str, dtype: torch.dtype, rotary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, info = load(case)
    model = build(under("param/", tensors), info["config"], dtype)
    rtol = RTOL[dtype]
    if rotary == "fp64":
        use_fp64_rotary(model)
    else:
        rtol = max(rtol, FP32_PARTS_RTOL)
    # The golden gradients are those of the cross entropy alone.
    monkeypatch.setattr(MoEAuxLossAutoScaler, "main_loss_backward_scale", torch.tensor(0.0))
    balance = record_balance_losses(monkeypatch)

    result = run(model.train(), tensors)
    for name, hidden in result.hidden.items():
        assert_close(hidden, tensors[f"hidden/{name}"][..., 1:], rtol, what=f"hidden/{name}")
    assert_close(result.logits.cpu(), tensors["logits_train"], rtol, what="logits")
    assert_routers(result.routers, tensors, rtol)
    if "balance_loss" in tensors:
        total = torch.stack(balance).sum() * model.config.moe_aux_loss_coeff
        assert_close(total, tensors["balance_loss"], rtol, what="balance loss")

    labels = tensors["labels"].to(DEVICE)
    loss = F.cross_entropy(result.logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert_close(loss.cpu(), tensors["loss"], rtol, what="loss")
    loss.backward()
    parameters = dict(model.named_parameters())
    without = info["params_without_grad"]
    assert_gradients(parameters, under("grad/", tensors), model.config, rtol, without)

    model.eval()
    with torch.no_grad():
        logits, losses = run(model, tensors).logits, model(*arguments(tensors), labels=labels)
    assert_close(logits.cpu(), tensors["logits_eval"], rtol, what="logits of eval mode")
    own_loss = losses[labels != -100].mean().cpu()
    assert_close(own_loss, tensors["loss"], max(rtol, FP32_PARTS_RTOL), what="Megatron's loss")
