"""A run that is killed goes on from its last whole checkpoint as if nothing had happened."""

import pytest

from tests.pretrain.runs import MICE, kill_when, losses, run, start

pytestmark = pytest.mark.slow


def test_killed_run_ends_at_the_loss_of_an_uninterrupted_one(tmp_path):
    flags = [*MICE, "--expert-model-parallel-size", 2, "--train-iters", 8, "--save-interval", 3]

    def checkpoints(folder):
        return ["--save", tmp_path / folder, "--load", tmp_path / folder]

    whole = losses(run(*flags, *checkpoints("whole"), processes=2))
    killed = start(*flags, *checkpoints("killed"), processes=2)
    kill_when(killed, "iteration        5/")
    rest = losses(run(*flags, *checkpoints("killed"), processes=2))
    assert list(rest) == [4, 5, 6, 7, 8]
    assert rest == {i: whole[i] for i in rest}
    assert whole[8] < whole[1]
