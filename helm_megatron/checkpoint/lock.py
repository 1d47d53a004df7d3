"""One job at a time saves to a folder."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from helm_megatron.checkpoint.files import CheckpointError

# Beside the checkpoints; it stays when a job ends, and says whose it was.
LOCK = ".saving_job"
_held: list[IO[str]] = []


def lock(save: Path) -> None:
    """Keep other jobs from saving to this folder, for as long as this process lives.

    A lock of the process, which none that it forks has: after kill -9 the next job may start at
    once. Where the file system has no locks, nothing is kept from anyone.

    Raises:
        CheckpointError: another job saves there.
        OSError: the lock's file cannot be made.
    """
    file = (save / LOCK).open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        raise CheckpointError(
            f"--save {save}: another job saves there ({file.read().strip()}); name another folder, "
            "or end that job"
        ) from error
    except OSError:
        return
    file.truncate(0)
    job = os.environ.get("SLURM_JOB_ID")
    file.write(f"process {os.getpid()} on {socket.gethostname()}{f', job {job}' if job else ''}\n")
    file.flush()
    _held.append(file)
