"""Whole runs where CUDA is said to be, with neither Transformer Engine nor apex."""

import pytest

from tests.pretrain.runs import MICE

COMMON = """
    --train-iters 8 --save-interval 2 --eval-iters 0 --hidden-dropout 0 --attention-dropout 0
    --lr-warmup-iters 0 --exit-interval 4
""".split()
SHARDED = ["--use-distributed-optimizer"]
TP2 = "--tensor-model-parallel-size 2 --sequence-parallel".split()
EP2 = "--expert-model-parallel-size 2".split()
POINTS = "--helm-embedding lorentz --embedding-curvature 0.7".split()
CASES = {
    "dense": ([], 1),
    "dense, sharded": (SHARDED, 2),
    "dense, TP2": (TP2, 2),
    "experts, sharded, EP2, bf16": ([*MICE, *SHARDED, *EP2, "--bf16"], 2),
    "points": (POINTS, 1),
    "points, sharded, bf16": ([*POINTS, *SHARDED, "--bf16"], 2),
}


@pytest.mark.parametrize(
    "case", [pytest.param("dense", marks=pytest.mark.slow), *(c for c in CASES if c != "dense")]
)
def test_saves_and_goes_on(cuda, tmp_path, case):
    flags, processes = CASES[case]
    whole = cuda.run(*COMMON, *flags, "--save", tmp_path, processes=processes)
    assert list(whole) == [1, 2, 3, 4] and whole[4] < whole[1]
    resumed = ["--load", tmp_path, "--ckpt-step", 2]
    assert cuda.run(*COMMON, *flags, *resumed, processes=processes) == {i: whole[i] for i in (3, 4)}


def test_losses_are_those_of_the_cpu(cuda, starter):
    flags = [*COMMON, *MICE, "--helm-embedding", "lorentz"]
    assert cuda.run(*flags) == pytest.approx(starter.run(*flags), rel=1e-6)
