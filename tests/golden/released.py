"""Golden parameters and gradients of the released code under our names, through the importer."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from golden import RTOL, assert_close, golden_dir
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe.moe_logging import MoEMetricsTracker
from torch import Tensor

from helm_megatron.conversion.release.names import is_ignored, to_release
from helm_megatron.moe.router import MiceRouter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_cases() -> list[Any]:
    """The golden files of whole models: those whose JSON has a model and one loss."""
    folder = golden_dir()
    files = sorted(folder.glob("*.json")) if folder else []
    names = [f.stem for f in files if {"model", "loss"} <= json.loads(f.read_text()).keys()]
    if names:
        return [pytest.param(name, id=name) for name in names]
    return [pytest.param("", id="models", marks=pytest.mark.skip("no golden models"))]


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose names start with the prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def routing(router: MiceRouter, x: Tensor, output: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Scores, weights and choices of a router that mapped x `[s, b, d]` to output.

    Each is `[tokens, experts]`, the tokens in the released order, batch first.
    """
    scores = router.scores(router.gating(x)).flatten(0, 1)
    found = {"scores": scores, "weights": output[0], "map": output[1]}
    return {n: t.unflatten(0, x.shape[:2]).transpose(0, 1).flatten(0, 1) for n, t in found.items()}


def record_balance_losses(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """A list to which each router adds its balance loss, less the coefficient."""
    losses: list[Tensor] = []

    def record(self: Any, name: str, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        losses.append(loss.detach().cpu())

    monkeypatch.setattr(MoEMetricsTracker, "record", record)
    return losses


def pull_back(
    parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], config: TransformerConfig
) -> dict[str, Tensor]:
    """Gradients by our parameters of what has `gradients` by the released ones.

    The released ones are functions of ours, so this is the chain rule: a released table of points,
    for instance, follows its space coordinates.
    """
    leaves = {n: p.detach().cpu().double().requires_grad_() for n, p in parameters.items()}
    released = to_release(leaves, config)
    total = sum((released[name] * gradient).sum() for name, gradient in gradients.items())
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


def assert_gradients(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    config: TransformerConfig,
    rtol: float,
    without: Iterable[str] = (),
) -> None:
    """Each of our parameters has the gradient that the golden `gradients` say; none is left over.

    `without` names the released parameters that have none. What the importer ignores has only
    rounding noise.
    """
    released = to_release({n: p.detach().cpu() for n, p in parameters.items()}, config)
    largest = max(g.abs().max().item() for g in gradients.values())
    for name in gradients.keys() - released.keys():
        assert is_ignored(name), f"no parameter of ours corresponds to {name}"
        noise = torch.zeros_like(gradients[name])
        assert_close(noise, gradients[name], rtol=0.0, atol=1e-12 * largest, what=f"grad {name}")
    golden = {n: torch.zeros_like(released[n]) for n in without if n in released}
    golden |= {n: g for n, g in gradients.items() if n in released}
    assert golden.keys() == released.keys(), f"no gradient of {released.keys() - golden.keys()}"
    expected = pull_back(parameters, golden, config)
    # A gradient is a sum over all tokens that may cancel to a small part of its terms. Below fp64,
    # where that shows, a tenth of the precision of the largest gradient of all is allowed besides.
    largest = max(g.abs().max().item() for g in expected.values())
    atol = 0.1 * rtol * largest if rtol > RTOL[torch.float64] else 0.0
    for name, parameter in parameters.items():
        actual = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert_close(actual.cpu(), expected[name], rtol, atol, what=f"grad {name}")
