"""Recipes: shell files that set the array MODEL_ARGS to flags of `pretrain_helm.py`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from helm_megatron.checks import ArgumentError

# The recipe is the positional argument, so that no path becomes shell text.
_PRINT_FLAGS = 'source "$1" >&2 && printf "%s\\0" "${MODEL_ARGS[@]}"'


def read(path: Path, variables: dict[str, str] | None = None) -> list[str]:
    """The flags in MODEL_ARGS of a recipe, with shell variables such as GPUS set before.

    Raises:
        ArgumentError: the file is not there, fails, or sets no MODEL_ARGS.
    """
    if not path.is_file():
        raise ArgumentError(f"{path}: there is no such recipe")
    done = subprocess.run(
        ["bash", "-euc", _PRINT_FLAGS, "recipe", str(path.resolve())],
        env=os.environ | (variables or {}),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["it failed"]
        raise ArgumentError(f"{path}: {reason[0]}")
    flags = done.stdout.split("\0")[:-1]
    if flags == [""]:
        raise ArgumentError(f"{path}: sets no flags in MODEL_ARGS")
    return flags
