"""Recipes: shell files that set the array MODEL_ARGS to flags of `pretrain_helm.py`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from helm_megatron.checks import ArgumentError

# The recipe is the positional argument, so that no path becomes shell text.
_PRINT_FLAGS = 'source "$1" >&2 && printf "%s\\0" "${MODEL_ARGS[@]}"'
# A recipe only sets variables: one that takes longer waits for something, or does not end.
_SECONDS = 60


def read(path: Path, variables: dict[str, str] | None = None) -> list[str]:
    """The flags in MODEL_ARGS of a recipe, with shell variables such as GPUS set before.

    Raises:
        ArgumentError: the file is not there, fails, does not end, or sets no MODEL_ARGS.
    """
    if not path.is_file():
        raise ArgumentError(f"{path}: there is no such recipe")
    try:
        done = subprocess.run(
            ["bash", "-euc", _PRINT_FLAGS, "recipe", str(path.resolve())],
            env=os.environ | (variables or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ArgumentError(f"{path}: has not ended after {_SECONDS} s") from error
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it failed"]
        raise ArgumentError(f"{path}: {reason[0]}")
    try:
        flags = done.stdout.decode().split("\0")[:-1]
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{path}: its flags are not valid UTF-8") from error
    if flags == [""]:
        raise ArgumentError(f"{path}: sets no flags in MODEL_ARGS")
    return flags
