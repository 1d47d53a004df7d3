"""Training steps of the release, taken by Megatron's optimizer and schedule, on golden tokens.

The release learns a curvature itself, with weight decay; ours is the softplus of what is learned.
For this comparison the experts' curvatures are parametrized as there.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden import load
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import OptimizerConfig
from megatron.core.optimizer import optimizer as megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from released import under
from test_models import arguments, build, use_fp64_rotary
from torch import Tensor

from helm_megatron.conversion.release import names as release
from helm_megatron.moe import curvature
from helm_megatron.moe.bias import update_selection_biases
from helm_megatron.optim import groups
from helm_megatron.optim.joined import get_optimizer

pytestmark = pytest.mark.usefixtures("one_process")

CASES = [f"train_helm_{name}_tiny" for name in ("d", "mice", "mice_emb")]


@pytest.fixture
def released_curvatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curvatures are parameters themselves, and decay."""
    monkeypatch.setattr(curvature.ExpertCurvature, "forward", lambda self: self.raw)
    monkeypatch.setattr(
        release,
        "_curvature",
        lambda theirs, ours: release.Rule(
            (theirs,), (ours,), lambda c, t: [t[0].reshape(1)], lambda c, t: [t[0].reshape(())]
        ),
    )
    monkeypatch.setattr(groups, "_CURVATURE", "none of the parameters")


@pytest.fixture
def clipping_of_any_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron clips fp32 gradients only."""

    def clip(parameters: list[Any], max_norm: float, total_norm: float, **_: Any) -> None:
        for parameter in parameters:
            parameter.grad *= min(1.0, max_norm / (total_norm + 1e-6))

    monkeypatch.setattr(megatron_optimizer, "clip_grad_by_total_norm_fp32", clip)


def trainer(
    tensors: dict[str, Tensor], info: dict[str, Any], dtype: torch.dtype
) -> tuple[Any, Any, Any]:
    """The model at the start, its optimizer and its schedule."""
    model = build(under("start/", tensors), info["config"], dtype)
    use_fp64_rotary(model)
    model.config.helm = dataclasses.replace(model.config.helm, weight_decay_groups="reference")
    chunk = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
    config = OptimizerConfig(
        optimizer="adam",
        lr=info["lr"],
        min_lr=info["lr"] * info["min_lr_ratio"],
        adam_beta1=info["betas"][0],
        adam_beta2=info["betas"][1],
        adam_eps=info["eps"],
        weight_decay=info["weight_decay"],
        clip_grad=info["clip"],
    )
    optimizer = get_optimizer(config, [chunk])
    schedule = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=info["warmup_steps"],
        lr_decay_steps=info["total_steps"],
        lr_decay_style="cosine",
        start_wd=info["weight_decay"],
        end_wd=info["weight_decay"],
        wd_incr_steps=info["total_steps"],
        wd_incr_style="constant",
    )
    return chunk, optimizer, schedule


def batches(tensors: dict[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    for tokens, labels, ids in zip(
        *(tensors[name] for name in ("tokens", "labels", "sequence_id")), strict=True
    ):
        yield {"tokens": tokens, "attn_mask": ids.unsqueeze(1) != ids.unsqueeze(2)}, labels


def released_state(model: GPTModel) -> dict[str, Tensor]:
    """Parameters and selection biases under their released names."""
    state = {n: t.detach().clone() for n, t in model.named_parameters()}
    state |= {n: t.clone() for n, t in model.named_buffers() if n.endswith("expert_bias")}
    return release.to_release(state, model.config)


def assert_followed(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], start: Any, dtype: torch.dtype
) -> None:
    """Each tensor went the way that the released one went.

    Adam divides a gradient by its size: where that is of the size of its rounding, the way in fp32
    is any. Single entries are allowed that there.
    """
    tolerance, rounding, strays = {
        # Selection biases are fp32 always, and the release moves every point by 5e-9 of itself.
        torch.float64: (1e-6, 1e-7, 0.0),
        torch.float32: (1e-3, 1e-6, 0.2),
    }[dtype]
    assert any(name in ours for name in theirs)
    for name in ours.keys() & theirs.keys():
        way = (theirs[name] - start[name]).abs().max()
        size = theirs[name].abs().max()
        off = (ours[name].double() - theirs[name]).abs() > tolerance * way + rounding * size
        assert off.double().mean() <= strays, f"{name} went another way in {int(off.sum())} entries"


@pytest.mark.parametrize("case", CASES)
def test_steps(
    case: str,
    dtype: torch.dtype,
    released_curvatures: None,
    clipping_of_any_type: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors, info = load(case)
    chunk, optimizer, schedule = trainer(tensors, info, dtype)
    monkeypatch.setattr(MoEAuxLossAutoScaler, "main_loss_backward_scale", torch.tensor(1.0))
    start, points = under("start/", tensors), chunk.config.helm.embedding == "lorentz"
    for log, (batch, labels) in zip(info["log"], batches(tensors), strict=True):
        chunk.zero_grad_buffer()
        optimizer.zero_grad()
        logits = chunk(*arguments(batch))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        assert loss.item() == pytest.approx(log["ce"], rel=1e-5)
        loss.backward()
        chunk.finish_grad_sync()
        update_selection_biases([chunk], chunk.config.moe_router_bias_update_rate)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([log["lr"][0]] * len(rates))
        if points:
            # The release clips by the norm of the ambient gradient, which is not the Riemannian
            # one. Its time is nothing that a gradient by space coordinates tells.
            monkeypatch.setattr(optimizer, "get_grad_norm", lambda norm=log["grad_norm"]: norm)
        _, norm, _ = optimizer.step()
        assert float(norm) == pytest.approx(log["grad_norm"], rel=1e-5), log["step"]
        schedule.step(1)
        after = under(f"after/{log['step']}/", tensors)
        assert_followed(released_state(chunk.module), after, start, dtype)
    assert len(after) > len(start) - 3, "all tensors are recorded after the last step"


def losses(
    tensors: dict[str, Tensor], info: dict[str, Any], dtype: torch.dtype, steps: int
) -> list[float]:
    """Of steps on the golden batches over and over."""
    chunk, optimizer, schedule = trainer(tensors, info | {"total_steps": steps}, dtype)
    found = []
    for batch, labels in itertools.islice(itertools.cycle(batches(tensors)), steps):
        chunk.zero_grad_buffer()
        optimizer.zero_grad()
        logits = chunk(*arguments(batch))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        found.append(loss.item())
        loss.backward()
        chunk.finish_grad_sync()
        update_selection_biases([chunk], chunk.config.moe_router_bias_update_rate)
        optimizer.step()
        schedule.step(1)
    return found


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_in_fp32_follow_those_in_fp64(
    case: str, clipping_of_any_type: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was recorded ends after three steps; fp64 goes on as it began."""
    monkeypatch.setattr(MoEAuxLossAutoScaler, "main_loss_backward_scale", torch.tensor(1.0))
    tensors, info = load(case)
    expected = losses(tensors, info, torch.float64, 50)
    assert min(expected[-3:]) < 0.5 * expected[0]
    assert losses(tensors, info, torch.float32, 50) == pytest.approx(expected, rel=1e-3)
