"""A checkpoint of one parallel layout goes on in another as if it had been saved there."""

import itertools
from functools import partial

import pytest
import torch
from megatron.core.utils import unwrap_model

from tests.pretrain.runs import DENSE, MICE

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


@pytest.mark.parametrize(
    ("optimizer", "tied"),
    [
        ("distributed", False),
        pytest.param("distributed", True, marks=pytest.mark.slow),
        pytest.param("plain", False, marks=pytest.mark.slow),
        pytest.param("plain", True, marks=pytest.mark.slow),
    ],
)
def test_rows_that_pad_the_vocabulary_may_differ(starter, tmp_path, optimizer, tied):
    """128 ids are 192 rows in one process, and 384 in two that hold multiples of 192 each."""
    base = [flag for flag in DENSE if not (tied and flag.startswith("--untie"))]
    common = [*COMMON, *OPTIMIZERS[optimizer], "--make-vocab-size-divisible-by", 192]
    common += ["--exit-interval", 3]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder in (whole, halves):
        folder.mkdir()
    first = [*common, "--save", tmp_path]
    starter.run(*first, base=base, fault=partial(keep_output_layer, whole))
    flags = [*common, *TP2, "--load", tmp_path, "--ckpt-step", 2]
    starter.run(*flags, processes=2, base=base, fault=partial(keep_output_layer, halves))
    saved, *loaded = (torch.load(path) for path in (whole / "0", halves / "0", halves / "1"))
    for name, tensor in saved.items():
        both = torch.cat([half[name] for half in loaded])
        assert len(tensor) == 192 and len(both) == 384, name
        assert tensor.abs().max() > 0 and torch.equal(both[:128], tensor[:128]), name


def keep_output_layer(folder, rank):
    """Write the weights of the logits as they are before the third iteration."""
    from megatron.training import get_args, training

    train_step = training.train_step

    def kept(forward_step, data, model, *rest, **kwargs):
        if get_args().curr_iteration == 2:
            layer = unwrap_model(model)[0].output_layer
            weight = unwrap_model(model)[0].shared_embedding_or_output_weight()
            tensors = {"time_weight": layer.time_weight, "weight": weight}
            torch.save(
                {name: x.detach().clone() for name, x in tensors.items()}, folder / str(rank)
            )
        return train_step(forward_step, data, model, *rest, **kwargs)

    training.train_step = kept
