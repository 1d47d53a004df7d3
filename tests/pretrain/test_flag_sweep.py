"""Every flag of Megatron's and ours with values that cannot be: one line that names it, or fine.

One process: the flags are parsed, checked and validated, and Megatron's config is made of them; no
model is built.
"""

import argparse
import contextlib
import copy
import io
import itertools
import re

import pytest

from helm_megatron.checks import (
    ArgumentError,
    check_args,
    check_paths,
    check_training,
    check_values,
    megatrons_refusals,
)
from helm_megatron.checks.foreign import foreign_flags
from helm_megatron.checks.numbers import RANGES
from tests.pretrain.runs import DENSE, MICE

BASE = [*DENSE, "--train-iters", "5", "--seed", "7"]
NOWHERE = "/proc/nowhere/there"
HUGE = str(10**30)
NUMBERS = ["0", "-1", HUGE, "-1e400", "nan", "inf", "", "x"]
# What looks like a line of Megatron's source.
SOURCE = re.compile(r"\b(assert|args\.|self\.)")


@pytest.fixture(scope="module")
def parser():
    from megatron.training.arguments import add_megatron_arguments

    from helm_megatron.verify.command import add_verify_args

    made = argparse.ArgumentParser(prog="program", allow_abbrev=False)
    return add_verify_args(add_megatron_arguments(made))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    from megatron.training import arguments

    monkeypatch.setattr(arguments, "_print_args", lambda title, args: None)


def words_of(action):
    """Command lines with a flag, each as a list of words."""
    flag = action.option_strings[0]
    if action.nargs == 0:
        return [[flag]]
    if action.choices is not None:
        values = [getattr(choice, "name", str(choice)) for choice in action.choices] + ["x"]
        values = values[:12]  # of signals a few
    elif action.type in (int, float):
        values = NUMBERS
    else:
        values = [NOWHERE, "", "[1", "nan", "-1"]
    count = action.nargs if isinstance(action.nargs, int) else 1
    return [[flag, *[value] * count] for value in values]


def parsed(parser, words, base):
    """The arguments of a command line; None where the parser refuses them in one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = parser.parse_args([*map(str, base), *words])
    except SystemExit as end:
        assert end.code == 2
        assert_one_line(said.getvalue().removesuffix("\n"), words[0])
        return None
    args = copy.deepcopy(args)  # Megatron extends its default lists
    args._is_global_batch_size_explicitly_specified = args.global_batch_size is not None
    args.rank, args.world_size = 0, 1
    return args


def assert_one_line(message, flag):
    assert message and "\n" not in message, message
    assert "--" in message, message
    assert not SOURCE.search(message), message


def pretrain(args):
    """What `pretrain_helm.py` looks at before it sets anything up."""
    from megatron.training.arguments import validate_args

    from helm_megatron.arguments import config_from_args

    with megatrons_refusals(), contextlib.redirect_stdout(io.StringIO()):
        check_values(args)
        check_args(args)
        check_training(args)
        check_paths(args)
        validate_args(args)
        check_args(args)
        config_from_args(args)


def verify(args):
    from helm_megatron.verify.command import prepared

    with contextlib.redirect_stdout(io.StringIO()):
        prepared(args)


def plan(args):
    from helm_megatron.plan.recipe import validate

    with megatrons_refusals():
        check_values(args)
    validate(args, 8)


def swept(parser, program, base):
    """Run a program's checks on every flag and value; returns counts and what went wrong."""
    counts, wrong = {"flags": 0, "values": 0, "refused": 0}, []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        counts["flags"] += 1
        for words in words_of(action):
            counts["values"] += 1
            try:
                args = parsed(parser, words, base)
                if args is None:
                    counts["refused"] += 1
                    continue
                program(args)
            except ArgumentError as error:
                counts["refused"] += 1
                try:
                    assert_one_line(str(error), words[0])
                except AssertionError:
                    wrong.append(f"{' '.join(words)}: not one line of ours: {error}")
            except (Exception, SystemExit) as error:
                wrong.append(f"{' '.join(words)}: {type(error).__name__}: {error}")
    return counts, wrong


@pytest.mark.parametrize(
    ("program", "base"),
    [
        (pretrain, [*BASE, *MICE]),
        pytest.param(pretrain, BASE, marks=pytest.mark.slow),
        pytest.param(verify, [*BASE, *MICE], marks=pytest.mark.slow),
        # A cluster of 8: the last of two batch sizes counts.
        pytest.param(plan, [*BASE, *MICE, "--global-batch-size", "16"], marks=pytest.mark.slow),
    ],
    ids=["pretrain-mice", "pretrain-dense", "verify", "plan"],
)
def test_every_flag_is_fine_or_refused_in_one_line(parser, program, base, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # some values are names of folders to make
    counts, wrong = swept(parser, program, base)
    print(counts)
    assert not wrong, "\n".join(wrong)
    assert counts["flags"] > 800 and 0.5 < counts["refused"] / counts["values"] < 0.9


def test_every_number_has_a_range(parser):
    own = {"curvature", "layer_curvature", "embedding_curvature", "output_curvature"}
    own |= {"mice_curvature_init"}  # checked with their model
    numbers = {a.dest for a in parser._actions if a.type in (int, float) and a.choices is None}
    assert not numbers - RANGES.keys() - own - foreign_flags().keys()
    assert RANGES.keys() <= {action.dest for action in parser._actions}


def test_defaults_are_within_the_ranges(parser):
    args = parsed(parser, [], [*BASE, *MICE])
    pretrain(args)


# Megatron asserts these without words, or late.
TOGETHER = {
    "--train-samples": ["--train-samples", "8"],
    "--lr-warmup-iters": ["--lr-warmup-iters", "5"],
    "--lr-warmup-fraction": ["--lr-warmup-fraction", "0.1", "--lr-warmup-iters", "1"],
    "--lr-decay-samples": ["--lr-decay-samples", "8"],
    "--lr-wsd-decay-iters": ["--lr-decay-style", "WSD"],
    "--min-lr": ["--min-lr", "1"],
    "--lr-warmup-init": ["--lr-warmup-init", "1"],
    "--decoupled-min-lr": ["--decoupled-min-lr", "1e-3"],
    "--start-weight-decay": ["--weight-decay-incr-style", "linear"],
    "--weight-decay-incr-style": ["--start-weight-decay", "0.1"],
    "--save-interval": ["--save", "checkpoints"],
    "--save-retain-interval": ["--save-interval", "4", "--save-retain-interval", "6"],
    "--log-memory-interval": ["--log-interval", "2", "--log-memory-interval", "3"],
    "--global-batch-size": ["--global-batch-size", "7"],
    "--eval-global-batch-size": ["--eval-global-batch-size", "3"],
    "--override-opt_param-scheduler": [
        *["--override-opt_param-scheduler", "--use-checkpoint-opt_param-scheduler"],
    ],
    "--moe-expert-capacity-factor": ["--moe-expert-capacity-factor", "2.1"],
    "--tp-comm-overlap": ["--tp-comm-overlap"],
    "--use-precision-aware-optimizer": ["--use-precision-aware-optimizer"],
    "--moe-use-upcycling": ["--moe-use-upcycling"],
    "--expert-model-parallel-size": ["--expert-model-parallel-size", "2"],
    "--context-parallel-size": ["--context-parallel-size", "2"],
    "--fp16": ["--fp16", "--bf16"],
    "--data-args-path": ["--data-args-path", NOWHERE],
    "--tensorboard-dir": ["--tensorboard-dir", NOWHERE],
    "--data-cache-path": ["--data-cache-path", "/dev/null/cache"],
}


@pytest.mark.parametrize("flag", TOGETHER)
def test_what_does_not_go_together_is_refused_in_one_line(parser, flag, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    args = parsed(parser, TOGETHER[flag], [*BASE, *MICE])
    with pytest.raises(ArgumentError) as refusal:
        pretrain(args)
    assert_one_line(str(refusal.value), flag)
    assert flag in str(refusal.value)


@pytest.mark.parametrize("left_out", ["--train-iters", "--lr", "--micro-batch-size"])
def test_what_a_training_needs_is_named(parser, left_out):
    at = BASE.index(left_out)
    args = parsed(parser, [], [*BASE[:at], *BASE[at + 2 :], *MICE])
    with pytest.raises(ArgumentError, match=f"{left_out} is missing"):
        pretrain(args)


def test_mapping_of_ranks_that_experts_cannot_have(parser):
    flags = ["--use-tp-pp-dp-mapping", "--pipeline-model-parallel-size", "2"]
    args = parsed(parser, [*flags, "--expert-model-parallel-size", "2"], [*BASE, *MICE])
    args.world_size = 4
    with pytest.raises(ArgumentError, match="--use-tp-pp-dp-mapping: with pipeline parallelism"):
        pretrain(args)


def test_our_own_faults_and_those_of_storage_keep_their_traceback(monkeypatch, parser):
    from megatron.training import arguments

    def stale(args):
        raise OSError(116, "Stale file handle")

    with pytest.raises(KeyError), megatrons_refusals():
        {}["a"]
    monkeypatch.setattr(arguments, "update_use_dist_ckpt", stale)
    with pytest.raises(OSError, match="Stale"):
        pretrain(parsed(parser, [], BASE))


def test_wordless_assertions_name_the_flags_they_look_at(parser):
    """Those that no rule of ours knows: Megatron's source says which flags it compares."""
    from megatron.training.arguments import validate_args

    one, both = "Megatron takes no such value", "not together in Megatron"
    for flags, named, expected in [
        (["--min-lr", "1"], ["--lr 0.01", "--min-lr 1.0"], both),
        (["--num-dataset-builder-threads", "0"], ["--num-dataset-builder-threads 0"], one),
    ]:
        args = parsed(parser, flags, BASE)
        with pytest.raises(ArgumentError) as refusal, megatrons_refusals():
            validate_args(args)
        found, said = str(refusal.value).split(": ")
        assert (sorted(found.split(", ")), said) == (named, expected)


@pytest.mark.slow
def test_pairs_of_switches(parser, monkeypatch, tmp_path):
    """Two switches at once, those that are fine alone: no traceback either."""
    monkeypatch.chdir(tmp_path)
    alone = []
    for action in parser._actions:
        if action.nargs == 0 and not isinstance(action, argparse._HelpAction):
            with contextlib.suppress(ArgumentError):
                pretrain(parsed(parser, [action.option_strings[0]], BASE))
                alone.append(action.option_strings[0])
    for pair in itertools.islice(itertools.combinations(alone, 2), 0, None, 37):
        try:
            pretrain(parsed(parser, list(pair), BASE))
        except ArgumentError as error:
            assert_one_line(str(error), pair[0])
