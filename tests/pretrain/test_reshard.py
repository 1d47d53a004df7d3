"""A checkpoint of one parallel layout goes on in another as if it had been saved there."""

import itertools

import pytest

from tests.pretrain.runs import MICE

COMMON = """
    --train-iters 8 --save-interval 2 --eval-iters 0 --hidden-dropout 0 --attention-dropout 0
    --make-vocab-size-divisible-by 64 --lr-warmup-iters 0
""".split()
RESHARDABLE = ["--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable"]
OPTIMIZERS = {"plain": ["--no-ckpt-fully-parallel-save"], "distributed": RESHARDABLE}
ASYNC = "--async-save --use-persistent-ckpt-worker".split()

TP2 = "--tensor-model-parallel-size 2".split()
PP2 = "--pipeline-model-parallel-size 2".split()
EP2, EP4 = (f"--expert-model-parallel-size {n}".split() for n in (2, 4))
# Flags and number of processes of the run that saves iteration 2, of the one that goes on from it
# to iteration 4, and of the next. The second loss of each shows the optimizer's state.
CHAINS = {
    "dense: TP2, PP2, one process": ([], [(TP2, 2), (PP2, 2), ([], 1)]),
    "experts: EP4, TP2 x PP2": (MICE, [(EP4, 4), ([*TP2, "--sequence-parallel", *PP2], 4)]),
    "experts: EP2, one process, EP2": (MICE, [(EP2, 2), ([], 1), (EP2, 2)]),
}


# Both kinds of model, and both kinds of optimizer's state; the others take minutes.
QUICK = [
    ("dense: TP2, PP2, one process", "plain"),
    ("experts: EP4, TP2 x PP2", "distributed"),
]


@pytest.mark.parametrize(
    ("chain", "optimizer"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in itertools.product(CHAINS, OPTIMIZERS)
    ],
)
def test_next_losses_are_those_of_the_uninterrupted_run(starter, tmp_path, chain, optimizer):
    model, ((first, processes), *others) = CHAINS[chain]
    common = [*COMMON, *model, *OPTIMIZERS[optimizer]]
    folder = tmp_path / "0"
    end = 2 * len(CHAINS[chain][1])
    flags = ["--save", folder, "--exit-interval", end]
    whole = starter.run(*common, *first, *flags, processes=processes)
    assert list(whole) == list(range(1, end + 1)) and whole[end] < whole[1]
    for start, (layout, processes) in zip(range(2, end, 2), others, strict=True):
        flags = ["--load", folder, "--ckpt-step", start, "--exit-interval", start + 2]
        folder = tmp_path / str(start)
        losses = starter.run(*common, *layout, *flags, "--save", folder, processes=processes)
        steps = [start + 1, start + 2]
        assert losses == {i: pytest.approx(whole[i], rel=1e-5) for i in steps}


@pytest.mark.slow
def test_asynchronous_fully_parallel_save(starter, tmp_path):
    common = [*COMMON, *MICE, *RESHARDABLE, *EP2, "--exit-interval", 4]
    whole = starter.run(*common, *ASYNC, "--save", tmp_path, processes=2)
    losses = starter.run(*common, "--load", tmp_path, "--ckpt-step", 2, processes=2)
    assert losses == {i: whole[i] for i in (3, 4)}
