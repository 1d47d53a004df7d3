"""Whole steps through every Triton kernel: losses and gradients are those of the CPU's path."""

from functools import partial

import pytest
import torch

from tests.pretrain.runs import MICE
from tests.stand_ins import gradients

COMMON = """
    --train-iters 2 --global-batch-size 2 --eval-iters 0 --hidden-dropout 0 --attention-dropout 0
    --lr-warmup-iters 0 --seq-length 16
""".split()
LATENT = MICE[: MICE.index("--num-experts")]
POINTS = "--helm-embedding lorentz --embedding-curvature 0.7 --learn-residual-scale".split()
# Flags, and which rooms' kernels run beside those of every layer.
MODELS = {
    "dense": ([], []),
    "dense, points": (POINTS, ["points"]),
    "latent": (LATENT, []),
    "grouped experts": ([*MICE, "--moe-grouped-gemm"], ["mixture"]),
    # torch's grouped product, between Triton's kernels, is of bf16 only.
    "grouped experts, bf16": ([*MICE, "--moe-grouped-gemm", "--bf16"], ["experts", "mixture"]),
    "packed documents": (["--dataloader-inter-document-masking"], []),
    "augmented heads": (["--attention-backend", "fused"], ["augment"]),
}
EVERY_LAYER = ["linear_tail", "norm2", "residual", "residual_norm"]


QUICK = ["dense", "grouped experts"]


@pytest.mark.parametrize(
    "model",
    [pytest.param(model, marks=() if model in QUICK else pytest.mark.slow) for model in MODELS],
)
def test_losses_and_gradients_are_the_cpus(triton, starter, tmp_path, model):
    flags, rooms = [*COMMON, *MODELS[model][0]], [*EVERY_LAYER, *MODELS[model][1]]
    rooms += [] if model == "augmented heads" else ["flash"]
    expected = starter.run(*flags, fault=partial(gradients.keep, tmp_path / "cpu"))
    codes, ranks = triton.start(*flags, program="gradients")
    assert codes == [0], ranks.output[-4000:]
    of_losses, of_gradients = (2e-3, 0.1) if "--bf16" in flags else (1e-5, 2e-5)
    assert ranks.losses == pytest.approx(expected, rel=of_losses)
    ran = ranks.output.rpartition("rooms of Triton:")[2].split()
    assert {*rooms} <= {*ran}, ran
    theirs, ours = torch.load(tmp_path / "cpu"), torch.load(ranks.steps.with_suffix(".gradients"))
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        # Against the largest entry and a floor, as `verify` does: some are sums that cancel.
        difference = (ours[name] - gradient).abs().max() / (gradient.abs().max() + 5e-3)
        assert difference < of_gradients, name
