"""A process that is a stand-in's machine and forks the ranks of runs; see `Machine`.

    python -m tests.stand_ins.server cuda

A line of standard input is a run, as JSON: program, flags, number of processes, files of log and
losses, seconds. It is answered by a line of exit codes.
"""

import functools
import importlib
import json
import multiprocessing
import os
import re
import sys
import time
from multiprocessing import connection
from pathlib import Path

from tests import forked

ROOM = r"helm_megatron\.kernels\.\w+\.triton"
AFTER_A_FAILURE = 10  # seconds that the other ranks get: they may wait for it


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr
    importlib.import_module(f"tests.stand_ins.{sys.argv[1]}").pretend()
    from tests import preloaded  # noqa: F401

    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        program, argv, count, log, steps, seconds = json.loads(line)
        files = Path(log), Path(steps)
        ranks = [
            fork.Process(target=PROGRAMS[program], args=(argv, environment, *files))
            for environment in forked.ranks(count)
        ]
        for rank in ranks:
            rank.start()
        codes = join(ranks, seconds)
        print(json.dumps(codes), file=answers, flush=True)


def pretrain(argv: list[str], environment: dict[str, str], log: Path, steps: Path) -> None:
    """A rank of `pretrain_helm.py`."""
    from tests.pretrain.forked import run_rank

    run_rank(argv, environment, log, steps, None)


def gradients(argv: list[str], environment: dict[str, str], log: Path, steps: Path) -> None:
    """The same, which leaves the first step's gradients beside its losses."""
    from tests.pretrain.forked import run_rank
    from tests.stand_ins.gradients import keep

    keep_here = functools.partial(keep, steps.with_suffix(".gradients"))
    run_rank(argv, environment, log, steps, keep_here)
    rooms = [name.split(".")[2] for name in sys.modules if re.fullmatch(ROOM, name)]
    print("rooms of Triton:", *rooms)


def verify(argv: list[str], environment: dict[str, str], log: Path, _: Path) -> None:
    """A rank of `helm-megatron verify`."""
    forked.leave(log)
    os.environ |= environment
    sys.argv = ["verify", *argv]
    from helm_megatron.verify.command import main as compare

    sys.exit(compare())


PROGRAMS = {"pretrain": pretrain, "gradients": gradients, "verify": verify}


def join(ranks: list, seconds: float) -> list[int]:
    """Exit codes of the ranks; those that are left at the end, or after a failure, are killed."""
    end = time.monotonic() + seconds
    while alive := [rank for rank in ranks if rank.is_alive()]:
        connection.wait([rank.sentinel for rank in alive], max(0, end - time.monotonic()))
        if any(rank.exitcode for rank in ranks):
            end = min(end, time.monotonic() + AFTER_A_FAILURE)
        if time.monotonic() >= end:
            break
    forked.kill(*ranks)
    return [rank.exitcode for rank in ranks]


if __name__ == "__main__":
    main()
