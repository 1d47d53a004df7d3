"""tools/checkpoint/convert.py, run in this process."""

import importlib.util
import os
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[2]


def load_tool(path):
    """A command-line tool as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "tools" / path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


TOOL = load_tool("checkpoint/convert.py")


def run(tool, *flags):
    """Run a tool in this process: what it says at the end, None if it succeeds.

    What it sets in the environment is taken back, and logging stays as it is.
    """
    argv = mock.patch.object(sys, "argv", ["tool", *map(str, flags)])
    loud = mock.patch("helm_megatron.conversion.quiet.quiet")
    with mock.patch.dict(os.environ), argv, loud:
        try:
            tool.main()
        except SystemExit as end:
            return end.code
    return None


def convert(*flags):
    """Run the converter in this process: what it says at the end, None if it succeeds."""
    return run(TOOL, *flags)


def refused(said, save, *parts):
    """One line that has all the parts; nothing was written."""
    assert said is not None and said.startswith("error: ") and "\n" not in said, said
    for part in parts:
        assert part in said, said
    assert not Path(save).exists() and not list(Path(save).parent.glob(".*partial*"))
