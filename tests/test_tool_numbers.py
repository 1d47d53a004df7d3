"""Numbers among the flags of every tool that cannot be: exit code 2, and the flag is named."""

import argparse
import importlib
import sys

import pytest

from helm_megatron import cli

# Megatron's own parser: tests/pretrain/test_flag_sweep.py; preflight's flags are the job script's.
OTHERS = {"pretrain", "verify", "build-data-cache", "preflight"}
# Checked with others, after parsing: plan's numbers of a cluster, doctor's seconds.
LATER = {"plan", "doctor"}
BAD = ["-1", "nan", "x", ""]


class Parsed(Exception):
    pass


def parser_of(name, monkeypatch):
    """The parser of a command."""
    made = []

    def stop(parser, *_):
        made.append(parser)
        raise Parsed

    module = importlib.import_module(f"helm_megatron.{cli.COMMANDS[name][0]}")
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [name])
        with pytest.raises(Parsed):
            module.main()
    return made[0]


@pytest.mark.parametrize("name", sorted(cli.COMMANDS.keys() - OTHERS - LATER))
def test_every_number_has_a_range(name, monkeypatch, capsys):
    parser = parser_of(name, monkeypatch)
    numbers = [a for a in parser._actions if callable(a.type) and _is_number(a.type)]
    for action in numbers:
        assert action.type not in (int, float), f"{action.option_strings}: takes any number"
        for value in BAD:
            with pytest.raises(argparse.ArgumentError) as refusal:
                parser._get_values(action, [value])
            assert action.option_strings[0] in str(refusal.value)


def _is_number(kind):
    try:
        return isinstance(kind("1"), int | float)
    except Exception:
        return False


@pytest.mark.parametrize("name", sorted(LATER))
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1" + "0" * 30])
def test_numbers_that_are_checked_later(name, value, monkeypatch, capsys, tmp_path):
    flags = {"plan": ["--gpus"], "doctor": ["--timeout"]}[name]
    if name == "doctor" and value.startswith("10"):
        return  # so many seconds may be waited
    monkeypatch.setattr(
        sys, "argv", [name, *([str(tmp_path)] if name == "plan" else []), *flags, value]
    )
    module = importlib.import_module(f"helm_megatron.{cli.COMMANDS[name][0]}")
    try:
        code = module.main()
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert flags[0] in capsys.readouterr().err.splitlines()[-1]
