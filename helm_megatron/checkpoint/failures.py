"""What went wrong while Megatron loaded or saved a checkpoint, in one line."""

from __future__ import annotations

import argparse
import traceback
from pickle import UnpicklingError

from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from helm_megatron.checkpoint.files import folder_to_load, whole_iterations

# What Megatron and torch raise for files that they cannot read or write, and for contents that do
# not fit the run. torch's CheckpointException is no Exception.
ERRORS = (
    CheckpointingException,
    CheckpointException,
    UnpicklingError,
    EOFError,
    OSError,
    RuntimeError,
    AssertionError,
)
_SAVING = {"save_checkpoint", "maybe_finalize_async_save"}


def explanation(error: BaseException, args: argparse.Namespace) -> str | None:
    """One line about an error of `ERRORS`; None if it is not from loading or saving."""
    frames = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    if "load_checkpoint" in frames:
        folder = folder_to_load(args)
        if folder is None:
            return f"--load {args.load}: {reason(error)}"
        return (
            f"{folder} cannot be loaded: {reason(error)} "
            f"({whole_iterations(folder.parent, without=folder)})"
        )
    if frames & _SAVING and isinstance(error, (CheckpointException, OSError)):
        return (
            f"no checkpoint could be saved to {args.save}: {reason(error)}; the errors above say "
            f"why: is the disk full? ({whole_iterations(args.save)})"
        )
    return None


def exit_in_loading(error: SystemExit) -> str | None:
    """One line where Megatron ends, with exit code 0, as it cannot load a checkpoint; else None."""
    frames = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    if error.code or not frames & {"load_checkpoint", "_load_base_checkpoint", "read_metadata"}:
        return None
    why = reason(error.__context__) if error.__context__ else "Megatron says above why"
    return f"the checkpoint of --load was not loaded: {why}"


def reason(error: BaseException) -> str:
    """The first line of the first failed rank's message, shortened."""
    if isinstance(error, CheckpointException) and not error.failures:
        return "another rank failed"
    while isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, UnpicklingError):  # torch's own words advise to run what is there
        return "it is damaged, or holds more than plain data, which could run code"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
