"""Flags of `pretrain_helm.py` that are not this process's own, parsed as its command line is."""

from __future__ import annotations

import contextlib
import io
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial

from megatron.training.arguments import parse_args

from helm_megatron.checks import ArgumentError
from helm_megatron.pretrain import add_args


def parse(flags: Sequence[str]) -> Namespace:
    """Megatron's and HELM's arguments, not yet validated.

    Raises:
        ArgumentError: a flag is unknown or its value is not valid.
    """

    def parser_of_flags(parser: ArgumentParser) -> ArgumentParser:
        # Megatron's parse_args calls it without arguments, and means the command line.
        parser.parse_args = partial(parser.parse_args, flags)  # type: ignore[assignment]
        return add_args(parser)

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse_args(parser_of_flags)
    except SystemExit as error:
        raise ArgumentError(said.getvalue().strip().rsplit("error: ")[-1]) from error
