"""A run that goes on by another plan than its checkpoint's says so, or is told how to."""

import pytest

from tests.pretrain.runs import MICE

COMMON = """
    --eval-iters 0 --save-interval 2 --hidden-dropout 0 --attention-dropout 0 --lr-warmup-iters 1
    --curvature-lr-mult 3 --helm-embedding lorentz --embedding-lr-mult 2
""".split()
OVERRIDE = "--override-opt-param-scheduler"
OLD = "--use-checkpoint-opt_param-scheduler"


@pytest.fixture(scope="module")
def saved(starter):
    """A run of four iterations at a constant rate, with its checkpoint of the second."""
    folder = starter.folder / "saved"
    flags = [*COMMON, "--lr-decay-style", "constant", "--weight-decay", 0.1]
    return folder, flags, starter.run(*flags, "--train-iters", 4, "--save", folder)


@pytest.fixture(scope="module")
def decayed(starter):
    """The same with a rate that falls over the four."""
    folder = starter.folder / "decayed"
    flags = [*COMMON, "--min-lr", 1e-3]
    return folder, flags, starter.run(*flags, "--train-iters", 4, "--save", folder)


def refusal(starter, *flags):
    codes, output = starter.refused(*flags)
    assert codes == [2] and "Traceback" not in output and "parameters on" not in output
    [line] = [line for line in output.splitlines() if "pretrain_helm.py: error" in line]
    return line


def test_more_iterations_at_a_constant_rate_need_no_flag(starter, saved):
    folder, flags, losses = saved
    step2 = ["--load", folder, "--ckpt-step", 2]
    longer = starter.run(*flags, *step2, "--train-iters", 6)
    assert list(longer) == [3, 4, 5, 6] and all(longer[i] == losses[i] for i in (3, 4))


def test_another_plan_is_refused_by_name(starter, saved):
    folder, flags, _ = saved
    changed = """
        --lr 1e-3 --weight-decay 0.2 --global-batch-size 4 --lr-warmup-iters 0
        --lr-decay-style linear --adam-beta2 0.9 --adam-eps 1e-7 --embedding-lr-mult 4
    """.split()
    line = refusal(starter, *flags, "--train-iters", 4, "--load", folder, *changed)
    assert str(folder / "iter_0000004") in line and OVERRIDE in line
    for words in (
        "--lr 0.001 (was 0.01)",
        "--weight-decay 0.2 (was 0.1)",
        "--global-batch-size 4 (was 8)",
        "--lr-warmup-iters 0 (was 1)",
        "--lr-decay-style linear (was constant)",
        "--adam-beta2 0.9 (was 0.999)",
        "--adam-eps 1e-07 (was 1e-08)",
        "--embedding-lr-mult 4.0 (was 2.0)",
    ):
        assert words in line
    assert "no other checkpoint" not in line and "--min-lr" not in line


def test_other_groups_of_parameters_cannot_be_loaded(starter, saved):
    folder, flags, _ = saved
    changed = ["--train-iters", 5, "--load", folder, OVERRIDE, "--decoupled-lr", 1e-3]
    changed += ["--embedding-lr-mult", 1]
    line = refusal(starter, *flags, *changed)
    assert "--decoupled-lr 0.001: the checkpoint" in line and "--no-load-optim" in line


def test_more_iterations_of_a_falling_rate_are_counted(starter, decayed):
    folder, flags, _ = decayed
    line = refusal(starter, *flags, "--train-iters", 6, "--load", folder)
    said = "--train-iters 6 and so --lr-decay-iters 6 (was 4; --lr-decay-iters 4 keeps it)"
    assert said in line and OVERRIDE in line
    kept = [*flags, "--train-iters", 6, "--lr-decay-iters", 4, "--load", folder]
    assert list(starter.run(*kept)) == [5, 6]


@pytest.fixture(scope="module")
def going_on(starter, decayed):
    """What goes on from iteration 4, and what it does without another plan."""
    folder, flags, _ = decayed
    run = [*flags, "--train-iters", 7, "--load", folder, OVERRIDE]
    return run, starter.run(*run)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "changed",
    [
        ["--lr", 1e-3],
        pytest.param(["--min-lr", 1e-4], marks=SLOW),
        pytest.param(["--weight-decay", 0.2], marks=SLOW),
        ["--global-batch-size", 2],
        pytest.param(["--global-batch-size", 16], marks=SLOW),
        ["--adam-beta2", 0.9],
        pytest.param(["--embedding-lr-mult", 30], marks=SLOW),
    ],
)
def test_the_flag_takes_the_new_plan(starter, going_on, changed):
    """Past iteration 4, so that a smaller batch needs more samples than Megatron counts."""
    run, old = going_on
    new = starter.run(*run, *changed)
    assert list(old) == list(new) == [5, 6, 7]
    # The plan says how a step is made, the batch what it is of.
    assert old[7] != new[7] and (old[5] == new[5]) == ("--global-batch-size" not in changed)


def test_rates_of_every_group_are_those_of_the_new_plan(starter):
    """Also those of groups with a rate of their own, in the distributed optimizer."""
    flags = [*COMMON, *MICE, "--use-distributed-optimizer", "--lr-decay-style", "constant"]
    folder = starter.folder / "sharded"
    starter.run(*flags, "--train-iters", 2, "--save", folder)
    start = ["--load", folder, "--train-iters", 3, OVERRIDE]
    rates = "--lr", 1e-3, "--curvature-lr-mult", 30, "--embedding-lr-mult", 20
    assert list(starter.run(*flags, *start, *rates, fault=expect_rates)) == [3]


def expect_rates(rank):
    """Check the rates of all groups of parameters at every step."""
    from megatron.training import training

    train_step = training.train_step

    def checked(forward, iterator, model, optimizer, scheduler, *rest, **kwargs):
        rates = {round(group["lr"], 9) for group in optimizer.param_groups if group["params"]}
        assert rates == {1e-3, 3e-2, 2e-2}, rates
        return train_step(forward, iterator, model, optimizer, scheduler, *rest, **kwargs)

    training.train_step = checked


def test_the_old_plan_on_demand(starter, decayed):
    folder, flags, losses = decayed
    step2 = ["--train-iters", 4, "--load", folder, "--ckpt-step", 2]
    again = starter.run(*flags, *step2, "--lr", 1e-3, "--adam-beta2", 0.5, OLD)
    assert again == {i: losses[i] for i in (3, 4)}
