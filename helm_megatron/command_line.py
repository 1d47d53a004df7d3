"""Flags of `pretrain_helm.py` that are not this process's own, parsed as its command line is."""

from __future__ import annotations

import contextlib
import io
import sys
from argparse import Namespace
from collections.abc import Sequence

from megatron.training.arguments import parse_args

from helm_megatron.checks import ArgumentError
from helm_megatron.pretrain import add_args


def parse(flags: Sequence[str]) -> Namespace:
    """Megatron's and HELM's arguments, not yet validated.

    Raises:
        ArgumentError: a flag is unknown or its value is not valid.
    """
    argv, errors = sys.argv, io.StringIO()
    sys.argv = ["pretrain_helm.py", *flags]  # Megatron's parser reads no other list
    try:
        with contextlib.redirect_stderr(errors):
            return parse_args(add_args)
    except SystemExit as error:
        raise ArgumentError(errors.getvalue().strip().rsplit("error: ")[-1]) from error
    finally:
        sys.argv = argv
