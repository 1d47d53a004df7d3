"""The flags of a recipe, parsed and validated for a number of GPUs."""

from __future__ import annotations

import contextlib
import copy
import io
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from megatron.training.arguments import validate_args

from helm_megatron import command_line
from helm_megatron.checks import check_args, check_values, megatrons_refusals


def parse(flags: Sequence[str]) -> Namespace:
    """The flags as `pretrain_helm.py` parses them; data and tokenizer are left out.

    Raises:
        ArgumentError: a flag is unknown, or its value cannot be.
    """
    args = command_line.parse(flags)
    check_values(args)
    args.mock_data, args.data_path = True, None
    return args


def validate(args: Namespace, world_size: int, **changes: Any) -> Namespace:
    """A copy of parsed flags with changed attributes, validated for `world_size` processes.

    Raises:
        ArgumentError: HELM's checks or Megatron's refuse it; the message is theirs.
    """
    args = copy.deepcopy(args)
    vars(args).update(changes)
    args.rank, args.local_rank, args.world_size = 0, 0, world_size
    with megatrons_refusals(), contextlib.redirect_stdout(io.StringIO()):
        check_args(args)
        validate_args(args)
        check_args(args)
    return args
