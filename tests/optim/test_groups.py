"""What decays, and how fast each kind of parameter goes, in steps of Megatron's optimizer."""

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from helm_megatron.geometry import lorentz
from helm_megatron.optim.joined import get_optimizer
from tests.layers import models

pytestmark = pytest.mark.usefixtures("one_process")

LR, DECAY = 1e-2, 0.5
POINTS = {"embedding": "lorentz", "embedding_curvature": 0.7, "learn_residual_scale": True}
TABLE = "embedding.word_embeddings.weight"


def schedule(optimizer, warmup):
    """Megatron's, which sets the rates and the weight decay of every group."""
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=LR,
        min_lr=LR / 10,
        lr_warmup_steps=warmup,
        lr_decay_steps=10,
        lr_decay_style="cosine",
        start_wd=DECAY,
        end_wd=DECAY,
        wd_incr_steps=10,
        wd_incr_style="constant",
    )


def trained(helm, gradient, make=models.mice):
    """Parameters before and after one step with this gradient everywhere, and the optimizer."""
    model = models.perturb(models.model(make(helm=POINTS | helm)))
    chunk = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
    config = OptimizerConfig(
        optimizer="adam", lr=LR, min_lr=LR / 10, weight_decay=DECAY, clip_grad=0.0
    )
    optimizer = get_optimizer(config, [chunk])
    for parameter in model.parameters():
        parameter.main_grad.fill_(gradient)
    schedule(optimizer, warmup=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    return before, dict(model.named_parameters()), optimizer


RULES = {
    ("megatron", models.mice): lambda name, p: p.dim() > 1 or name.endswith("time_weight"),
    ("megatron", models.dense): lambda name, p: p.dim() > 1 or name.endswith("time_weight"),
    ("reference", models.mice): lambda name, p: (
        not name.endswith((".bias", "log_scale", "curvature.raw", "norm.weight"))
    ),
    ("reference", models.dense): lambda name, p: (
        not name.endswith((".bias", "log_scale", "temperature"))
    ),
}


@pytest.mark.parametrize(
    ("groups", "make"), RULES, ids=[f"{groups}-{make.__name__}" for groups, make in RULES]
)
def test_without_gradients_only_what_decays_moves(groups, make):
    before, after, _ = trained({"weight_decay_groups": groups}, 0.0, make)
    for name, start in before.items():
        decays = RULES[groups, make](name, start) and name != TABLE
        factor = 1 - LR * DECAY if decays else 1.0
        assert torch.allclose(after[name], factor * start, rtol=1e-6, atol=0), name


def test_points_and_curvatures_have_rates_of_their_own():
    """Adam's first step is as long as its rate, Riemannian Adam's along the geodesic."""
    before, after, _ = trained({"embedding_lr_mult": 2.0, "curvature_lr_mult": 3.0}, 1.0)
    curvatures = [name for name in before if name.endswith("curvature.raw")]
    assert len(curvatures) == 4
    for name in curvatures:
        assert (before[name] - after[name]).item() == pytest.approx(3 * LR, rel=1e-4)
    steps = lorentz.distance(before[TABLE].double(), after[TABLE].double(), 0.7)
    assert torch.allclose(steps, torch.full_like(steps, 2 * LR), rtol=1e-3, atol=0)
    norms = [name for name in before if name.endswith("layernorm.weight")]
    assert norms
    for name in norms:
        step = before[name] - after[name]
        assert torch.allclose(step, torch.full_like(step, LR), rtol=1e-3, atol=0)


def test_rates_keep_their_ratio_through_the_schedule():
    _, after, optimizer = trained({"embedding_lr_mult": 2.0, "curvature_lr_mult": 3.0}, 1.0)
    raw = next(p for name, p in after.items() if name.endswith("curvature.raw"))
    kinds = {id(raw): 3.0, id(after[TABLE]): 2.0, id(after["output_layer.weight"]): 1.0}
    scheduler = schedule(optimizer, warmup=3)
    common = []
    for _ in range(12):
        scheduler.step(1)
        rates = {
            kinds[id(p)]: group["lr"]
            for group in optimizer.param_groups
            for p in group["params"]
            if id(p) in kinds
        }
        common.append(rates[1.0])
        assert rates == pytest.approx({mult: mult * common[-1] for mult in kinds.values()})
    assert max(common) == pytest.approx(LR) and common[-1] == pytest.approx(LR / 10)
