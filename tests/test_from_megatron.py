"""docs/from-megatron.md: every flag of Megatron's parser is in one row of it, and truly so."""

import argparse
import fnmatch
import re
from pathlib import Path

import pytest

from helm_megatron.checks import ArgumentError
from tests.pretrain.runs import MICE
from tests.pretrain.test_flag_sweep import BASE, parsed, pretrain

ROOT = Path(__file__).parents[1]
KINDS = ("works", "refused", "inherited")
ROW = re.compile(r"^\| (.+) \| (works|refused|inherited) \| (.*) \|$", re.MULTILINE)


def rows():
    """The patterns of flags of each row, its kind, and what it says."""
    text = (ROOT / "docs" / "from-megatron.md").read_text()
    return [(re.findall(r"`([^`]+)`", flags), kind, why) for flags, kind, why in ROW.findall(text)]


ROWS = rows()


@pytest.fixture(scope="module")
def actions():
    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser(add_help=False, allow_abbrev=False))
    return parser._actions


@pytest.fixture(scope="module")
def parser():
    from megatron.training.arguments import add_megatron_arguments

    from helm_megatron.pretrain import add_args

    return add_args(add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)))


def matching(patterns, names):
    """Those of the names that a pattern matches."""
    return [name for name in names if any(fnmatch.fnmatch(name, p) for p in patterns)]


def test_every_flag_of_megatrons_parser_is_in_one_row(actions):
    unknown, twice = [], []
    for action in actions:
        count = sum(bool(matching(patterns, action.option_strings)) for patterns, _, _ in ROWS)
        if count != 1:
            (twice if count else unknown).append(action.option_strings[0])
    assert not unknown, f"docs/from-megatron.md has no row for {unknown}"
    assert not twice, f"docs/from-megatron.md has several rows for {twice}"


def test_rows_name_flags_that_megatron_has(actions):
    names = [name for action in actions for name in action.option_strings]
    for patterns, _, _ in ROWS:
        for pattern in patterns:
            assert matching([pattern], names), f"docs/from-megatron.md: no flag {pattern}"


def words_of(action):
    """Command lines with a flag, none of them its default."""
    flag = action.option_strings[0]
    if isinstance(action, argparse.BooleanOptionalAction):
        return [[action.option_strings[-1 if action.default else 0]]]
    if action.nargs == 0:
        return [[flag]]
    if action.choices is not None:
        names = [getattr(c, "name", str(c)) for c in action.choices if c != action.default]
    elif action.type is int:
        names = ["5", "7"]
    else:
        names = ["0.7", "x"]
    count = action.nargs if isinstance(action.nargs, int) else 1
    return [[flag, *[name] * count] for name in names if name != str(action.default)]


def test_refused_flags_are_refused_by_name(parser, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    patterns = [p for row, kind, _ in ROWS if kind == "refused" for p in row]
    let_through = []
    for action in parser._actions:
        for words in words_of(action) if matching(patterns, action.option_strings) else ():
            args = parsed(parser, words, [*BASE, *MICE])
            if args is None:
                continue
            try:
                pretrain(args)
                let_through.append(" ".join(words))
            except ArgumentError as error:
                if not any(name in str(error) for name in action.option_strings):
                    let_through.append(f"{' '.join(words)}: {error}")
    assert not let_through


def test_working_flags_are_in_a_test_or_a_recipe(actions):
    folders = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").glob("*.sh")]
    used = set()
    for path in folders:
        if path.name not in ("test_flag_sweep.py", "test_from_megatron.py"):
            used |= set(re.findall(r"--[a-z0-9][\w-]*", path.read_text()))
    patterns = [p for row, kind, _ in ROWS if kind == "works" for p in row]
    for action in actions:
        if matching(patterns, action.option_strings):
            assert used & set(action.option_strings), f"no test uses {action.option_strings[0]}"


def test_the_table_has_all_kinds():
    assert {kind for _, kind, _ in ROWS} == set(KINDS)
