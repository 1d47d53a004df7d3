"""The command `helm-megatron`: one subcommand for each module listed here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from helm_megatron import doctor

# Each adds its parser with `add_parser(subparsers)` and sets `run`, a function of the parsed
# options that returns the exit code. None imports torch before it runs.
SUBCOMMANDS = (doctor,)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit code."""
    parser = argparse.ArgumentParser(prog="helm-megatron", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in SUBCOMMANDS:
        module.add_parser(subparsers)
    options = parser.parse_args(arguments)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
