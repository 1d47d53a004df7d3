"""The losses that are printed are those of their iterations, after every start too."""

import pytest

from tests.pretrain.runs import losses

COMMON = "--eval-iters 0 --save-interval 1 --train-iters 5 --lr-decay-style constant".split()


def printed(starter, *flags):
    ranks = starter.start(*COMMON, *flags)
    assert ranks.join() == [0], ranks.output[-4000:]
    return losses(ranks.output), ranks.losses


def test_printed_losses(starter):
    """Each line is the mean since the last end of an interval; the first iteration has one."""
    logged, trained = printed(starter, "--save", starter.folder / "saved")
    assert logged == pytest.approx(trained, rel=1e-6) and len(logged) == 5
    start = ["--load", starter.folder / "saved", "--ckpt-step"]
    logged, again = printed(starter, *start, 1, "--log-interval", 2)
    assert again == {i: trained[i] for i in range(2, 6)}
    assert logged == pytest.approx({2: trained[2], 4: (trained[3] + trained[4]) / 2}, rel=1e-6)
    logged, again = printed(starter, *start, 2, "--log-interval", 2)
    assert logged == pytest.approx({3: trained[3], 4: (trained[3] + trained[4]) / 2}, rel=1e-6)
