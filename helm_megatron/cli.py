"""The command `helm-megatron`: one subcommand for each module listed here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from helm_megatron import doctor
from helm_megatron.errors import HelmError
from helm_megatron.plan import command as plan

# Each adds its parser with `add_parser(subparsers)` and sets `run`, a function of the parsed
# options that returns the exit code. None imports torch before it runs.
SUBCOMMANDS = (doctor, plan)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit code, 2 where its options cannot work."""
    parser = argparse.ArgumentParser(prog="helm-megatron", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in SUBCOMMANDS:
        module.add_parser(subparsers)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except HelmError as error:
        print(f"helm-megatron: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
