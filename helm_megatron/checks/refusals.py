"""What Megatron refuses about flags, in one line that names them."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib.util
import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn

from helm_megatron.errors import HelmError

# A rule of checks: whether it is broken, and the line that says so.
Rules = Iterator[tuple[bool, str]]


class ArgumentError(HelmError):
    """Flags that cannot work; the message is one line that names the flag."""


# Of errors of files what a flag is at fault for; others, of storage, may be gone at the next try.
_WRONG_PATH = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


@functools.cache
def megatrons_flags() -> dict[str, argparse.Action]:
    """The flags of Megatron's parser by attribute; of several for one attribute the first."""
    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False, add_help=False))
    return {action.dest: action for action in reversed(parser._actions)}


def flag_of(attribute: str) -> str:
    """The name of an attribute's flag."""
    action = megatrons_flags().get(attribute)
    return action.option_strings[0] if action else f"--{attribute.replace('_', '-')}"


def has_transformer_engine() -> bool:
    """Whether Transformer Engine is installed; it is not imported."""
    return importlib.util.find_spec("transformer_engine") is not None


def refuse_in_one_line(parser: argparse.ArgumentParser) -> None:
    """Let a parser with Megatron's flags say what is wrong, not list all of them before it."""

    def error(message: str) -> NoReturn:
        parser.exit(2, f"{parser.prog}: error: {message}\n")

    parser.error = error  # type: ignore[method-assign]
    for action in parser._actions:
        if callable(action.type) and not isinstance(action.type, type):
            action.type = functools.partial(_parsed, action.type)


def _parsed(kind: Callable[[str], Any], text: str) -> Any:
    """A value by Megatron's own function, some of which evaluate it as Python."""
    try:
        return kind(text)
    except argparse.ArgumentTypeError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or "not a value of this flag"
        raise argparse.ArgumentTypeError(f"{text!r}: {reason}") from error


@contextlib.contextmanager
def megatrons_refusals() -> Iterator[None]:
    """What Megatron raises about flags, as an ArgumentError; our own errors are what they are."""
    try:
        yield
    except HelmError:
        raise
    except Exception as error:
        places = _megatrons_frames(error.__traceback__)
        if not places or (isinstance(error, OSError) and not isinstance(error, _WRONG_PATH)):
            raise
        raise ArgumentError(_reason(error, places)) from error


Place = tuple[FrameType, int]


def _megatrons_frames(trace: TracebackType | None) -> list[Place]:
    """Megatron's frames with their lines, innermost first; none where ours is further in."""
    found: list[Place] = []
    while trace is not None:
        room = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        if room == "megatron":
            found.insert(0, (trace.tb_frame, trace.tb_lineno))
        elif room == "helm_megatron":
            found = []
        trace = trace.tb_next
    return found


def _reason(error: Exception, places: list[Place]) -> str:
    """One line: what Megatron says, after the flags that it looked at if it names none."""
    said = " ".join(str(error).split())
    if "--" in said:
        return said
    values = next(filter(None, (_values(*place) for place in places)), {})
    named = ", ".join(
        f"{flag} {'(not given)' if value is None else value}" for flag, value in values.items()
    )
    if not isinstance(error, AssertionError | ValueError | RuntimeError):
        said = f"{type(error).__name__}: {said}"
    if not said:
        said = "Megatron takes no such value" if len(values) == 1 else "not together in Megatron"
    return f"{named}: {said}" if named else said


def _values(frame: FrameType, line: int) -> dict[str, Any]:
    """The flags that the statement of a line reads, and the conditions that it is under."""
    try:
        lines, first = inspect.getsourcelines(frame.f_code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError):  # no source, or none that stands alone
        return {}
    line -= max(first, 1) - 1
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0)
    ]
    parts: list[ast.AST] = [*around[-1:], *(n.test for n in around[:-1] if isinstance(n, ast.If))]
    if around and isinstance(around[-1], ast.If):
        parts[0] = around[-1].test
    owners = {name: frame.f_locals.get(name) for name in ("args", "self")}
    return {
        flag_of(node.attr): getattr(owners[node.value.id], node.attr)
        for part in parts
        for node in ast.walk(part)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in owners
        and node.attr in megatrons_flags()
        and hasattr(owners[node.value.id], node.attr)
    }
