"""Riemannian Adam in a run: what it saves goes on in any layout, and is the same every time."""

import pytest

from tests.pretrain.runs import MICE

COMMON = """
    --train-iters 8 --save-interval 2 --eval-iters 0 --hidden-dropout 0 --attention-dropout 0
    --make-vocab-size-divisible-by 64 --lr-warmup-iters 0 --helm-embedding lorentz
    --hidden-size 40 --kv-channels 8 --embedding-lr-mult 3 --embedding-curvature 0.7
""".split()
SHARDED = ["--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable"]
TP2 = "--tensor-model-parallel-size 2".split()
EP2 = "--expert-model-parallel-size 2".split()
# Flags and number of processes of the run that saves iteration 2, of the one that goes on from it
# to iteration 4, and of the next. The second loss of each shows the optimizer's state.
CHAINS = {
    "fp32: TP2, one process": ([], [(TP2, 2), ([], 1)]),
    "sharded: DP2, TP2, DP2": (SHARDED, [([], 2), (TP2, 2), ([], 2)]),
    "bf16, sharded: DP2, one process": (["--bf16", *SHARDED], [([], 2), ([], 1)]),
    "experts, sharded: EP2, one process": ([*MICE, *SHARDED], [(EP2, 2), ([], 1)]),
}


@pytest.mark.parametrize(
    "chain",
    [
        pytest.param(chain, marks=() if chain.startswith("sharded") else pytest.mark.slow)
        for chain in CHAINS
    ],
)
def test_next_losses_are_those_of_the_uninterrupted_run(starter, tmp_path, chain):
    model, ((first, processes), *others) = CHAINS[chain]
    common, folder, end = [*COMMON, *model], tmp_path / "0", 2 * len(CHAINS[chain][1])
    flags = ["--save", folder, "--exit-interval", end]
    whole = starter.run(*common, *first, *flags, processes=processes)
    assert list(whole) == list(range(1, end + 1)) and whole[end] < whole[1]
    for start, (layout, processes) in zip(range(2, end, 2), others, strict=True):
        flags = ["--load", folder, "--ckpt-step", start, "--exit-interval", start + 2]
        folder = tmp_path / str(start)
        losses = starter.run(*common, *layout, *flags, "--save", folder, processes=processes)
        tolerance = 1e-3 if "--bf16" in common else 1e-5
        assert losses == {i: pytest.approx(whole[i], rel=tolerance) for i in (start + 1, start + 2)}


def test_optimizer_of_points_is_part_of_a_checkpoint(starter, tmp_path):
    saved = [*COMMON, "--exit-interval", 2]
    trained = starter.run(*saved, "--save", tmp_path)
    adam = starter.run(*saved, "--embedding-optimizer", "adam")
    assert trained[1] == adam[1] and trained[2] != adam[2]
    codes, output = starter.refused(*COMMON, "--load", tmp_path, "--embedding-optimizer", "adam")
    assert codes == [2] and "--embedding-optimizer adam" in output and "--no-load-optim" in output
