"""Output files and folders that appear whole or not at all, and what is made on the way to them."""

import contextlib
import errno
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from helm_megatron.data.errors import DataError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# In a folder that a run of ours has made for itself: whose it is.
_OWNER = ".helm_megatron"
_STOPPING = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def full_disk(folder: Path, then: str = "free some space") -> Iterator[None]:
    """Turn errors of the file system into one line; `then` is what to do where a disk is full.

    Raises:
        DataError: naming the file, or else the folder that is written.
    """
    try:
        yield
    except OSError as error:
        where = Path(os.fsdecode(error.filename)) if error.filename else folder
        told = error.strerror or error
        written = "cannot be written: " if where.is_relative_to(folder) else ""
        advice = f"; {then}" if error.errno in _FULL else ""
        raise DataError(f"{where}: {written}{told}{advice}") from error


@contextlib.contextmanager
def own_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, removed in the end; at SIGTERM and SIGHUP, too.

    Those of processes of this machine that were killed are removed first.

    Raises:
        OSError: it cannot be made.
    """
    _remove_leftovers(parent, prefix)
    with _exits_at_signals(), tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as made:
        Path(made, _OWNER).write_text(f"{_machine()}\n{os.getpid()}\n")
        yield Path(made)


def _machine() -> str:
    """Where a process id means a process: the host, and in a container its namespace."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {os.readlink(namespace) if namespace.exists() else ''}"


def _remove_leftovers(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError, ValueError):  # not ours, or gone meanwhile
            machine, process = Path(folder, _OWNER).read_text().splitlines()
            if machine == _machine() and not _lives(int(process)):
                shutil.rmtree(folder)
                print(f"removed {folder}, which a killed run had left", file=sys.stderr)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def _exits_at_signals() -> Iterator[None]:
    """Signals that would end the process without a word raise SystemExit instead."""

    def ended(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    changed = []
    try:
        for number in _STOPPING:
            if signal.getsignal(number) is signal.SIG_DFL:
                with contextlib.suppress(ValueError):  # not in the main thread
                    signal.signal(number, ended)
                    changed.append(number)
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def staged(targets: Sequence[Path], overwrite: bool) -> Iterator[list[Path]]:
    """Yield one path to write for each target; they become the targets when the block succeeds.

    The staged files lie in a hidden folder beside the targets (which share one folder, made if
    missing) and are removed if the block raises. Files are renamed in the order of `targets`, after
    old ones are removed in the opposite order: put last the file that readers look for first.

    Raises:
        DataError: a target exists and `overwrite` is false, or it cannot be written.
    """
    for target in targets:
        if target.exists() and not overwrite:
            raise DataError(f"{target} exists; pass --overwrite to replace it")
    folder = targets[0].parent
    with full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with own_folder(folder, ".staged-") as staging:
            paths = [staging / target.name for target in targets]
            yield paths
            for target in reversed(targets):
                target.unlink(missing_ok=True)
            for path, target in zip(paths, targets, strict=True):
                path.rename(target)
